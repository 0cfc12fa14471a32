"""Captured tables as arrays, one row each, and how rows are found by level and address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass, replace
from ptinspect.tables.kinds import are_tables, next_tables
from ptinspect.tables.window import Window


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of records whose arrays have one length; other fields hold for every row."""

    def _arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(next(iter(self._arrays().values())).shape[0])

    def __getitem__(self, which: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        """Return some of the rows."""
        return replace(self, **{name: array[which] for name, array in self._arrays().items()})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, of which there is at least one, one after the other."""
        columns = {name: [part._arrays()[name] for part in parts] for name in parts[0]._arrays()}
        return replace(parts[0], **{name: np.concatenate(arrays) for name, arrays in columns.items()})


LOWEST_LEVEL = -1
CHUNK_WORDS = 1 << 17
"""Descriptors that are looked at in one go: a few MiB, whatever the guest's size."""


@dataclass(frozen=True, eq=False)
class Tables(Columns):
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


@dataclass(frozen=True, eq=False)
class Links(Columns):
    """Hold the table descriptors of some tables of one level."""

    row: NDArray[np.intp]
    """Position of the table in what was given."""
    slot: NDArray[np.intp]
    """Index of the descriptor in it."""
    va: NDArray[np.uint64]
    """First address that the descriptor translates."""
    raw: NDArray[np.uint64]
    child: NDArray[np.intp]
    """Row of the table that it points to; -1 where that was not captured."""


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

    def readable(self, level: int) -> NDArray[np.intp]:
        """Return the rows of one level whose tables could be read."""
        rows = self.numbers(level)
        return rows[self.tables.readable[rows]]

    def find(self, level: int, pa: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the row of the table at each address, -1 where it was not captured; same shape."""
        addresses, rows = self._order(level)
        if not addresses.size:
            return np.full(pa.shape, -1, dtype=np.intp)
        slot = np.minimum(np.searchsorted(addresses, pa), addresses.size - 1)
        return np.where(addresses[slot] == pa, rows[slot], -1)

    def links(
        self,
        raw: NDArray[np.uint64],
        va: NDArray[np.uint64],
        level: int,
        regime: Regime,
        window: Window | None = None,
    ) -> Links:
        """Return the table descriptors in `raw`, tables at `level` that begin at `va`, within `window`."""
        row, slot = np.nonzero(are_tables(raw, level))
        begin = entry_addresses(va[row], slot, level, regime)
        if window is not None and not window.whole:
            kept = window.touches(begin, regime.entry_size(level))
            row, slot, begin = row[kept], slot[kept], begin[kept]
        entry = raw[row, slot]
        return Links(row, slot, begin, entry, self.find(level + 1, next_tables(entry, regime)))

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


def entry_addresses(
    va: NDArray[np.uint64], slot: NDArray[np.intp], level: int, regime: Regime
) -> NDArray[np.uint64]:
    """Return the first address that each slot of a table at `level` translates; `va`: that of its table."""
    return va + (slot.astype(np.uint64) << np.uint64(regime.shift(level)))


def place_of(tables: Tables, row: int, slot: int, regime: Regime) -> tuple[VirtAddr, PhysAddr]:
    """Return the first virtual address that a descriptor translates, and the descriptor's own address."""
    va = (int(tables.va[row]) + (slot << regime.shift(int(tables.level[row])))) & MASK64
    return VirtAddr(va), PhysAddr(int(tables.pa[row]) + 8 * slot)


def parts(count: int, tables: Tables, words: int | None = None) -> Iterator[slice]:
    """Cut rows into parts of at most so many descriptors (CHUNK_WORDS), of one row at least."""
    step = max((words or CHUNK_WORDS) // tables.raw.shape[1], 1)
    for start in range(0, count, step):
        yield slice(start, start + step)


def take_rows(raw: NDArray[np.uint64], rows: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Return rows of an array; a view if they are neighbours in order."""
    count = rows.shape[0]
    if not count:
        return raw[:0]
    first = int(rows[0])
    if int(rows[-1]) - first == count - 1 and (count < 3 or bool((np.diff(rows) == 1).all())):
        return raw[first : first + count]
    return raw[rows]
