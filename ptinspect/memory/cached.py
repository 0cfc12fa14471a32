"""Guest-physical memory that remembers what was read while the guest stands still."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError
from ptinspect.memory.source import PhysicalMemory

PAGE = 4096
"""Unit of what is remembered: reads are widened to it where the memory allows."""
MAX_PAGES = 4096
"""What is remembered at most, 16 MiB; when it is full, all is forgotten."""


class CachedMemory:
    """Serve repeated reads of the same page from memory, until the stop token changes."""

    def __init__(self, memory: PhysicalMemory, token: Callable[[], object]) -> None:
        """Wrap `memory`; `token` returns a value that differs after the guest has run."""
        self._memory = memory
        self._token = token
        self._seen = token()
        self._pages: dict[int, bytes] = {}

    @property
    def label(self) -> str:
        """Name the memory that is read."""
        return self._memory.label

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`; errors are those of the memory that is read."""
        token = self._token()
        if token != self._seen:
            self._pages.clear()
            self._seen = token
        first, last = pa // PAGE, (pa + max(length, 1) - 1) // PAGE
        if last - first > 1:
            return self._memory.read(pa, length)
        parts = [self._page(number) for number in range(first, last + 1)]
        if None in parts:
            return self._memory.read(pa, length)
        start = pa - first * PAGE
        return b"".join(part for part in parts if part is not None)[start : start + length]

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables without remembering them: the caller keeps them."""
        return self._memory.read_tables(addresses, size)

    def _page(self, number: int) -> bytes | None:
        """Return one page, or None if it cannot be read as a whole."""
        found = self._pages.get(number)
        if found is None:
            try:
                found = self._memory.read(number * PAGE, PAGE)
            except MemoryReadError:
                return None
            if len(self._pages) >= MAX_PAGES:
                self._pages.clear()
            self._pages[number] = found
        return found
