"""`find`: the virtual addresses that map a physical one."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import level_name, size_text
from ptinspect.commands.framework.arguments import TABLES, number_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.guest.expression import Address
from ptinspect.guest.expression import address as address_text
from ptinspect.guest.guest import Guest
from ptinspect.guest.mappings import physical_address, ways_to
from ptinspect.guest.regions import names_of
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import Hex, filled
from ptinspect.output.model import Column, Note, Report, Styled, Table, escape, headings
from ptinspect.output.table_heads import RootResult, heads, root_result

COLUMNS = headings("address", "region", "what", "level", "descriptor at", Column("raw", "right", spare=True))


@dataclass(frozen=True)
class HitResult:
    """One way to the address: a leaf that maps it, or a descriptor that lies there."""

    kind: str
    va: VirtAddr
    region: str
    level: int
    table_pa: PhysAddr
    index: int
    descriptor_pa: PhysAddr
    raw: Hex
    size: int


@dataclass(frozen=True)
class FindResult:
    """The ways to a physical address."""

    pa: PhysAddr
    root: RootResult
    hits: Sequence[HitResult]
    truncated: str
    complete: bool
    unseen: Sequence[str]
    snapshot: str


@command(
    "find",
    group="Tables",
    summary="List the virtual addresses that map a physical one",
    example="find pa:0x41475000",
    arguments=(
        argument(
            "address",
            type=address_text,
            metavar="PA",
            help="physical address; a kernel address or symbol is translated first",
        ),
        number_argument("--limit", 1, 100_000, "at most N hits", default=1000),
        *TABLES,
    ),
    expectable=True,
    result=FindResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Also tells whether the address lies in a translation table, and what that entry translates.",
)
def find(
    guest: Guest,
    *,
    address: Address,
    limit: int,
    tables: Tables,
) -> Report:
    """Find what maps a physical address."""
    from ptinspect.snapshot.coverage import unseen

    pa = physical_address(guest, tables, address)
    found = ways_to(guest, tables, pa, limit)
    snapshot, missing = found.snapshot, unseen(found.snapshot)
    region = names_of(snapshot)[0]
    hits = [filled(HitResult, hit, region=region(hit.va)) for hit in found.items]
    rows = [
        (
            Styled(f"{hit.va:#018x}", "address"),
            escape(hit.region),
            f"maps it ({size_text(hit.size)})" if hit.kind == "leaf" else "entry there",
            Styled(f"{level_name(hit.level, snapshot.regime)} {hit.level}", "level"),
            f"pa:{hit.descriptor_pa:#x}",
            f"{hit.raw:#018x}",
        )
        for hit in hits
    ]
    result = FindResult(
        pa=pa,
        root=root_result(snapshot.root),
        hits=hits,
        truncated=found.truncated,
        complete=not found.truncated and not missing,
        unseen=missing,
        snapshot=snapshot.name,
    )
    where = "in what was captured" if missing else "under this root"
    body: list[Note | Table] = [
        Note(f"pa:{pa:#x}", "title"),
        *heads(snapshot),
        Table(COLUMNS, rows, empty=f"no address {where} maps pa:{pa:#x}"),
        *([Note(f"incomplete: {found.truncated}", "bad")] if found.truncated else []),
    ]
    return Report(result, body)
