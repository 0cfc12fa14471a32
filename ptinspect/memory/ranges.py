"""Sets of address ranges, asked one address or many at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ptinspect.memory.source import RamBlock


class Ranges:
    """Hold the union of RAM blocks; blocks that touch or overlap are one range."""

    def __init__(self, blocks: Iterable[RamBlock]) -> None:
        merged: list[list[int]] = []
        for start, end in sorted((int(b.start), int(b.end)) for b in blocks if b.size > 0):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self._starts = np.array([s for s, _ in merged], dtype=np.uint64)
        self._lasts = np.array([e - 1 for _, e in merged], dtype=np.uint64)

    def contains(self, pa: int, length: int = 1) -> bool:
        """Tell whether every byte of `length` bytes at `pa` lies in the ranges; False if length < 1."""
        if pa < 0 or length < 1 or pa + length > 1 << 64:
            return False
        slot = int(np.searchsorted(self._starts, np.uint64(pa), side="right")) - 1
        return slot >= 0 and pa + length - 1 <= int(self._lasts[slot])

    def contains_each(self, addresses: NDArray[np.uint64], length: int) -> NDArray[np.bool_]:
        """Tell for each address whether the `length` bytes there lie in the ranges; shape (n,)."""
        if not self._starts.size:
            return np.zeros(addresses.shape, dtype=np.bool_)
        slot = np.searchsorted(self._starts, addresses, side="right") - 1
        last = addresses + np.uint64(length - 1)
        inside: NDArray[np.bool_] = (slot >= 0) & (last >= addresses)
        return inside & (last <= self._lasts[np.maximum(slot, 0)])
