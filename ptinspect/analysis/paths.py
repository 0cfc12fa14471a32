"""The path of one address through the tables, at several times, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ptinspect.analysis.classify import kinds_of
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.tables.walk import Step, Walk


@dataclass(frozen=True)
class PathLevel:
    """Hold what was found at one level of the path, the earliest first."""

    level: int
    """Level of the tables, -1 to 3."""
    name: str
    """Linux's name of the level."""
    steps: Sequence[Step | None]
    """One for each walk; None where it ended above."""
    kinds: Sequence[tuple[str, ...] | None]
    """How each differs from the next: words of classify.KINDS, nothing where it is equal.

    None where there is nothing to compare: it cannot be read, the path ended above, or the two are
    slots of different tables.
    """


def side_by_side(walks: Sequence[Walk], regime: Regime) -> tuple[PathLevel, ...]:
    """Return the levels of several walks of one address, from the root down; `regime` is the rules of all."""
    named = {step.level: step.name for walk in walks for step in walk.steps}
    found = []
    for level in sorted(named):
        steps = [next((s for s in walk.steps if s.level == level), None) for walk in walks]
        kinds = [_kinds(one, other, regime) for one, other in pairwise(steps)]
        found.append(PathLevel(level, named[level], steps, kinds))
    return tuple(found)


def _kinds(before: Step | None, after: Step | None, regime: Regime) -> tuple[str, ...] | None:
    if before is None or after is None or before.raw is None or after.raw is None:
        return None
    if before.descriptor_pa != after.descriptor_pa:
        return None
    return kinds_of(before.raw, after.raw, after.level, regime)
