"""`walk`: follow one address through the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework.arguments import REPEATED, TABLES, address_argument, snapshot_argument
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.tables.paths import (
    PathResult,
    captured_walk,
    levels_of,
    outcome,
    path_results,
    side_by_side,
)
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.table_choice import Tables
from ptinspect.output.descriptor_words import (
    PermissionsResult,
    attributes_json,
    permissions_result,
    regime_notes,
    words,
)
from ptinspect.output.encode import ABSENT, Absent, Hex, filled
from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape, headings
from ptinspect.output.table_heads import RootResult, root_note, root_result
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.arch.regime import Regime
    from ptinspect.tables.walk import Step, Walk

COLUMNS = headings(
    "level", ">index", "descriptor at", ">raw", "kind", ">leads to", Column("attributes", apart=True)
)
KIND_STYLES: dict[str, Style] = {"invalid": "dim", "reserved": "bad", "table": "level"}


@dataclass(frozen=True)
class StepResult:
    """One descriptor of a walk."""

    level: int
    name: str
    table_pa: PhysAddr
    index: int
    descriptor_pa: PhysAddr
    raw: Hex | None
    """None where it could not be read."""
    kind: str | None
    output_address: PhysAddr | None
    bit11: bool | None
    attributes: Mapping[str, object] | None
    error: str


@dataclass(frozen=True)
class WalkResult:
    """The translation of one address, step by step."""

    va: VirtAddr
    region: str
    root: RootResult
    steps: list[StepResult]
    outcome: str
    pa: PhysAddr | None
    fault_level: int | None
    permissions: PermissionsResult | None
    regime: str
    doubt: str
    reason: str
    mmu_on: bool
    source: str
    against: Sequence[PathResult] | Absent = ABSENT
    """The snapshots that it was to be compared with, in the order in which they were named."""


@command(
    "walk",
    group="Tables",
    summary="Show each level of the translation of an address",
    example="walk $pc",
    arguments=(
        address_argument("va", metavar="VA"),
        *TABLES,
        snapshot_argument(
            "--against",
            "compare with the same path in this snapshot; may be repeated, the earliest first",
            **REPEATED,
        ),
    ),
    expectable=True,
    result=WalkResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Works with the MMU off and at any exception level. The root is printed with the reason for it; "
    "--root chooses another. --snap walks a snapshot, with no guest. With --against each level is shown as "
    "it was in those snapshots too, and in which ways it changed since (the words of diff): "
    "walk $sp --against before --against during.",
)
def walk(
    guest: Guest,
    *,
    va: Address,
    tables: Tables,
    against: Sequence[str],
) -> Report:
    """Walk to one virtual address."""
    from ptinspect.guest.names import names
    from ptinspect.guest.regions import name_of
    from ptinspect.guest.roots import source
    from ptinspect.tables.walk import walk as walk_tables

    if va.physical:
        raise UserError(f"{va.text} is a physical address", "find PA lists the addresses that map it")
    address = VirtAddr(va.value(names(guest, tables.cpu, tables.snap)))
    where = source(guest, tables, address)
    found = walk_tables(where.memory, address, where.root.pa, where.regime)
    result = filled(
        WalkResult,
        found,
        region=name_of(guest, where, address),
        root=root_result(where.root),
        steps=[_step(step) for step in found.steps],
        permissions=None
        if found.permissions is None
        else permissions_result(found.permissions, where.regime),
        regime=where.regime.name,
        doubt=where.regime.doubt,
        mmu_on=where.regime.mmu_on,
        source=where.label,
    )
    times = [captured_walk(guest.snapshot_or_file(name), address) for name in against]
    times.append(("now" if where.snapshot is None else where.snapshot.name, found))
    compared: list[Note | Table] = []
    if against:
        levels = levels_of(times, where.regime)
        result = replace(result, against=path_results(times, levels)[:-1])
        compared = side_by_side(times, levels, where.regime)
    place = guest.place(address, snapshot=where.snapshot)
    body: list[Note | Table] = [
        Note(f"{place}: {escape(result.region)}" if result.region else place, "title"),
        root_note(where.root, where.label, where.regime),
        *_shown(found, where.regime),
        *compared,
    ]
    return Report(result, body)


def _shown(walk: Walk, regime: Regime) -> list[Note | Table]:
    """Show each step, the attributes, and where the walk ended."""
    rows = [(*_row(step), attributes_text(step)) for step in walk.steps]
    body: list[Note | Table] = [Table(COLUMNS, rows, empty="no table was looked at"), outcome(walk, regime)]
    body.extend(regime_notes(regime))
    if not regime.mmu_on and walk.va >> 55 == 0:
        body.append(
            Note("the MMU is off: the CPU takes this address as a physical one, without tables", "dim")
        )
    return body


def _step(step: Step) -> StepResult:
    found, raw = step.descriptor, step.raw
    return filled(
        StepResult,
        step,
        kind=None if found is None else str(found.kind),
        output_address=None if found is None else found.output_address,
        bit11=None if raw is None else bool(raw >> 11 & 1),
        attributes=None if found is None or found.attributes is None else attributes_json(found.attributes),
    )


def _row(step: Step) -> tuple[Styled | str, ...]:
    found = step.descriptor
    if found is None or step.raw is None:
        last: tuple[Styled | str, ...] = ("?", Styled("unreadable", "bad"), "")
    else:
        leads = "" if found.output_address is None else f"pa:{found.output_address:#x}"
        last = (
            f"{step.raw:#018x}",
            Styled(str(found.kind), KIND_STYLES.get(str(found.kind), "plain")),
            leads,
        )
    return (
        Styled(f"{step.name} {step.level}", "level"),
        str(step.index),
        f"pa:{step.descriptor_pa:#x}",
        *last,
    )


def attributes_text(step: Step) -> str:
    """Return the attributes of a step in one line; empty for an invalid descriptor."""
    found = step.descriptor
    return step.error if found is None else words(found)
