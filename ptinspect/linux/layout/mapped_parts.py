"""What lay in a range of addresses: every named part of it that was mapped, stacks with their tasks."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.diff import Change
from ptinspect.analysis.expand import Again, Expansion, Fragments
from ptinspect.arch.levels import size_text
from ptinspect.dataclass import dataclass
from ptinspect.linux.layout.choice import layout_of, region_namer
from ptinspect.memory.ranges import Ranges
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.window import Window

SHOWN = 6
"""Names, and tasks, that a sentence lists before it counts the rest."""
MAX_PARTS = 1 << 20
"""Pieces of a table that many entries lead to which are followed, each time that it is reached."""
STACK = re.compile(r"(.+ stack) \((.*)\)", re.DOTALL)
"""Names of stacks, as linux/running/guest_layout.py makes them: what it is, and whose."""


def took(change: Change) -> bool:
    """Tell whether a change takes away what was mapped, or leads elsewhere."""
    return bool(change.leaves_before) and not {"lost", "retargeted", "kind"}.isdisjoint(change.kinds)


@dataclass(frozen=True)
class Part:
    """A named part of a range, and how much of it was mapped."""

    name: str
    """What Linux calls it; `task stack (PID NAME)` and the like for stacks."""
    size: int
    """Bytes that were mapped."""


class Contents:
    """What some ranges of a snapshot hold."""

    @classmethod
    def of_changes(cls, snapshot: Snapshot, changes: Iterable[Change]) -> Contents:
        """Look at what changes took away, or lead elsewhere, of the earlier snapshot."""
        return cls(snapshot, ((c.va_start, c.va_end) for c in changes if took(c)))

    def __init__(self, snapshot: Snapshot, ranges: Iterable[tuple[int, int]]) -> None:
        """Look at what is mapped between the lowest and the highest of `ranges` (both ends included)."""
        self._layout = layout_of(snapshot)
        self._name = region_namer(self._layout, snapshot.regime)
        self._starts: list[int] = []
        self._ends: list[int] = []
        found = list(ranges)
        if found:
            low, high = min(first for first, _ in found), max(last for _, last in found)
            self._starts, self._ends = _mapped(snapshot, Window.of((low, high), snapshot.regime))

    def of(self, first: int, last: int) -> tuple[Part, ...]:
        """Return the parts of a range (both ends included) in order of address, each name once."""
        cuts = [first, *self._layout.between(first, last), last + 1]
        sizes: dict[str, int] = {}
        for start, end in pairwise(cuts):
            size = self._size(start, end)
            if size:
                name = self._name(start)
                sizes[name] = sizes.get(name, 0) + size
        return tuple(Part(name, size) for name, size in sizes.items())

    def _size(self, start: int, end: int) -> int:
        """Return how many bytes of a range are mapped."""
        size = 0
        at = bisect_left(self._ends, start + 1)
        while at < len(self._starts) and self._starts[at] < end:
            size += min(self._ends[at], end) - max(self._starts[at], start)
            at += 1
        return size


def _mapped(snapshot: Snapshot, window: Window) -> tuple[list[int], list[int]]:
    """Return first addresses and first addresses past the end of what is mapped, neighbours joined."""
    seen = window.common(Window.of(snapshot.va_range, snapshot.regime))
    starts: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    spans: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]

    def collect(part: Fragments) -> bool:
        starts.append(part.va)
        spans.append(part.count.astype(np.uint64) * np.uint64(snapshot.regime.entry_size(part.level)))
        return True

    expansion = Expansion(snapshot, seen, repeated=True)
    if seen.low <= seen.high:
        expansion.run(collect)
    found = Ranges.of(np.concatenate(starts), np.concatenate(spans))
    for again in sorted(expansion.again, key=lambda each: each.span):  # what lies in others first
        found = _with_again(found, again)
    return found.start.tolist(), [last + 1 for last in found.last.tolist()]


def _with_again(found: Ranges, again: Again) -> Ranges:
    """Add what the other ways to a table map, as the first of them does."""
    inside = found.common(Ranges.of_pairs([(again.va - again.span, again.va)]))
    size = inside.last - inside.start + np.uint64(1)
    if size.tolist() == [again.span]:
        start, more = np.array([again.va], dtype=np.uint64), size * np.uint64(again.times)
    else:
        times = min(again.times, MAX_PARTS // max(len(inside), 1))
        steps = np.arange(1, times + 1, dtype=np.uint64) * np.uint64(again.span)
        start, more = np.add.outer(steps, inside.start).reshape(-1), np.tile(size, times)
    spans = found.last - found.start + np.uint64(1)
    return Ranges.of(np.concatenate([found.start, start]), np.concatenate([spans, more]))


def in_words(parts: Sequence[Part]) -> str:
    """Return the parts in a sentence: stacks of one kind together, the first of each by their tasks."""
    others: list[str] = []
    stacks: dict[str, list[str]] = {}
    for part in parts:
        found = STACK.fullmatch(part.name)
        if found is None:
            others.append(f"{part.name} {size_text(part.size)}")
        else:
            stacks.setdefault(found[1], []).append(found[2])
    words = [_listed(others)] if others else []
    for kind, owners in stacks.items():
        many = f"{kind} of" if len(owners) == 1 else f"{len(owners)} {kind}s:"
        words.append(f"{many} {_listed(owners)}")
    return "; ".join(words)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
