"""`who`: the stores that made the descriptors of an address what they are, in a recorded boot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import SEARCH_LIMIT, TABLES, address_argument, switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.written import (
    WriteResult,
    call_rows,
    symbol,
    value,
    value_rows,
    way,
    what_changed,
    write_result,
    writer_rows,
)
from ptinspect.dataclass import dataclass
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.path_writers import Place, path_histories
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import Hex
from ptinspect.output.model import Note, Report, Table, escape, facts, headings

if TYPE_CHECKING:
    from ptinspect.guest.recordings.writers import History


@dataclass(frozen=True)
class WrittenResult:
    """What is known of the writes to one descriptor."""

    descriptor_pa: PhysAddr
    level: int | None
    name: str
    raw: Hex
    at_reset: Hex | None
    """None where nobody looked, because the last write was enough."""
    whole: bool
    cut: bool
    writes: Sequence[WriteResult]


@dataclass(frozen=True)
class WhoResult:
    """The writes to the descriptors of a path."""

    position: int
    descriptors: Sequence[WrittenResult]


@command(
    "who",
    group="Timeline",
    summary="Say who wrote the descriptors of an address last, in a recorded boot",
    example="who $sp --level pmd",
    arguments=(
        address_argument("address", metavar="ADDRESS"),
        argument("--level", "-l", type=arguments.level, metavar="LEVEL", help="only the one of this level"),
        switch("--all", "every write since reset, oldest first", dest="every"),
        SEARCH_LIMIT,
        *TABLES[:2],
    ),
    result=WhoResult,
    needs=Needs.STOPPED,
    details="For a virtual address each descriptor on its path; pa:ADDRESS is one descriptor's place. "
    "Writes are found whichever way they were made: through any mapping, physically with the MMU off, or by "
    "the table walk itself (AF, dirty state). Before the present position only; the guest stands there again "
    "afterwards.",
)
def who(
    guest: Guest,
    *,
    address: Address,
    level: int | str | None,
    every: bool,
    timeout: float,
    tables: Tables,
) -> Report:
    """Search the writes to the descriptors of a path."""
    from ptinspect.guest.recordings.timeline import replay_of

    here = replay_of(guest).position
    found = path_histories(guest, address, tables, level, every=every, seconds=timeout)
    result = WhoResult(here, [_result(place, known) for place, known in found])
    body: list[Note | Table] = []
    for (place, _), known in zip(found, result.descriptors, strict=True):
        body.extend(_listed(place, known) if every else _shown(place, known))
    return Report(result, body)


def _result(place: Place, known: History) -> WrittenResult:
    return WrittenResult(
        known.pa,
        place.level,
        place.name,
        Hex(known.now),
        None if known.first is None else Hex(known.first),
        whole=known.whole,
        cut=known.cut,
        writes=[write_result(write, place.level, place.regime) for write in known.writes],
    )


def _head(place: Place, known: WrittenResult) -> Note:
    name = f"{known.name} {known.level} at " if known.level is not None else ""
    return Note(f"{name}pa:{place.pa:#x} = {value(known.raw, place.level, place.regime)}", "title")


def _shown(place: Place, known: WrittenResult) -> list[Note | Table]:
    """Show the last write, with all that is known of it."""
    head = _head(place, known)
    if not known.writes:
        return [
            head,
            Note("nothing wrote it: it is what firmware, a loader or RAM had there at reset", "changed"),
        ]
    write = known.writes[-1]
    rows = [
        ("position", f"{write.position:,}"),
        *writer_rows(write, way(write)),
        *value_rows(write, place.level, place.regime),
        *call_rows(write),
    ]
    return [head, facts(rows)]


def _listed(place: Place, known: WrittenResult) -> list[Note | Table]:
    """Show all writes, one in a line."""
    rows = [
        (
            f"{write.position:,}",
            f"{write.after:#018x}",
            what_changed(write),
            symbol(write.place),
            escape(write.instruction) if write.how == "store" else write.how,
            escape(write.task),
        )
        for write in known.writes
    ]
    columns = headings(">position", "becomes", "changed", "by", "instruction", "task")
    rows.insert(
        0, ("0", f"{known.at_reset or 0:#018x}", "at reset", "firmware, loader, or RAM as it was", "", "")
    )
    notes = [Note("there are more writes than are listed", "changed")] if known.cut else []
    return [_head(place, known), Table(columns, rows), *notes]
