"""Guest-physical memory held in this process: a byte table for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock

CHUNK_BITS = 21
"""log2 of the unit of storage; a chunk is made when it is first written."""
CHUNK = 1 << CHUNK_BITS


class SparseMemory:
    """Hold bytes at guest-physical addresses; RAM that was never written reads as zeros."""

    def __init__(self, ram: Sequence[RamBlock], label: str = "byte table") -> None:
        self.ram = tuple(ram)
        self.reads = 0
        """How many times `read` or `read_tables` was called."""
        self._label = label
        self._ranges = Ranges.of_blocks(ram)
        self._chunks: dict[int, NDArray[np.uint8]] = {}

    @property
    def label(self) -> str:
        """Name the way the bytes come."""
        return self._label

    def write(self, pa: int, data: bytes) -> None:
        """Store `data` at `pa`. Raises MemoryReadError if a byte of it lies outside RAM."""
        if not data:
            return
        self._check(pa, len(data))
        source = np.frombuffer(data, dtype=np.uint8)
        done = 0
        for number, start, stop in _pieces(pa, len(data)):
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = self._chunks[number] = np.zeros(CHUNK, dtype=np.uint8)
            chunk[start:stop] = source[done : done + stop - start]
            done += stop - start

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError if a byte of it lies outside RAM."""
        self.reads += 1
        if length == 0:
            return b""
        self._check(pa, length)
        parts = []
        for number, start, stop in _pieces(pa, length):
            chunk = self._chunks.get(number)
            parts.append(bytes(stop - start) if chunk is None else chunk[start:stop].tobytes())
        return b"".join(parts)

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. Tables outside RAM are rows that are not readable."""
        self.reads += 1
        readable = self._ranges.contains_each(addresses, size)
        raw = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        number = addresses >> np.uint64(CHUNK_BITS)
        offset = addresses & np.uint64(CHUNK - 1)
        aligned = readable & (offset % np.uint64(size) == 0)
        for chunk_number in np.unique(number[aligned]).tolist():
            chunk = self._chunks.get(chunk_number)
            if chunk is not None:
                rows = np.nonzero(aligned & (number == chunk_number))[0]
                raw[rows] = chunk.view("<u8").reshape(-1, size // 8)[offset[rows] // np.uint64(size)]
        for row in np.nonzero(readable & ~aligned)[0].tolist():
            raw[row] = np.frombuffer(self.read(int(addresses[row]), size), dtype="<u8")
        return raw, readable

    def _check(self, pa: int, length: int) -> None:
        if not self._ranges.contains(pa, length):
            raise MemoryReadError(pa, length, "not in RAM")


def _pieces(pa: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Split a range at chunk boundaries: (chunk number, first offset, offset behind the last)."""
    while length:
        start = pa & (CHUNK - 1)
        stop = min(start + length, CHUNK)
        yield pa >> CHUNK_BITS, start, stop
        pa += stop - start
        length -= stop - start
