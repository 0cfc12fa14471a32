"""Check that the tables of a snapshot file are what a capture could have made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.errors import SnapshotError
from ptinspect.snapshot.model import Tables


def check_tables(tables: Tables, regime: Regime, root_pa: int) -> None:
    """Raise SnapshotError, naming the rule, if the tables contradict themselves or the regime."""
    level, pa, va = tables.level, tables.pa, tables.va
    first = regime.start_level
    if not len(tables):
        raise SnapshotError("there is no table, not even the root")
    _must(bool(((level >= first) & (level <= LEVEL_LAST)).all()), "a level that the regime does not have")
    _must(bool((np.diff(level) >= 0).all()), "rows that are not sorted by level")
    _must(int(np.count_nonzero(level == first)) == 1, "not exactly one root table")
    _must(int(pa[0]) == root_pa, "a first row that is not the root")
    _must(int(va[0]) == regime.va_min, "a root that does not begin at the start of the half")
    same = level[1:] == level[:-1]
    _must(bool((~same | (va[1:] > va[:-1])).all()), "rows that are not sorted by virtual address")
    _must(_unique(level, pa), "a table that appears twice at one level")
    inside = (va >= np.uint64(regime.va_min)) & (va <= np.uint64(regime.va_max))
    _must(bool(inside.all()), "a virtual address outside the regime's half")
    low = np.uint64(regime.granule - 1)
    _must(not bool((pa[1:] & low).any()), "a table that is not aligned to the granule")
    _must(not bool((pa >> np.uint64(56)).any()), "a physical address of more than 56 bits")
    for number in range(first + 1, LEVEL_LAST + 1):
        covered = np.uint64(regime.entry_size(number - 1) - 1)
        aligned = not bool((va[level == number] & covered).any())
        _must(aligned, f"a level {number} table at a virtual address that is not its first")
    _must(not bool(tables.raw[0, regime.entries(first) :].any()), "descriptors behind the end of the root")
    _must(not bool(tables.raw[~tables.readable].any()), "descriptors in a table that could not be read")


def _unique(level: NDArray[np.int8], pa: NDArray[np.uint64]) -> bool:
    """Tell whether every (level, pa) is there once."""
    order = np.lexsort((pa, level))
    pa, level = pa[order], level[order]
    return not bool(((pa[1:] == pa[:-1]) & (level[1:] == level[:-1])).any())


def _must(holds: bool, problem: str) -> None:
    if not holds:
        raise SnapshotError(f"the tables contradict themselves: {problem}")
