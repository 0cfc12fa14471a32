"""Captured tables as arrays, one row each, and how rows are found by level and address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import LEVEL_LAST

LOWEST_LEVEL = -1


@dataclass(frozen=True, eq=False)
class Tables:
    """Hold every table reached from a root, one row per table, sorted by (level, va).

    A table reached along several paths has one row, with the lowest `va` that reaches it; its
    identity is (level, pa). All arrays have n rows.
    """

    level: NDArray[np.int8]
    """Level of the table's entries: start_level … 3."""
    pa: NDArray[np.uint64]
    """Physical address of the table."""
    va: NDArray[np.uint64]
    """First virtual address that the table translates, canonical."""
    raw: NDArray[np.uint64]
    """Descriptors, shape (n, granule / 8); a root smaller than a granule is padded with zeros."""
    readable: NDArray[np.bool_]
    """False where the table could not be read; its descriptors are then zeros that mean nothing."""

    def __len__(self) -> int:
        """Return the number of tables."""
        return int(self.level.shape[0])


class TableIndex:
    """Look rows up by (level, physical address). Rows are sorted by level, as Tables promises."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        levels = np.arange(LOWEST_LEVEL, LEVEL_LAST + 2, dtype=np.int8)
        self._bounds = np.searchsorted(tables.level, levels).tolist()
        self._orders: dict[int, tuple[NDArray[np.uint64], NDArray[np.intp]]] = {}

    def rows(self, level: int) -> slice:
        """Return the rows of one level; an empty slice for a level that no table is at."""
        if not LOWEST_LEVEL <= level <= LEVEL_LAST:
            return slice(0, 0)
        return slice(self._bounds[level - LOWEST_LEVEL], self._bounds[level - LOWEST_LEVEL + 1])

    def numbers(self, level: int) -> NDArray[np.intp]:
        """Return the rows of one level by their numbers."""
        part = self.rows(level)
        return np.arange(part.start, part.stop)

    def find(self, level: int, pa: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the row of the table at each address, -1 where it was not captured; same shape."""
        addresses, rows = self._order(level)
        if not addresses.size:
            return np.full(pa.shape, -1, dtype=np.intp)
        slot = np.minimum(np.searchsorted(addresses, pa), addresses.size - 1)
        return np.where(addresses[slot] == pa, rows[slot], -1)

    def _order(self, level: int) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Return the addresses of one level, sorted, and the row of each."""
        if level not in self._orders:
            part = self.rows(level)
            order = np.argsort(self.tables.pa[part], kind="stable")
            self._orders[level] = (self.tables.pa[part][order], order + part.start)
        return self._orders[level]

    @cached_property
    def by_address(self) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Addresses of all tables but the root, sorted, and the row of each.

        Where a table was reached at several levels, a readable row is the one that is found.
        """
        below = np.arange(1, len(self.tables))
        order = np.lexsort((~self.tables.readable[below], self.tables.pa[below]))
        rows = below[order]
        addresses, first = np.unique(self.tables.pa[rows], return_index=True)
        return addresses, rows[first]


def in_parts(rows: NDArray[np.intp], tables: Tables, words: int) -> Iterator[NDArray[np.intp]]:
    """Cut rows into parts of no more than `words` descriptors, of one row at least."""
    step = max(words // tables.raw.shape[1], 1)
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step]


def take_rows(raw: NDArray[np.uint64], rows: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Return rows of an array, of which there is at least one; a view if they are neighbours in order."""
    first, count = int(rows[0]), rows.shape[0]
    if int(rows[-1]) - first == count - 1 and (count < 3 or bool((np.diff(rows) == 1).all())):
        return raw[first : first + count]
    return raw[rows]
