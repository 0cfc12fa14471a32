"""`kpti writes`: record the stores that the rewrite of the tables makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import level_name
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import output_argument, timeout_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.rewrite import NotReached
from ptinspect.guest.rewrite.stores import SECONDS, record
from ptinspect.output.encode import Hex, filled
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Note, Report, Table, headings, hex_address
from ptinspect.text import counted

if TYPE_CHECKING:
    from ptinspect.linux.kpti.stores import Recording, Write

SHOWN = 40
RESULT = 4096
"""Stores that are listed in the answer; a file gets them all."""


@dataclass(frozen=True)
class StoreResult:
    """A store to a table."""

    site: str
    level: int
    descriptor_pa: PhysAddr | None
    va: VirtAddr | None
    before: Hex
    stored: Hex
    changed: bool


@dataclass(frozen=True)
class LevelResult:
    """The stores to one level."""

    level: int
    name: str
    stores: int
    changed: int
    unchanged: int
    tables: int
    tables_changed: int
    bit11_only: int


@dataclass(frozen=True)
class RecordingResult:
    """The stores of the rewrite."""

    reached: bool
    algorithm: str
    whole: bool
    stores: int
    seconds: float
    per_second: int
    unread: int
    levels: list[LevelResult]
    writes: list[StoreResult]
    writes_left_out: int


@dataclass(frozen=True)
class AllStores:
    """All stores, for a file."""

    writes: list[StoreResult]


@command(
    "kpti writes",
    group="KPTI",
    summary="Record every store that the rewrite makes to the tables, but those to pages",
    example="kpti writes --level pmd -o writes.csv",
    arguments=(
        argument(
            "--level",
            type=arguments.level,
            action="append",
            metavar="LEVEL",
            help="this level; may be repeated",
        ),
        output_argument("write all stores to FILE (.csv, .json, .txt, .md)", "-o", "--output"),
        timeout_argument(f"limit ({SECONDS:.0f}; more with pte)"),
    ),
    result=RecordingResult | NotReached,
    needs=Needs.STOPPED,
    details="Runs to the rewrite if need be, and to its end, before the TLB is flushed. The guest stops "
    "at each store, some 500 a second: the default leaves out the last level (pte), which has a quarter "
    "of a million stores per gigabyte; --level pte asks for them. kpti verdict judges what was recorded.",
)
def writes(
    guest: Guest,
    *,
    level: list[int | str] | None = None,
    output: Path | None = None,
    timeout: float | None = None,
) -> Report:
    """Record, and report."""
    if output is not None:
        form_of(output)
    found = record(guest, level or (), timeout)
    if isinstance(found, NotReached):
        return Report(found, [Note(found.reason, "changed")], 1)
    if output is not None:
        stores = store_results(found)
        write(Report(AllStores(stores), [_table(stores)]), output)
    return _report(found, output)


def store_results(found: Iterable[Write]) -> list[StoreResult]:
    """Return stores as the result has them."""
    return [
        filled(StoreResult, one, site=f"+{one.site:#x}", changed=one.before != one.stored) for one in found
    ]


def _table(found: Sequence[StoreResult], title: str = "") -> Table:
    columns = headings("site", "level", "va", "descriptor", "before", "stored", "changed")
    rows = [
        (
            one.site,
            str(one.level),
            "?" if one.va is None else hex_address(one.va),
            "?" if one.descriptor_pa is None else hex_address(one.descriptor_pa),
            hex_address(one.before),
            hex_address(one.stored),
            "yes" if one.changed else "no",
        )
        for one in found
    ]
    return Table(columns, rows, title)


def _report(found: Recording, output: Path | None) -> Report:
    rate = len(found) / found.seconds if found.seconds else 0.0
    levels = [
        filled(LevelResult, v, name=level_name(v.level, found.before.regime), unchanged=v.stores - v.changed)
        for v in found.by_level()
    ]
    listed = store_results(islice(found, RESULT))
    result = filled(
        RecordingResult,
        found,
        reached=True,
        stores=len(found),
        seconds=round(found.seconds, 3),
        per_second=round(rate),
        levels=levels,
        writes=listed,
        writes_left_out=len(found) - len(listed),
    )
    heads = headings(">level", ">stores", ">changed", ">unchanged", ">of tables", ">changed", ">bit 11 only")
    rows = [
        (
            f"{v.level} {v.name}",
            *map(str, (v.stores, v.changed, v.unchanged, v.tables, v.tables_changed, v.bit11_only)),
        )
        for v in levels
    ]
    text = f"{counted(len(found), 'store')} in {found.seconds:.1f} s ({rate:.0f} a second), {found.algorithm}"
    body: list[Note | Table] = [Note(text, "title")]
    if not found.whole:
        body.append(Note("the recording began in the middle of the rewrite", "changed"))
    if found.unread:
        body.append(Note(f"{counted(found.unread, 'store')} could not be read", "changed"))
    body.append(Table(heads, rows))
    body.append(_table(listed[:SHOWN], "Stores"))
    if len(found) > SHOWN:
        more = f"… and {len(found) - SHOWN} more"
        body.append(Note(f"{more} in {output}" if output else f"{more}; -o FILE writes them all", "dim"))
    return Report(result, body)
