"""Guest-physical memory through QEMU's gdbstub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError
from ptinspect.link.gdb.agent import Agent
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock

CHUNK = 4 << 20
"""Most bytes of one request to GDB."""


class StubMemory:
    """Read RAM by the stub's physical mode; addresses outside RAM are refused, not read as zeros."""

    def __init__(
        self, agent: Agent, ram: Sequence[RamBlock], guard: Callable[[], None] = lambda: None
    ) -> None:
        """`guard` is called before each request and raises TargetError if nothing can be read now."""
        self._agent = agent
        self._ranges = Ranges.of_blocks(ram)
        self._guard = guard
        self.ram = tuple(ram)

    @property
    def label(self) -> str:
        """Name the protocol."""
        return "gdbstub"

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError outside RAM, TargetError."""
        if length == 0:
            return b""
        self._need_ram(pa, length)
        self._guard()
        parts = (self._agent.read([(pa + at, min(CHUNK, length - at))]) for at in range(0, length, CHUNK))
        return b"".join(parts)

    def read_several(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each range (pa, bytes), in one round trip: a few pages in all.

        Raises MemoryReadError outside RAM, TargetError.
        """
        for pa, length in ranges:
            self._need_ram(pa, length)
        self._guard()
        data = memoryview(self._agent.read(ranges))
        ends = list(accumulate(length for _, length in ranges))
        return [bytes(data[end - length : end]) for end, (_, length) in zip(ends, ranges, strict=True)]

    def _need_ram(self, pa: int, length: int) -> None:
        if not self._ranges.contains(pa, length):
            raise MemoryReadError(pa, length, "not in RAM")

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. Neighbours are asked for as one range."""
        readable = self._ranges.contains_each(addresses, size)
        raw = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        rows = np.nonzero(readable)[0]
        step = max(CHUNK // size, 1)
        for start in range(0, rows.shape[0], step):
            part = rows[start : start + step]
            self._guard()
            data = self._agent.read(_join(addresses[part], size))
            raw[part] = np.frombuffer(data, dtype="<u8").reshape(-1, size // 8)
        return raw, readable


def _join(addresses: NDArray[np.uint64], size: int) -> list[tuple[int, int]]:
    """Join tables that follow one another into ranges (pa, bytes), in order."""
    breaks = np.nonzero(np.diff(addresses) != size)[0] + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [addresses.shape[0]]])
    first = addresses[starts].tolist()
    return [(pa, int(n) * size) for pa, n in zip(first, (ends - starts).tolist(), strict=True)]
