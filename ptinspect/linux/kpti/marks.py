"""The marks (bit 11) in a snapshot's tables, in the order of the rewrite's walk, and how far they go."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.descriptor import BIT11
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.linux.kpti.code import POST_ORDER, PRE_ORDER, Algorithm, KptiCode
from ptinspect.snapshot.fact_names import ALGORITHM
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, parts, place_of, take_rows
from ptinspect.tables.kinds import are_tables, are_valid


@dataclass(frozen=True)
class Frontier:
    """Where the rewrite stands: at the first descriptor that is not done."""

    va: VirtAddr
    """First virtual address that the descriptor translates."""
    level: int
    descriptor_pa: PhysAddr | None
    """Address of the descriptor; None if only registers tell."""
    source: str
    """`tables` or `walk registers`."""


@dataclass(frozen=True, eq=False)
class LevelMarks:
    """Descriptors of one level, and which of them have bit 11. Arrays have the shape (rows, slots)."""

    level: int
    rows: NDArray[np.intp]
    valid: NDArray[np.bool_]
    """Tables, blocks and pages."""
    marked: NDArray[np.bool_]
    """Those of them with bit 11."""
    table: NDArray[np.bool_]
    """Those that point to a table."""
    va: NDArray[np.uint64]
    """First address of each table."""
    regime: Regime
    algorithm: Algorithm

    @cached_property
    def key(self) -> NDArray[np.uint64]:
        """Numbers that grow in the order of the walk."""
        return order_keys(self.va, self.valid.shape[1], self.level, self.regime, self.algorithm)

    def open(self, *, tables: bool = True) -> NDArray[np.bool_]:
        """Tell which descriptors lack bit 11; without `tables` only blocks and pages are asked."""
        found = self.valid & ~self.marked
        return found if tables else found & ~self.table


def marks(snapshot: Snapshot, algorithm: Algorithm) -> Iterator[LevelMarks]:
    """Yield the descriptors of a snapshot, root first, a bounded number of tables at a time."""
    index = TableIndex(snapshot.tables)
    for level in levels_of(snapshot.regime):
        every = index.readable(level)
        for part in parts(len(every), snapshot.tables):
            yield marks_of(snapshot, level, every[part], algorithm)


def marks_of(snapshot: Snapshot, level: int, rows: NDArray[np.intp], algorithm: Algorithm) -> LevelMarks:
    """Return the descriptors of some tables of a level."""
    tables, regime = snapshot.tables, snapshot.regime
    raw = take_rows(tables.raw, rows)
    valid = are_valid(raw, level, regime)
    marked = valid & ((raw & np.uint64(BIT11)) != 0)
    table = are_tables(raw, level)
    return LevelMarks(level, rows, valid, marked, table, tables.va[rows], regime, algorithm)


def order_keys(
    va: NDArray[np.uint64], slots: int, level: int, regime: Regime, algorithm: Algorithm
) -> NDArray[np.uint64]:
    """Return for every entry a number that grows in the order of the walk; shape (rows, slots).

    Both walks go through addresses in ascending order; the old one stores a table's descriptor after the
    subtree, the new one before it.
    """
    size = regime.entry_size(level)
    start = (va - np.uint64(regime.va_min))[:, None] + np.arange(slots, dtype=np.uint64) * np.uint64(size)
    if algorithm == POST_ORDER:
        return (start + np.uint64(size)) * np.uint64(16) - np.uint64(level + 1)
    return start * np.uint64(16) + np.uint64(level + 1)


def key_of(frontier: Frontier, regime: Regime, algorithm: Algorithm) -> int:
    """Return the number of a frontier's descriptor in the order of the walk."""
    at = np.array([frontier.va], dtype=np.uint64)
    return int(order_keys(at, 1, frontier.level, regime, algorithm)[0, 0])


@dataclass(frozen=True)
class Reached:
    """How far the marks in the tables go."""

    frontier: Frontier | None
    """The first descriptor without bit 11 in the order of the walk; None if all have it."""
    gaps: int
    """Descriptors without it that the walk has passed, as the last marked table tells: 0 if all is well."""
    ahead: int
    """Descriptors with it beyond the frontier: leaves that were made nG, or the reverse of gaps."""


def reached(snapshot: Snapshot, algorithm: Algorithm, *, tables: bool = True) -> Reached:
    """Find the first descriptor without bit 11, in the order in which the walk stores them.

    With `tables` false only blocks and pages are looked at: the code leaves no marks in tables.
    """
    first: tuple[int, Frontier] | None = None
    last_table = -1
    for at in marks(snapshot, algorithm):
        passed = at.marked & at.table
        if passed.any():
            last_table = max(last_table, int(at.key[passed].max()))
        open_ = at.open(tables=tables)
        if not open_.any():
            continue
        nearest = int(np.where(open_, at.key, np.uint64(MASK64)).argmin())
        row, slot = (int(v) for v in np.unravel_index(nearest, at.key.shape))
        key, entry = int(at.key[row, slot]), int(at.rows[row])
        if first is None or key < first[0]:
            va, pa = place_of(snapshot.tables, entry, slot, snapshot.regime)
            first = key, Frontier(va, at.level, pa, "tables")
    if first is None:
        return Reached(None, 0, 0)
    gaps = ahead = 0
    for at in marks(snapshot, algorithm):
        gaps += int(np.count_nonzero(at.open(tables=tables) & (at.key < np.uint64(max(last_table, 0)))))
        done = at.marked if tables else at.marked & ~at.table
        ahead += int(np.count_nonzero(done & (at.key > np.uint64(first[0]))))
    return Reached(first[1], gaps if tables else 0, ahead)


def algorithm_of(snapshot: Snapshot, code: KptiCode | None = None) -> Algorithm:
    """Return the order of the walk: the code's, else as noted at the capture, else what fits the marks."""
    if code is not None:
        return code.algorithm
    noted = snapshot.meta.extra.get(ALGORITHM)
    for known in (POST_ORDER, PRE_ORDER):
        if noted == known:
            return known
    return min((POST_ORDER, PRE_ORDER), key=lambda order: reached(snapshot, order).gaps)
