"""Stretches of leaves that lie side by side in one table, for every address at which it is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import mask
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.snapshot.classify import (
    HIERARCHY_SHIFT,
    are_leaves,
    are_tables,
    next_tables,
    output_addresses,
)
from ptinspect.snapshot.index import TableIndex, take_rows
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window

MAX_VISITS = 262_144
"""How many ways to reach a table are followed unless told otherwise."""
CHUNK_WORDS = 1 << 17
HIERARCHY_MASK = np.uint64(0xF)

Words = NDArray[np.uint64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Fragments:
    """Hold stretches of leaves of one level with equal attributes and successive addresses."""

    level: int
    va: Words
    """First virtual address."""
    pa: Words
    """First physical address."""
    count: NDArray[np.int64]
    """How many leaves."""
    raw: Words
    """The first descriptor."""
    hierarchy: NDArray[np.uint8]
    """Bits [62:59] of the tables above, combined by or; 0 if TCR_EL1.HPD switches them off."""

    def __len__(self) -> int:
        return int(self.va.shape[0])


@dataclass(frozen=True, eq=False)
class _Visits:
    """Tables of one level, once for each address at which they are reached; in order of va."""

    row: Rows
    va: Words
    hierarchy: NDArray[np.uint8]

    def __len__(self) -> int:
        return int(self.row.shape[0])

    def __getitem__(self, which: slice | NDArray[np.bool_] | Rows) -> _Visits:
        return _Visits(self.row[which], self.va[which], self.hierarchy[which])


class Expansion:
    """Go through a snapshot by virtual address, shared tables at each address that reaches them."""

    def __init__(
        self,
        snapshot: Snapshot,
        window: Window,
        pa_range: tuple[int, int] | None = None,
        levels: frozenset[int] | None = None,
        max_visits: int = MAX_VISITS,
        *,
        once: bool = False,
    ) -> None:
        """Go through `window`; with `once`, a table once for each set of bits inherited, at its lowest va."""
        self._snapshot = snapshot
        self._regime = snapshot.regime
        self._window = window
        self._pa_range = pa_range
        self._levels = frozenset(levels_of(self._regime)) if levels is None else levels
        self._max_visits = max_visits
        self._once = once and window.whole
        self._index = TableIndex(snapshot.tables)
        self.truncated = ""
        """Why not everything was followed; empty if it was."""
        self.unreadable = 0
        """Ways that lead to a table which could not be read."""
        self.missing = 0
        """Ways that lead to a table which is not in the snapshot."""

    def run(self, collect: Callable[[Fragments], bool]) -> None:
        """Hand the stretches to `collect`, level by level, in order of va within a level.

        When `collect` returns False, the rest of that level is left out.
        """
        visits = _Visits(
            np.zeros(1, dtype=np.intp),
            np.array([int(self._regime.va_min)], dtype=np.uint64),
            np.zeros(1, dtype=np.uint8),
        )
        deepest = min(max(self._levels, default=self._regime.start_level - 1), LEVEL_LAST)
        step = max(CHUNK_WORDS // self._snapshot.tables.raw.shape[1], 1)
        for level in range(self._regime.start_level, deepest + 1):
            good = self._snapshot.tables.readable[visits.row]
            self.unreadable += int(np.count_nonzero(~good))
            visits = visits[good]
            below: list[_Visits] = [visits[:0]]
            wanted = level in self._levels
            for start in range(0, len(visits), step):
                descend = level < deepest and (self._once or sum(len(v) for v in below) <= self._max_visits)
                if not wanted and not descend:
                    break
                part = visits[start : start + step]
                raw = take_rows(self._snapshot.tables.raw, part.row)
                if wanted:
                    wanted = collect(self._stretches(part, raw, level))
                if descend:
                    below.append(self._children(part, raw, level))
            visits = self._bounded(below, level)

    def _bounded(self, below: list[_Visits], level: int) -> _Visits:
        """Join the tables found below `level`, as many as are followed."""
        visits = _Visits(
            np.concatenate([v.row for v in below]),
            np.concatenate([v.va for v in below]),
            np.concatenate([v.hierarchy for v in below]),
        )
        if self._once:
            key = visits.row * (int(HIERARCHY_MASK) + 1) + visits.hierarchy
            visits = visits[np.sort(np.unique(key, return_index=True)[1])]
        if len(visits) > self._max_visits:
            self.truncated = f"more than {self._max_visits} ways to reach a level {level + 1} table"
        return visits[: self._max_visits]

    def _stretches(self, visits: _Visits, raw: Words, level: int) -> Fragments:
        """Find the stretches in the tables of a chunk: raw has one row for each visit."""
        regime = self._regime
        leaf = are_leaves(raw, level, regime)
        self._restrict(leaf, visits, raw, level)
        low = mask(49 if regime.ds else 47, regime.shift(level))
        joined = (raw[:, 1:] - raw[:, :-1]) == np.uint64(regime.entry_size(level))
        joined &= leaf[:, 1:] & leaf[:, :-1]
        joined &= (raw[:, 1:] & np.uint64(low)) != 0
        first, last = leaf.copy(), leaf
        first[:, 1:] &= ~joined
        last[:, :-1] &= ~joined
        row, slot = np.nonzero(first)
        end = np.nonzero(last)[1]
        start = raw[row, slot]
        return Fragments(
            level=level,
            va=visits.va[row] + (slot.astype(np.uint64) << np.uint64(regime.shift(level))),
            pa=output_addresses(start, level, regime),
            count=end - slot + 1,
            raw=start,
            hierarchy=visits.hierarchy[row],
        )

    def _restrict(self, leaf: NDArray[np.bool_], visits: _Visits, raw: Words, level: int) -> None:
        """Clear the flags of leaves outside the wanted virtual and physical addresses."""
        regime, window = self._regime, self._window
        size = regime.entry_size(level)
        if not window.whole:
            span = regime.entries(level) * size
            for at in np.nonzero(~window.covers(visits.va, span))[0].tolist():
                low, high = window.slots(int(visits.va[at]), level, regime)
                leaf[at, :low] = False
                leaf[at, high + 1 :] = False
        if self._pa_range is not None:
            pa = output_addresses(raw, level, regime)
            leaf &= (pa <= np.uint64(self._pa_range[1])) & (
                pa + np.uint64(size - 1) >= np.uint64(self._pa_range[0])
            )

    def _children(self, visits: _Visits, raw: Words, level: int) -> _Visits:
        """Return the tables below, as far as the window goes."""
        regime = self._regime
        row, slot = np.nonzero(are_tables(raw, level))
        va = visits.va[row] + (slot.astype(np.uint64) << np.uint64(regime.shift(level)))
        if not self._window.whole:
            kept = self._window.touches(va, regime.entry_size(level))
            row, slot, va = row[kept], slot[kept], va[kept]
        entry = raw[row, slot]
        child = self._index.find(level + 1, next_tables(entry, regime))
        self.missing += int(np.count_nonzero(child < 0))
        hierarchy = visits.hierarchy[row]
        if not regime.hpd:
            hierarchy = hierarchy | ((entry >> np.uint64(HIERARCHY_SHIFT)) & HIERARCHY_MASK).astype(np.uint8)
        return _Visits(child, va, hierarchy)[child >= 0]
