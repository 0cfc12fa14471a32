"""Count what a table descriptor maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.snapshot.classify import are_leaves, are_tables, next_tables
from ptinspect.snapshot.index import TableIndex

_STEP = 256


class Subtrees:
    """Count leaves and bytes below tables of one snapshot; each table is looked at once."""

    def __init__(self, index: TableIndex, regime: Regime) -> None:
        self._index = index
        self._regime = regime
        count = len(index.tables)
        self._leaves = np.zeros(count, dtype=np.int64)
        self._bytes = np.zeros(count, dtype=np.uint64)
        self._done = np.zeros(count, dtype=np.bool_)

    def below(self, raw: NDArray[np.uint64], level: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Return leaves and bytes that each descriptor of a table at `level` maps, as captured.

        A leaf counts as one; a table that was not captured or not readable counts as nothing; a
        table that is reached twice counts twice, since it maps two ranges.
        """
        leaf = are_leaves(raw, level, self._regime)
        leaves = leaf.astype(np.int64)
        size = leaf.astype(np.uint64) * np.uint64(self._regime.entry_size(level))
        if level == LEVEL_LAST:
            return leaves, size
        at = np.nonzero(are_tables(raw, level))[0]
        rows = self._index.find(level + 1, next_tables(raw[at], self._regime))
        at, rows = at[rows >= 0], rows[rows >= 0]
        self._fill(np.unique(rows), level + 1)
        leaves[at] = self._leaves[rows]
        size[at] = self._bytes[rows]
        return leaves, size

    def _fill(self, rows: NDArray[np.intp], level: int) -> None:
        """Count below tables at `level`, those below them first."""
        todo = rows[~self._done[rows]]
        for start in range(0, todo.shape[0], _STEP):
            part = todo[start : start + _STEP]
            raw = self._index.tables.raw[part]
            leaf = np.count_nonzero(are_leaves(raw, level, self._regime), axis=1)
            self._leaves[part] = leaf
            self._bytes[part] = leaf.astype(np.uint64) * np.uint64(self._regime.entry_size(level))
            if level == LEVEL_LAST:
                continue
            parent, slot = np.nonzero(are_tables(raw, level))
            child = self._index.find(level + 1, next_tables(raw[parent, slot], self._regime))
            parent, child = parent[child >= 0], child[child >= 0]
            self._fill(np.unique(child), level + 1)
            np.add.at(self._leaves, part[parent], self._leaves[child])
            np.add.at(self._bytes, part[parent], self._bytes[child])
        self._done[todo] = True
