"""Find the virtual addresses that lead to a physical address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import levels_of
from ptinspect.paging.bounded import Bounded
from ptinspect.snapshot.classify import are_leaves, are_tables, next_tables, output_addresses
from ptinspect.snapshot.index import TableIndex
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window

MAX_HITS = 1000
CHUNK_WORDS = 1 << 17

Rows = NDArray[np.intp]
Kind = Literal["leaf", "table"]


@dataclass(frozen=True)
class Hit:
    """Show one way to a physical address."""

    kind: Kind
    """`leaf`: the address is mapped at `va`; `table`: it is a descriptor, which translates from `va` on."""
    va: VirtAddr
    """The virtual address that leads there, or the first one that the descriptor translates."""
    level: int
    """Level of the table that holds the descriptor."""
    table_pa: PhysAddr
    """Address of that table."""
    index: int
    """Slot of the descriptor in it."""
    descriptor_pa: PhysAddr
    """Address of the descriptor."""
    raw: int
    """The descriptor."""
    size: int
    """Bytes that the descriptor translates."""


def find_pa(snapshot: Snapshot, pa: int, *, max_hits: int = MAX_HITS) -> Bounded[Hit]:
    """List every virtual address that maps `pa`, and every captured table that it lies in.

    Leaves come first, each kind in order of va. A table that is reached at several addresses gives
    a hit for each. `truncated` of the result says so if there are more than `max_hits`.
    """
    if not 0 <= pa < 1 << 64:
        return Bounded()
    search = _Search(snapshot, pa, max_hits)
    leaves, tables = search.leaves(), search.tables()
    found = sorted(leaves, key=lambda hit: hit.va) + sorted(tables, key=lambda hit: hit.va)
    reasons = [snapshot.truncated]
    if search.more or len(found) > max_hits:
        reasons.append(f"more than {max_hits} ways lead there")
    return Bounded(found[:max_hits], "; ".join(reason for reason in reasons if reason))


class _Search:
    """Look for one address in one snapshot."""

    def __init__(self, snapshot: Snapshot, pa: int, max_hits: int) -> None:
        self._snapshot = snapshot
        self._regime = snapshot.regime
        self._tables = snapshot.tables
        self._pa = pa
        self._most = max_hits + 1
        self._index = TableIndex(snapshot.tables)
        self._window = Window.of(snapshot.va_range, snapshot.regime)
        self._links: dict[int, tuple[Rows, Rows, Rows]] = {}
        self.more = False

    def leaves(self) -> list[Hit]:
        """Return the leaves that map the address."""
        found: list[Hit] = []
        for level in levels_of(self._regime):
            size = self._regime.entry_size(level)
            target = np.uint64(self._pa & ~(size - 1) & (1 << 64) - 1)
            rows = self._index.rows(level)
            step = max(CHUNK_WORDS // self._tables.raw.shape[1], 1)
            for start in range(rows.start, rows.stop, step):
                raw = self._tables.raw[start : min(start + step, rows.stop)]
                match = output_addresses(raw, level, self._regime) == target
                match &= are_leaves(raw, level, self._regime)
                row, slot = np.nonzero(match)
                offset = slot * size + (self._pa & (size - 1))
                found += self._hits("leaf", level, row=row + start, slot=slot, offset=offset)
                if len(found) > self._most:
                    self.more = True
                    return found
        return found

    def tables(self) -> list[Hit]:
        """Return the descriptors that lie at the address."""
        found: list[Hit] = []
        regime = self._regime
        for level in levels_of(regime):
            rows = self._index.rows(level)
            size = regime.entries(level) * 8
            start = self._tables.pa[rows]
            inside = (start <= np.uint64(self._pa)) & (np.uint64(self._pa) - start < np.uint64(size))
            inside &= self._tables.readable[rows]
            row = np.nonzero(inside)[0] + rows.start
            slot = ((np.uint64(self._pa) - self._tables.pa[row]) >> np.uint64(3)).astype(np.intp)
            found += self._hits("table", level, row=row, slot=slot, offset=slot << regime.shift(level))
        return found

    def _hits(
        self, kind: Literal["leaf", "table"], level: int, row: Rows, slot: Rows, offset: Rows
    ) -> list[Hit]:
        """Make a hit for each address at which these slots are reached."""
        which, va = self._reach(row[: self._most], offset[: self._most], level)
        self.more |= row.shape[0] > self._most
        size = self._regime.entry_size(level)
        first = va & ~np.uint64(size - 1)
        kept = self._window.touches(first, size)
        which, va = which[kept], va[kept]
        found = []
        for i, address in zip(which.tolist(), va.tolist(), strict=True):
            table, index = int(self._tables.pa[row[i]]), int(slot[i])
            raw = int(self._tables.raw[row[i], index])
            where = PhysAddr(table + 8 * index)
            found.append(Hit(kind, VirtAddr(address), level, PhysAddr(table), index, where, raw, size))
        return found

    def _reach(self, row: Rows, offset: Rows, level: int) -> tuple[Rows, NDArray[np.uint64]]:
        """Follow tables back to the root; returns, for each way, which one it was and the address."""
        which = np.arange(row.shape[0])
        place = offset.astype(np.uint64)
        for above in range(level - 1, self._regime.start_level - 1, -1):
            parent, slot, child = self._parents(above)
            first = np.searchsorted(child, row, side="left")
            count = np.searchsorted(child, row, side="right") - first
            way = np.repeat(np.arange(row.shape[0]), count)
            link = np.arange(way.shape[0]) - np.repeat(np.cumsum(count) - count, count) + first[way]
            if link.shape[0] > self._most:
                self.more = True
                way, link = way[: self._most], link[: self._most]
            shift = np.uint64(self._regime.shift(above))
            place = place[way] + (slot[link].astype(np.uint64) << shift)
            row, which = parent[link], which[way]
        return which, place + np.uint64(int(self._regime.va_min))

    def _parents(self, level: int) -> tuple[Rows, Rows, Rows]:
        """Return all table descriptors of one level as (row, slot, row they point to), by the last."""
        if level not in self._links:
            rows = self._index.rows(level)
            row, slot = np.nonzero(are_tables(self._tables.raw[rows], level))
            row = row + rows.start
            child = self._index.find(level + 1, next_tables(self._tables.raw[row, slot], self._regime))
            order = np.argsort(child, kind="stable")
            order = order[child[order] >= 0]
            self._links[level] = (row[order], slot[order], child[order])
        return self._links[level]
