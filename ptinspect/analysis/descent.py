"""Pairs of tables, one of each snapshot, that translate the same addresses; level by level."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.tables.index import Columns, TableIndex, take_rows
from ptinspect.tables.kinds import are_tables, next_tables
from ptinspect.tables.window import Window

CHUNK_WORDS = 1 << 14
"""Descriptors that are compared in one go: the arrays about them take 6 MiB, and stay in the cache."""

Words = NDArray[np.uint64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Pairs(Columns):
    """Hold the pairs of one level in order of va; a pair that is reached twice is there once."""

    a: Rows
    """Row in the first snapshot."""
    b: Rows
    """Row in the second."""
    va: Words
    """Lowest address at which both are reached."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Hold some pairs with their descriptors, shape (pairs, words)."""

    pairs: Pairs
    raw_a: Words
    raw_b: Words
    outside: tuple[slice, ...] = ()
    """Slots that are not compared; only where the chunk is a single pair."""


class Descent:
    """Go down two captures at once."""

    def __init__(self, a: TableIndex, b: TableIndex, regime: Regime, window: Window) -> None:
        self._a, self._b = a, b
        self._regime = regime
        self._window = window
        self._most = 4 * (len(a.tables) + len(b.tables)) + 65_536
        self.not_captured = 0
        """Table descriptors in both snapshots whose tables one of them does not hold."""
        self.too_many = False
        """True if pairs were left out to stay within bounds."""

    def root(self) -> Pairs:
        """Return the pair of the two root tables."""
        zero = np.zeros(1, dtype=np.intp)
        return Pairs(zero, zero, np.array([int(self._regime.va_min)], dtype=np.uint64))

    def readable(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Tell which pairs can be compared: both tables could be read."""
        good: NDArray[np.bool_] = self._a.tables.readable[pairs.a] & self._b.tables.readable[pairs.b]
        return good

    def chunks(self, pairs: Pairs, level: int) -> Iterator[Chunk]:
        """Yield the descriptors of `pairs`, a bounded number at a time.

        Arrays are views where the rows are neighbours: do not write to them. A pair that sticks out
        of the window is a chunk of its own.
        """
        raw_a, raw_b = self._a.tables.raw, self._b.tables.raw
        step = max(CHUNK_WORDS // raw_a.shape[1], 1)
        edges = self._edges(pairs, level)
        start = 0
        while start < len(pairs):
            stop = min(start + step, len(pairs))
            here = [at for at in edges if start <= at < stop]
            if here:
                stop = here[0] if here[0] > start else start + 1
            part = pairs[start:stop]
            rows_a, rows_b = take_rows(raw_a, part.a), take_rows(raw_b, part.b)
            yield Chunk(part, rows_a, rows_b, tuple(edges.get(start, ())))
            start = stop

    def gather(self, parts: list[Pairs], level: int) -> list[Pairs]:
        """Join children of tables at `level` when there are many, so that their number stays bounded."""
        if sum(len(part) for part in parts) < 2 * self._most:
            return parts
        return [self.below(parts, level)]

    def below(self, parts: list[Pairs], level: int) -> Pairs:
        """Join the children of all tables at `level`: each pair once, in order of va."""
        joined = Pairs.joined(parts)
        return self.unique(joined[np.argsort(joined.va, kind="stable")], level)

    def children(self, chunk: Chunk, level: int) -> Pairs:
        """Return the pairs of tables that both sides point to, within the window, each one once."""
        both = np.where(are_tables(chunk.raw_b, level), chunk.raw_a, np.uint64(0))
        a = self._a.links(both, chunk.pairs.va, level, self._regime, self._window)
        b = self._b.find(level + 1, next_tables(chunk.raw_b[a.row, a.slot], self._regime))
        found = (a.child >= 0) & (b >= 0)
        self.not_captured += int(np.count_nonzero(~found))
        return self.unique(Pairs(a.child, b, a.va)[found], level)

    def unique(self, pairs: Pairs, level: int) -> Pairs:
        """Keep each pair once, with its lowest va; those that stick out of the window are kept apart.

        `pairs` are children of tables at `level`, in order of va. At most two of them stick out, and
        they are dropped where the same pair is inside the window elsewhere.
        """
        key = pairs.a * len(self._b.tables) + pairs.b
        if self._window.whole:
            first = np.sort(np.unique(key, return_index=True)[1])
        else:
            inside = self._window.covers(pairs.va, self._regime.entry_size(level))
            kept, at = np.unique(key[inside], return_index=True)
            edge = np.nonzero(~inside & ~np.isin(key, kept))[0]
            first = np.sort(np.concatenate([np.nonzero(inside)[0][at], edge]))
        if first.shape[0] > self._most:
            self.too_many = True
            first = first[: self._most]
        return pairs[first]

    def _edges(self, pairs: Pairs, level: int) -> dict[int, list[slice]]:
        """Return, for each pair that sticks out of the window, the slots that are not in it."""
        if self._window.whole or not len(pairs):
            return {}
        regime = self._regime
        sticking = np.flatnonzero(~self._window.covers(pairs.va, regime.table_span(level)))
        found: dict[int, list[slice]] = {}
        seen: dict[tuple[int, int], int] = {}
        for at in sticking.tolist():
            first, last = self._window.slots(int(pairs.va[at]), level, regime)
            found[at] = [slice(0, first), slice(last + 1, None)]
            key = (int(pairs.a[at]), int(pairs.b[at]))
            if key in seen:
                found[at].append(slice(seen[key], None))
            seen[key] = first
        return found
