"""Stretches of leaves that lie side by side in one table, for every address at which it is reached."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import mask
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass, replace
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import Columns, TableIndex, entry_addresses, parts, take_rows
from ptinspect.tables.kinds import (
    HIERARCHY_SHIFT,
    are_leaves,
    are_tables,
    are_whole,
    next_tables,
    output_addresses,
)
from ptinspect.tables.window import Window

MAX_VISITS = 262_144
"""How many ways to reach a table are followed at each level, or four for each table if that is more."""
NEIGHBOURS = 64
"""Entries next to each other that lead to one table, from which on its content is given once."""
HIERARCHY_MASK = np.uint64(0xF)

Words = NDArray[np.uint64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Fragments(Columns):
    """Hold stretches of leaves of one level with equal attributes and successive addresses."""

    level: int
    va: Words
    pa: Words
    count: NDArray[np.int64]
    raw: Words
    """The first descriptor."""
    hierarchy: NDArray[np.uint8]
    """Bits [62:59] of the tables above, combined by or; 0 if TCR_EL1.HPD switches them off."""
    again: NDArray[np.bool_]
    """True where all leaves lead to one page instead."""


@dataclass(frozen=True, eq=False)
class _Visits(Columns):
    """Tables of one level, once for each address at which they are reached; in order of va."""

    row: Rows
    va: Words
    hierarchy: NDArray[np.uint8]
    pages: NDArray[np.int64]
    """0; else the row is of any level, and this many leaves are those of tables that repeat one page."""


@dataclass(frozen=True)
class Again:
    """Entries that lead to one table, after a first one at which its content is given."""

    va: int
    """First address that the second of the entries translates."""
    times: int
    """How many there are after the first."""
    span: int
    """Bytes that each of them translates; the first one begins so much below `va`."""
    level: int
    table_pa: int


class Expansion:
    """Go through a snapshot by virtual address, shared tables at each address that reaches them."""

    def __init__(
        self,
        snapshot: Snapshot,
        window: Window,
        pa_range: tuple[int, int] | None = None,
        levels: frozenset[int] | None = None,
        max_visits: int = 0,
        *,
        once: bool = False,
        repeated: bool = False,
    ) -> None:
        """Go through `window`; with `once`, a table once for each set of bits inherited, at its lowest va.

        With `repeated`, tables all of whose entries are one page, or one such table, are one stretch, and
        what NEIGHBOURS lead to is given for the first of them; `again` has the others. `max_visits` is
        MAX_VISITS by default.
        """
        self._snapshot = snapshot
        self._regime = snapshot.regime
        self._window = window
        self._pa_range = pa_range
        self._levels = frozenset(levels_of(self._regime)) if levels is None else levels
        self._max_visits = max_visits or max(MAX_VISITS, 4 * len(snapshot.tables))
        self._once = once and window.whole
        self._index = TableIndex(snapshot.tables)
        self._repeats = _Repeats(snapshot, self._index) if repeated and not once else None
        self.again: list[Again] = []
        """Ways that are not followed because the first of them shows what they lead to."""
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
            np.zeros(1, dtype=np.int64),
        )
        deepest = min(max(self._levels, default=self._regime.start_level - 1), LEVEL_LAST)
        for level in range(self._regime.start_level, deepest + 1):
            good = self._snapshot.tables.readable[visits.row]
            self.unreadable += int(np.count_nonzero(~good))
            visits = visits[good]
            below: list[_Visits] = [visits[:0]]
            wanted = level in self._levels
            for at in parts(len(visits), self._snapshot.tables):
                descend = level < deepest and (self._once or sum(len(v) for v in below) <= self._max_visits)
                if not wanted and not descend:
                    break
                part = visits[at]
                tables, alike = part[part.pages == 0], part[part.pages > 0]
                raw = take_rows(self._snapshot.tables.raw, tables.row)
                if wanted:
                    wanted = collect(self._with_repeated(self._stretches(tables, raw, level), alike))
                if descend:
                    found = _Visits.joined([self._children(tables, raw, level), alike])
                    below.append(found[np.argsort(found.va, kind="stable")])
            visits = self._bounded(below, level)

    def _bounded(self, below: list[_Visits], level: int) -> _Visits:
        """Join the tables found below `level`, as many as are followed."""
        visits = _Visits.joined(below)
        if self._once:
            key = visits.row * (int(HIERARCHY_MASK) + 1) + visits.hierarchy
            visits = visits[np.sort(np.unique(key, return_index=True)[1])]
        if self._repeats is not None:
            visits = self._first_of_many(visits, level)
        if len(visits) > self._max_visits:
            self.truncated = f"more than {self._max_visits} ways to reach a level {level + 1} table"
        return visits[: self._max_visits]

    def _first_of_many(self, visits: _Visits, level: int) -> _Visits:
        """Leave out, of many neighbours at `level` that lead to one table, all but the first."""
        size = self._regime.entry_size(level)
        alone = (visits.pages == 0) & self._window.covers(visits.va, size)
        same = alone[1:] & alone[:-1] & (visits.va[:-1] + np.uint64(size) == visits.va[1:])
        same &= (visits.row[:-1] == visits.row[1:]) & (visits.hierarchy[:-1] == visits.hierarchy[1:])
        first = np.flatnonzero(np.concatenate([np.ones(min(len(visits), 1), dtype=np.bool_), ~same]))
        many = np.diff(np.append(first, len(visits)))
        kept = np.repeat(many < NEIGHBOURS, many)
        kept[first] = True
        for at, count in zip(*(each[many >= NEIGHBOURS].tolist() for each in (first, many)), strict=True):
            table = int(self._snapshot.tables.pa[visits.row[at]])
            self.again.append(Again(int(visits.va[at]) + size, count - 1, size, level + 1, table))
        return visits[kept]

    def _stretches(self, visits: _Visits, raw: Words, level: int) -> Fragments:
        """Find the stretches in the tables of a chunk: raw has one row for each visit."""
        if not self._window.whole or self._pa_range is not None:
            return self._of_many(visits, raw, level)
        whole = are_whole(raw, level, self._regime)
        if not whole.any():
            return self._of_many(visits, raw, level)
        one = self._fragments(visits[whole], raw[whole, 0], np.zeros(1, dtype=np.intp), raw.shape[1], level)
        if whole.all():
            return one
        return _in_order([one, self._of_many(visits[~whole], raw[~whole], level)])

    def _of_many(self, visits: _Visits, raw: Words, level: int) -> Fragments:
        """Find the stretches in tables that may have several."""
        regime = self._regime
        leaf = are_leaves(raw, level, regime)
        self._restrict(leaf, visits, raw, level)
        alike = self._alike(visits, raw, leaf, level)
        low = mask(49 if regime.ds else 47, regime.shift(level))
        joined = (raw[:, 1:] - raw[:, :-1]) == np.uint64(regime.entry_size(level))
        joined &= leaf[:, 1:] & leaf[:, :-1]
        joined &= (raw[:, 1:] & np.uint64(low)) != 0
        first, last = leaf.copy(), leaf
        first[:, 1:] &= ~joined
        last[:, :-1] &= ~joined
        row, slot = np.nonzero(first)
        count = np.nonzero(last)[1] - slot + 1
        found = self._fragments(visits[row], raw[row, slot], slot, count, level)
        return _in_order([found, *alike])

    def _alike(self, visits: _Visits, raw: Words, leaf: NDArray[np.bool_], level: int) -> list[Fragments]:
        """Take NEIGHBOURS that are one page out of the leaves; return them as stretches."""
        if self._repeats is None or level < LEVEL_LAST:
            return []
        same = leaf[:, 1:] & leaf[:, :-1] & (raw[:, 1:] == raw[:, :-1])
        rows = np.flatnonzero(np.count_nonzero(same, axis=1) >= NEIGHBOURS - 1)
        first, last = leaf[rows], leaf[rows]
        first[:, 1:] &= ~same[rows]
        last[:, :-1] &= ~same[rows]
        row, slot = np.nonzero(first)
        count = np.nonzero(last)[1] - slot + 1
        many = count >= NEIGHBOURS
        row, slot, count = rows[row[many]], slot[many], count[many]
        for at, begin, length in zip(row.tolist(), slot.tolist(), count.tolist(), strict=True):
            leaf[at, begin : begin + length] = False
        found = self._fragments(visits[row], raw[row, slot], slot, count, level)
        return [replace(found, again=~found.again)] if len(found) else []

    def _fragments(
        self, visits: _Visits, raw: Words, slot: Rows, count: NDArray[np.intp] | int, level: int
    ) -> Fragments:
        """Make stretches, each in a table of its own visit, of so many leaves from a slot on."""
        return Fragments(
            level=level,
            va=entry_addresses(visits.va, slot, level, self._regime),
            pa=output_addresses(raw, level, self._regime),
            count=np.broadcast_to(count, raw.shape).astype(np.int64),
            raw=raw,
            hierarchy=visits.hierarchy,
            again=np.zeros(raw.shape, dtype=np.bool_),
        )

    def _with_repeated(self, found: Fragments, alike: _Visits) -> Fragments:
        """Add the stretches of one page, as far as they are wanted; in order of va."""
        if self._repeats is None or found.level < LEVEL_LAST or not len(alike):
            return found
        regime, window = self._regime, self._window
        page = np.uint64(regime.granule)
        last = alike.va + alike.pages.astype(np.uint64) * page - np.uint64(1)
        first = np.maximum(alike.va, np.uint64(window.low & ~(regime.granule - 1)))
        last = np.minimum(last, np.uint64(window.high))
        raw = self._repeats.raw[alike.row]
        pa = output_addresses(raw, LEVEL_LAST, regime)
        kept = first <= last
        if self._pa_range is not None:
            low, high = (np.uint64(end) for end in self._pa_range)
            kept &= (pa <= high) & (pa + page - np.uint64(1) >= low)
        more = Fragments(
            level=LEVEL_LAST,
            va=first,
            pa=pa,
            count=((last - first) // page).astype(np.int64) + 1,
            raw=raw,
            hierarchy=alike.hierarchy,
            again=np.ones(len(alike), dtype=np.bool_),
        )[kept]
        return _in_order([found, more])

    def _restrict(self, leaf: NDArray[np.bool_], visits: _Visits, raw: Words, level: int) -> None:
        """Clear the flags of leaves outside the wanted virtual and physical addresses."""
        regime, window = self._regime, self._window
        size = regime.entry_size(level)
        if not window.whole:
            for at in np.nonzero(~window.covers(visits.va, regime.table_span(level)))[0].tolist():
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
        links = self._index.links(raw, visits.va, level, regime, self._window)
        self.missing += int(np.count_nonzero(links.child < 0))
        links = links[links.child >= 0]
        hierarchy = visits.hierarchy[links.row] | _handed_down(links.raw, regime)
        found = _Visits(links.child, links.va, hierarchy, np.zeros(len(links), dtype=np.int64))
        return found if self._repeats is None else self._repeats.folded(found, level)


def _in_order(parts: list[Fragments]) -> Fragments:
    """Join stretches in order of va."""
    if len(parts) == 1:
        return parts[0]
    joined = Fragments.joined(parts)
    return joined[np.argsort(joined.va, kind="stable")]


def _handed_down(raw: Words, regime: Regime) -> NDArray[np.uint8]:
    """Return bits [62:59] of table descriptors; 0 if they have no effect."""
    bits = (raw >> np.uint64(HIERARCHY_SHIFT)) & (np.uint64(0) if regime.hpd else HIERARCHY_MASK)
    return bits.astype(np.uint8)


class _Repeats:
    """Hold the tables all of whose entries are one page, or one table of which the same is true.

    KASAN maps the shadow of all that has none of its own so (mm/kasan/init.c): terabytes, a page each.
    """

    def __init__(self, snapshot: Snapshot, index: TableIndex) -> None:
        self._regime = snapshot.regime
        tables, regime = snapshot.tables, snapshot.regime
        self.raw = np.zeros(len(tables), dtype=np.uint64)
        """The one page's descriptor; 0 for all other tables."""
        self.hierarchy = np.zeros(len(tables), dtype=np.uint8)
        """Bits [62:59] of the table descriptors below the table."""
        alike = (tables.raw[:, 0] != 0) & (tables.raw[:, 0] == tables.raw[:, 1])
        for level in range(LEVEL_LAST, regime.start_level, -1):
            rows = index.readable(level)
            rows = rows[alike[rows]]
            words = tables.raw[rows]
            rows = rows[(words == words[:, :1]).all(axis=1)]
            first = tables.raw[rows, 0]
            if level == LEVEL_LAST:
                self.raw[rows] = np.where(are_leaves(first, level, regime), first, np.uint64(0))
                continue
            good = are_tables(first, level)
            rows, first = rows[good], first[good]
            child = index.find(level + 1, next_tables(first, regime))
            rows, first, child = rows[child >= 0], first[child >= 0], child[child >= 0]
            self.raw[rows] = self.raw[child]
            self.hierarchy[rows] = self.hierarchy[child] | _handed_down(first, regime)

    def folded(self, visits: _Visits, above: int) -> _Visits:
        """Return tables that entries at level `above` lead to, neighbours that repeat one page as one."""
        alike = self.raw[visits.row] != 0
        if not alike.any():
            return visits
        size = self._regime.entry_size(above)
        same = (visits.va[:-1] + np.uint64(size) == visits.va[1:]) & alike[1:]
        same &= (visits.row[:-1] == visits.row[1:]) & (visits.hierarchy[:-1] == visits.hierarchy[1:])
        first = np.flatnonzero(np.concatenate([[True], ~same]))
        many = np.diff(np.append(first, len(visits)))
        pages = np.where(alike[first], many * (size // self._regime.granule), 0)
        hierarchy = visits.hierarchy[first] | np.where(alike[first], self.hierarchy[visits.row[first]], 0)
        return _Visits(visits.row[first], visits.va[first], hierarchy.astype(np.uint8), pages)
