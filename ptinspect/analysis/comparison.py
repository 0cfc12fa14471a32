"""Go down two captures at once, and count and list what differs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.changes import UNREADABLE, Change, LevelDiff
from ptinspect.analysis.compare import KINDS, MAPPING, Differences, compare, names
from ptinspect.analysis.pairs import Chunk, Descent, Pairs
from ptinspect.analysis.subtree import Subtrees
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import level_name, levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.snapshot.index import TableIndex
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window


class Comparison:
    """Go down the two trees and collect counts and changes."""

    def __init__(self, a: Snapshot, b: Snapshot, window: Window, max_changes: int) -> None:
        self._a, self._b = a, b
        self._regime = a.regime
        self._index = TableIndex(a.tables), TableIndex(b.tables)
        self._descent = Descent(*self._index, a.regime, window)
        self._subtrees = tuple(Subtrees(index, a.regime) for index in self._index)
        self._max = max_changes
        self.changes: list[Change] = []
        self.total = 0

    @property
    def complete(self) -> bool:
        """Tell whether all tables that both sides point to were compared."""
        return not self._descent.not_captured and not self._descent.too_many

    def notes(self) -> list[str]:
        """Return what was not compared or not listed."""
        found = []
        if self._descent.not_captured:
            found.append(f"{self._descent.not_captured} tables are not in both snapshots: not compared")
        if self._descent.too_many:
            found.append("too many ways through the tables: not all were compared")
        if self.total > len(self.changes):
            found.append(f"{len(self.changes)} of {self.total} changes are listed")
        return found

    def run(self) -> tuple[LevelDiff, ...]:
        """Compare all levels."""
        levels = []
        pairs = self._descent.root()
        for level in levels_of(self._regime):
            counts = np.zeros(len(KINDS), dtype=np.int64)
            good = self._descent.readable(pairs)
            bad = pairs[~good]
            self._unreadable(bad, level)
            pairs = pairs[good] if len(bad) else pairs
            changed, following = self._level(pairs, level, counts)
            levels.append(
                LevelDiff(
                    level,
                    level_name(level, self._regime),
                    len(pairs),
                    changed,
                    *[*counts.tolist(), len(bad)],
                )
            )
            pairs = following
        return tuple(levels)

    def _level(self, pairs: Pairs, level: int, counts: NDArray[np.int64]) -> tuple[int, Pairs]:
        """Compare the pairs of one level; returns how many descriptors differ, and the pairs below."""
        changed = 0
        below: list[Pairs] = [pairs[:0]]
        for chunk in self._descent.chunks(pairs, level):
            number, found = compare(chunk, level, self._regime, counts)
            changed += number
            if found is not None:
                self._list(chunk, found, level)
            if level < LEVEL_LAST:
                below = self._descent.gather([*below, self._descent.children(chunk, level)], level)
        return changed, self._descent.below(below, level)

    def _list(self, chunk: Chunk, found: Differences, level: int) -> None:
        """Add differences to the list as far as there is room."""
        self.total += found.row.shape[0]
        room = slice(0, max(self._max - len(self.changes), 0))
        row, slot = found.row[room], found.slot[room]
        if not row.shape[0]:
            return
        before, after, codes = found.before[room], found.after[room], found.codes[room]
        moved = (codes & MAPPING) != 0
        shift = np.uint64(self._regime.shift(level))
        last = self._regime.entry_size(level) - 1
        offset = slot.astype(np.uint64) * np.uint64(8)
        columns = (
            chunk.pairs.va[row] + (slot.astype(np.uint64) << shift),
            self._a.tables.pa[chunk.pairs.a[row]] + offset,
            self._b.tables.pa[chunk.pairs.b[row]] + offset,
            before,
            after,
            codes,
            *self._subtrees[0].below(np.where(moved, before, 0), level),
            *self._subtrees[1].below(np.where(moved, after, 0), level),
        )
        for va, pa_a, pa_b, old, now, code, *weight in zip(*(c.tolist() for c in columns), strict=True):
            self.changes.append(
                Change(va, VirtAddr(va + last), level, pa_a, old, now, names(code), pa_b, *weight)
            )

    def _unreadable(self, bad: Pairs, level: int) -> None:
        """List tables that cannot be compared."""
        self.total += len(bad)
        start = self._regime.start_level
        size = 1 << self._regime.va_bits if level == start else self._regime.entry_size(level - 1)
        for i in range(min(len(bad), max(self._max - len(self.changes), 0))):
            row_a, row_b = int(bad.a[i]), int(bad.b[i])
            where = [
                snapshot.name
                for snapshot, row in ((self._a, row_a), (self._b, row_b))
                if not snapshot.tables.readable[row]
            ]
            va = int(bad.va[i])
            self.changes.append(
                Change(
                    VirtAddr(va),
                    VirtAddr(va + size - 1),
                    level,
                    PhysAddr(int(self._a.tables.pa[row_a])),
                    None,
                    None,
                    (UNREADABLE,),
                    PhysAddr(int(self._b.tables.pa[row_b])),
                    note=f"the table could not be read in {' and '.join(where)}",
                )
            )
