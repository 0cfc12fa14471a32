"""One address's path through the tables at several times: what `walk --against` and `diff --at` show."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.dataclass import dataclass
from ptinspect.output.descriptor_words import permissions_text
from ptinspect.output.encode import Hex
from ptinspect.output.model import Column, Note, Style, Styled, Table, escape, headings
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.analysis.paths import PathLevel
    from ptinspect.arch.regime import Regime
    from ptinspect.snapshot.model import Snapshot
    from ptinspect.tables.walk import Step, Walk

OUTCOME_STYLES: dict[str, Style] = {"mapped": "good", "fault": "bad", "unreadable": "bad"}
Named = tuple[str, "Walk"]
"""A walk, and the name of the time at which it was made."""


@dataclass(frozen=True)
class PathStepResult:
    """One descriptor of the path."""

    level: int
    name: str
    descriptor_pa: PhysAddr
    raw: Hex | None
    kinds: Sequence[str] | None
    """How it differs from the next one in time; null where there is nothing to compare."""


@dataclass(frozen=True)
class PathResult:
    """The path at one time."""

    snapshot: str
    outcome: str
    pa: PhysAddr | None
    steps: Sequence[PathStepResult]


def captured_walk(snapshot: Snapshot, address: VirtAddr) -> Named:
    """Return the walk of an address in a snapshot. Raises UserError if that holds the other half."""
    from ptinspect.snapshot.memory import SnapshotMemory
    from ptinspect.tables.walk import walk

    return snapshot.name, walk(SnapshotMemory(snapshot), address, snapshot.root.pa, snapshot.regime)


def path_results(walks: Sequence[Named], levels: Sequence[PathLevel]) -> list[PathResult]:
    """Return some walks, the earliest first, each compared with the next (`levels_of`)."""
    return [
        PathResult(name, walk.outcome, walk.pa, _steps(levels, number))
        for number, (name, walk) in enumerate(walks)
    ]


def levels_of(walks: Sequence[Named], regime: Regime) -> Sequence[PathLevel]:
    """Compare some walks of one address level by level, each with the next."""
    from ptinspect.analysis.paths import side_by_side

    return side_by_side([walk for _, walk in walks], regime)


def _steps(levels: Sequence[PathLevel], number: int) -> list[PathStepResult]:
    found = []
    for row in levels:
        step = row.steps[number]
        if step is not None:
            raw = None if step.raw is None else Hex(step.raw)
            kinds = row.kinds[number] if number < len(row.kinds) else None
            found.append(PathStepResult(row.level, row.name, step.descriptor_pa, raw, kinds))
    return found


def side_by_side(walks: Sequence[Named], levels: Sequence[PathLevel], regime: Regime) -> list[Note | Table]:
    """Show the descriptors of a path side by side, and what became of each."""
    rows, loud = [], []
    for row in levels:
        cells: list[Styled | str] = [Styled(f"{row.name} {row.level}", "level")]
        for number, step in enumerate(row.steps):
            kinds = row.kinds[number - 1] if number else ()
            before = row.steps[number - 1] if number else None
            cells.append(_cell(before, step, kinds))
            if kinds and _loud(kinds):
                between = f"between {walks[number - 1][0]} and {walks[number][0]}"
                loud.append(f"{row.name} {row.level}: {', '.join(kinds)} {between}")
        rows.append(cells)
    names = [Column(escape(name)) for name, _ in walks]
    table = Table(headings("level", *names), rows, "The same path")
    ends = [Note(f"{escape(name)}: {outcome(walk, regime).text}", "dim") for name, walk in walks]
    found = Note(escape("; ".join(loud)), "bad") if loud else Note("no more than bit 11 changed", "good")
    return [table, *ends, found]


def _loud(kinds: Sequence[str]) -> bool:
    from ptinspect.analysis.classify import only_bit11

    return not only_bit11(tuple(kinds))


def _cell(before: Step | None, step: Step | None, kinds: Sequence[str] | None) -> Styled | str:
    """Show a descriptor, and how it differs from the one before."""
    if step is None:
        return Styled("-", "dim")
    if step.raw is None:
        return Styled("unreadable", "bad")
    if kinds is None:
        moved = before is not None and before.descriptor_pa != step.descriptor_pa
        return Styled(f"{step.raw:#018x}{' another table' if moved else ''}", "changed")
    style: Style = "plain" if not kinds else "bad" if _loud(kinds) else "changed"
    return Styled(f"{step.raw:#018x} {' '.join(kinds)}".strip(), style)


def outcome(walk: Walk, regime: Regime) -> Note:
    """Say where a walk ended."""
    may = "" if walk.permissions is None else f", {permissions_text(walk.permissions, regime)}"
    if walk.pa is not None:
        return Note(f"mapped to pa:{walk.pa:#x}{may}", "good")
    reason = f": {walk.reason}" if walk.reason else ""
    level = "" if walk.fault_level is None else f" at level {walk.fault_level}"
    return Note(f"{walk.outcome}{level}{reason}", OUTCOME_STYLES[walk.outcome])
