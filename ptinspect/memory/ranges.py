"""Sets of address ranges: joined, intersected, and queried for one address or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.dataclass import dataclass
from ptinspect.memory.source import RamBlock

FEW = 4
"""Ranges that addresses are compared with one by one."""
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
        """Join pairs of a first address and the first past the end; empty ones are left out."""
        pairs = [(low, high) for low, high in pairs if high > low]
        start = np.array([low for low, _ in pairs], dtype=np.uint64)
        return cls.of(start, np.array([high - low for low, high in pairs], dtype=np.uint64))

    @classmethod
    def of_blocks(cls, blocks: Iterable[RamBlock]) -> Ranges:
        """Join RAM blocks."""
        return cls.of_pairs([(block.start, block.end) for block in blocks])

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

    def contains(self, address: int, length: int = 1) -> bool:
        """Tell whether every byte of `length` bytes at `address` lies in the ranges; False if length < 1."""
        if address < 0 or length < 1 or address + length > 1 << 64:
            return False
        slot = int(np.searchsorted(self.start, np.uint64(address), side="right")) - 1
        return slot >= 0 and address + length - 1 <= int(self.last[slot])

    def contains_each(self, addresses: NDArray[np.uint64], length: int) -> NDArray[np.bool_]:
        """Tell for each address whether the `length` bytes there lie in the ranges; same shape."""
        inside: NDArray[np.bool_]
        if len(self) <= FEW:  # comparing is faster than searching
            inside = np.zeros(addresses.shape, dtype=np.bool_)
            for start, last in zip(self.start.tolist(), self.last.tolist(), strict=True):
                if last - start >= length - 1:
                    inside |= addresses - np.uint64(start) <= np.uint64(last - start - (length - 1))
            return inside
        slot = np.searchsorted(self.start, addresses, side="right") - 1
        ends = addresses + np.uint64(length - 1)
        inside = (slot >= 0) & (ends >= addresses)
        return inside & (ends <= self.last[np.maximum(slot, 0)])
