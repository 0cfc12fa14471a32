"""Find the virtual addresses that lead to a physical address."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.map import Bounded
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import levels_of
from ptinspect.dataclass import dataclass
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import Links, TableIndex, parts, take_rows
from ptinspect.tables.kinds import are_leaves, next_tables, output_addresses
from ptinspect.tables.window import Window

MAX_HITS = 1000

Rows = NDArray[np.intp]
Kind = Literal["leaf", "table"]
Slots = tuple[Rows, Rows]
"""Entries of tables of one level: row and slot of each."""


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
    index: int
    """Slot of the descriptor in it."""
    descriptor_pa: PhysAddr
    raw: int
    size: int
    """Bytes that the descriptor translates."""


def find_pa(snapshot: Snapshot, pa: int, *, max_hits: int = MAX_HITS) -> Bounded[Hit]:
    """List every virtual address that maps `pa`, and every captured table that it lies in.

    Leaves come first, each kind in order of va. A table that is reached at several addresses gives
    a hit for each. `truncated` of the result tells if there are more than `max_hits`, of which the
    first are listed.
    """
    if not 0 <= pa < 1 << 64:
        return Bounded()
    search = _Search(snapshot, pa)
    found = list(islice(search.leaves(), max_hits + 1))
    found += islice(search.tables(), max_hits + 1 - len(found))
    reasons = [snapshot.truncated]
    if len(found) > max_hits:
        reasons.append(f"more than {max_hits} ways lead there")
    return Bounded(found[:max_hits], "; ".join(reason for reason in reasons if reason))


class _Search:
    """Look for one address in one snapshot."""

    def __init__(self, snapshot: Snapshot, pa: int) -> None:
        self._regime = snapshot.regime
        self._tables = snapshot.tables
        self._pa = pa
        self._index = TableIndex(snapshot.tables)
        self._window = Window.of(snapshot.va_range, snapshot.regime)
        self._known: dict[int, Links] = {}

    def leaves(self) -> Iterator[Hit]:
        """Yield the leaves that map the address, in order of va."""
        found: dict[int, Slots] = {}
        for level in levels_of(self._regime):
            size = self._regime.entry_size(level)
            target = np.uint64(self._pa & ~(size - 1) & (1 << 64) - 1)
            rows = self._index.numbers(level)
            none = np.zeros(0, dtype=np.intp)
            hits = [(none, none)]
            for part in parts(len(rows), self._tables):
                raw = take_rows(self._tables.raw, rows[part])
                match = output_addresses(raw, level, self._regime) == target
                match &= are_leaves(raw, level, self._regime)
                row, slot = np.nonzero(match)
                hits.append((rows[part][row], slot))
            row, slot = map(np.concatenate, zip(*hits, strict=True))
            found[level] = row, slot
        return self._hits("leaf", found)

    def tables(self) -> Iterator[Hit]:
        """Yield the descriptors that lie at the address, in order of va."""
        found: dict[int, Slots] = {}
        for level in levels_of(self._regime):
            row = self._index.readable(level)
            offset = np.uint64(self._pa) - self._tables.pa[row]  # of a table above it: wraps, and is large
            inside = offset < np.uint64(self._regime.entries(level) * 8)
            found[level] = row[inside], (offset[inside] >> np.uint64(3)).astype(np.intp)
        return self._hits("table", found)

    def _hits(self, kind: Kind, found: dict[int, Slots]) -> Iterator[Hit]:
        """Yield a hit for each address at which these entries are reached, going down to them only."""
        ways: dict[int, tuple[Rows, Rows, NDArray[np.bool_]]] = {}
        below = np.zeros(0, dtype=np.intp)
        for level in reversed(levels_of(self._regime)):
            rows = self._index.numbers(level)
            links = self._links(level, rows)
            links = links[np.isin(links.child, below)]
            row = np.concatenate([found[level][0], rows[links.row]])
            slots = np.concatenate([found[level][1], links.slot])
            target = np.arange(row.shape[0]) < found[level][0].shape[0]
            order = np.lexsort((~target, slots, row))
            ways[level] = row[order], slots[order], target[order]
            below = np.unique(row)
        yield from self._below(kind, ways, 0, self._regime.start_level, int(self._regime.va_min))

    def _below(
        self,
        kind: Kind,
        ways: dict[int, tuple[Rows, Rows, NDArray[np.bool_]]],
        row: int,
        level: int,
        va: int,
    ) -> Iterator[Hit]:
        """Yield the hits in a table that is reached at `va`, and in those below it."""
        size = self._regime.entry_size(level)
        rows, slots, target = ways[level]
        first, last = np.searchsorted(rows, row, side="left"), np.searchsorted(rows, row, side="right")
        for slot, hit in zip(slots[first:last].tolist(), target[first:last].tolist(), strict=True):
            here = va + slot * size
            if here > self._window.high or here + size - 1 < self._window.low:
                continue
            table, raw = int(self._tables.pa[row]), int(self._tables.raw[row, slot])
            if hit:
                at = here + (self._pa & (size - 1)) if kind == "leaf" else here
                where = PhysAddr(table + 8 * slot)
                yield Hit(kind, VirtAddr(at), level, PhysAddr(table), slot, where, raw, size)
            else:
                next_table = next_tables(np.array([raw], dtype=np.uint64), self._regime)
                child = int(self._index.find(level + 1, next_table)[0])
                yield from self._below(kind, ways, child, level + 1, here)

    def _links(self, level: int, rows: Rows) -> Links:
        """Return all table descriptors of one level, which both kinds of hits are searched for."""
        if level not in self._known:
            raw = take_rows(self._tables.raw, rows)
            self._known[level] = self._index.links(raw, self._tables.va[rows], level, self._regime)
        return self._known[level]
