"""All that a snapshot maps, as stretches with their decoded attributes, and what two of them lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.fragments import Expansion
from ptinspect.analysis.map import Collector, Joined, Kind, Kinds, MapFilter
from ptinspect.tables.model import Snapshot
from ptinspect.tables.window import Window

Flags = NDArray[np.bool_]
Range = tuple[int, int]
"""First address, and the first past the end."""


@dataclass(frozen=True, eq=False)
class Ranges:
    """Hold ranges that neither overlap nor touch, ascending; arrays of one length."""

    start: NDArray[np.uint64]
    last: NDArray[np.uint64]
    """Last address of each."""

    def __len__(self) -> int:
        return int(self.start.shape[0])

    @classmethod
    def of(cls, start: NDArray[np.uint64], span: NDArray[np.uint64]) -> Ranges:
        """Join ranges in any order that overlap or touch; `span` is their size in bytes."""
        order = np.argsort(start, kind="stable")
        start = start[order]
        last = np.maximum.accumulate(start + (span[order] - np.uint64(1)))
        begins = np.ones(start.shape[0], dtype=np.bool_)
        begins[1:] = start[1:] > last[:-1]
        begins[1:] &= start[1:] - last[:-1] > np.uint64(1)
        ends = np.roll(begins, -1)
        return cls(start[begins], last[ends])

    @classmethod
    def of_pairs(cls, pairs: Sequence[Range]) -> Ranges:
        """Join pairs of a first address and the first past the end."""
        start = np.array([low for low, _ in pairs], dtype=np.uint64)
        return cls.of(start, np.array([high - low for low, high in pairs], dtype=np.uint64))

    def common(self, other: Ranges) -> Ranges:
        """Return what lies in both."""
        first = np.searchsorted(other.last, self.start, side="left")
        count = np.maximum(np.searchsorted(other.start, self.last, side="right") - first, 0)
        mine = np.repeat(np.arange(len(self)), count)
        theirs = np.arange(mine.shape[0]) - np.repeat(np.cumsum(count) - count, count) + first[mine]
        start = np.maximum(self.start[mine], other.start[theirs])
        last = np.minimum(self.last[mine], other.last[theirs])
        return Ranges.of(start, last - start + np.uint64(1))

    def pairs(self) -> list[Range]:
        """Return them one by one."""
        return [
            (start, last + 1) for start, last in zip(self.start.tolist(), self.last.tolist(), strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Mappings:
    """Hold the stretches of a snapshot in order of va, a shared table once for each set of inherited bits."""

    joined: Joined
    kinds: Sequence[Kind]
    """What `joined.kind` stands for."""
    truncated: str
    """Why some are left out; empty if none are."""

    def __getitem__(self, which: Flags) -> Mappings:
        return Mappings(self.joined[np.flatnonzero(which)], self.kinds, self.truncated)

    def __len__(self) -> int:
        return len(self.joined)

    def of_kind(self, wanted: Callable[[Kind], bool]) -> Mappings:
        """Return those of the kinds that are wanted."""
        chosen = np.array([wanted(kind) for kind in self.kinds], dtype=np.bool_)
        return self[chosen[self.joined.kind]] if len(self) else self

    def within(self, ranges: Sequence[Range]) -> Flags:
        """Tell which begin in one of some ranges of virtual addresses."""
        found = np.zeros(len(self), dtype=np.bool_)
        for start, end in ranges:
            found |= (self.joined.va >= np.uint64(start)) & (self.joined.va <= np.uint64(end - 1))
        return found

    @property
    def physical(self) -> Ranges:
        """The physical addresses that they lead to."""
        return Ranges.of(self.joined.pa, self.joined.span)

    @property
    def virtual(self) -> Ranges:
        """The virtual addresses that they map."""
        return Ranges.of(self.joined.va, self.joined.span)

    def leading_to(self, pa: int) -> int:
        """Return the lowest virtual address that leads to a physical one, which one of them must."""
        pas, spans = self.joined.pa, self.joined.span
        at = int(np.flatnonzero((pas <= np.uint64(pa)) & (np.uint64(pa) - pas < spans))[0])
        return int(self.joined.va[at]) + pa - int(pas[at])


def mappings(snapshot: Snapshot) -> Mappings:
    """Return all that a snapshot maps; what EL0 may do is told as if TCR_EL1.E0PD did not keep it out."""
    regime = replace(snapshot.regime, e0pd=False)
    kinds = Kinds(regime, MapFilter())
    collector = Collector(kinds, regime, MapFilter(max_runs=1 << 62))
    expansion = Expansion(snapshot, Window.of(snapshot.va_range, regime), once=True)
    expansion.run(collector.add)
    return Mappings(collector.result(), kinds.decoded, expansion.truncated)
