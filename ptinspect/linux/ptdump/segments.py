"""What a walk of the kernel's page tables meets, in order of address: for the kernel's own text form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.errors import SnapshotError
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex
from ptinspect.tables.kinds import are_leaves, are_tables, next_tables

MAX_SEGMENTS = 4_000_000
"""More than this are taken for tables that reach each other in circles."""


class Segment(NamedTuple):
    """Entries that follow each other in one table, all empty or all leaves, with equal bits."""

    va: int
    """First address."""
    entries: int
    """How many entries."""
    level: int
    """Level of the table that they stand in."""
    bits: int
    """What they have in common, cut to the wanted mask; 0 for empty ones."""


def segments(snapshot: Snapshot, mask: int) -> Iterator[Segment]:
    """Yield what lies side by side in order of va, shared tables at each address that reaches them.

    Only the bits of `mask` are looked at. A tree of tables all of whose entries are equal pages (KASAN's
    early shadow) is one segment of pages. Entries of the upper levels that are neither empty, nor a
    leaf, nor a table are left out, as mm/pagewalk.c does. Raises SnapshotError if a table is missing
    from the snapshot or could not be read: the text cannot express it.
    """
    yield from _Walk(snapshot, mask).table(0, int(snapshot.regime.va_min), snapshot.regime.start_level)


class _Walk:
    """Go down one tree."""

    def __init__(self, snapshot: Snapshot, mask: int) -> None:
        self._tables, self._regime = snapshot.tables, snapshot.regime
        self._mask = np.uint64(mask)
        self._index = TableIndex(snapshot.tables)
        self._left = MAX_SEGMENTS
        count = len(snapshot.tables)
        self._uniform: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
        self._value: NDArray[np.uint64] = np.zeros(count, dtype=np.uint64)
        for level in reversed(levels_of(self._regime)):
            self._find_uniform(level)

    def _find_uniform(self, level: int) -> None:
        """Note which tables of a level have nothing but equal pages below them."""
        rows = self._index.numbers(level)
        rows = rows[self._tables.readable[rows]]
        words = self._tables.raw[rows][:, : self._regime.entries(level)]
        if level == LEVEL_LAST:
            bits = words & self._mask
            self._uniform[rows] = (bits == bits[:, :1]).all(axis=1)
            self._value[rows] = bits[:, 0]
            return
        rows = rows[are_tables(words, level).all(axis=1)]
        for row in rows.tolist():
            words = self._tables.raw[row, : self._regime.entries(level)]
            children = np.unique(self._index.find(level + 1, next_tables(words, self._regime)))
            if children[0] >= 0 and self._uniform[children].all():
                values = self._value[children]
                self._uniform[row] = bool((values == values[0]).all())
                self._value[row] = values[0]

    def table(self, row: int, va: int, level: int) -> Iterator[Segment]:
        """Yield the segments of a table that begins at `va`, and of those below it."""
        if row < 0 or not self._tables.readable[row]:
            what = "is not in the snapshot" if row < 0 else "could not be read"
            raise SnapshotError(f"the level {level} table of {va:#x} {what}: the dump would lie")
        regime = self._regime
        shift = regime.shift(level)
        words = self._tables.raw[row, : regime.entries(level)]
        bits = words & self._mask
        if level == LEVEL_LAST:
            kind = np.zeros(words.shape, dtype=np.int8)
        else:
            leaf, empty = are_leaves(words, level, regime), words == 0
            kind = np.where(are_tables(words, level), 1, np.where(leaf | empty, 0, 2)).astype(np.int8)
        same = (kind[1:] == kind[:-1]) & (bits[1:] == bits[:-1]) & (kind[1:] != 1)
        first = np.nonzero(np.concatenate([[True], ~same]))[0]
        counts = np.diff(np.append(first, words.shape[0])).tolist()
        below = self._children(words, first, level)
        columns = (first.tolist(), counts, kind[first].tolist(), bits[first].tolist(), below)
        for slot, count, what, value, child in zip(*columns, strict=True):
            at = va + (slot << shift)
            self._left -= 1
            if self._left < 0:
                raise SnapshotError("the tables have no end: do they point at each other?")
            if what == 1 and child >= 0 and self._uniform[child]:
                pages = 1 << (shift - regime.granule_bits)
                yield Segment(at, pages, LEVEL_LAST, int(self._value[child]))
            elif what == 1:
                yield from self.table(child, at, level + 1)
            elif what == 0:
                yield Segment(at, count, level, value)

    def _children(self, words: NDArray[np.uint64], first: NDArray[np.intp], level: int) -> list[int]:
        if level == LEVEL_LAST:
            return [-1] * int(first.shape[0])
        return list(self._index.find(level + 1, next_tables(words[first], self._regime)).tolist())
