"""The pages of a stopped guest that were read already, over a lane on which each request takes long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.memory.source import PhysicalMemory

PAGE = 4096
MOST = 16_384
"""Pages that are kept, 64 MiB; what is read beyond is passed on and forgotten."""
LARGE = 1 << 20
"""Bytes of a read that is no longer made of pages: it is a copy of memory, not a look at it."""


class StopPages:
    """Read whole pages, and each of them once a stop.

    A stop is told by its token, which changes when the guest runs and when ptinspect writes to its memory:
    nothing is kept beyond that.
    """

    def __init__(self, memory: PhysicalMemory, token: Callable[[], int]) -> None:
        self._memory, self._token = memory, token
        self._stop: tuple[int, dict[int, memoryview]] = (-1, {})

    far = True
    """See AheadMemory."""

    @property
    def label(self) -> str:
        """Name the lane."""
        return self._memory.label

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError outside RAM, TargetError."""
        first, last = pa & -PAGE, (pa + length - 1) & -PAGE
        if not 0 < length <= LARGE or not 0 <= first <= last < 1 << 64:
            return self._memory.read(pa, length)
        found = self._read(range(first, last + PAGE, PAGE))
        if first == last:
            page = found.get(first)
            return self._memory.read(pa, length) if page is None else bytes(page[pa - first :][:length])
        if len(found) <= (last - first) // PAGE:  # the RAM ends within a page
            return self._memory.read(pa, length)
        return b"".join(found[at] for at in range(first, last + PAGE, PAGE))[pa - first :][:length]

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. Small ones are looked for all over memory: none is kept."""
        if size % PAGE or (addresses.size and (addresses % np.uint64(PAGE)).any()):
            return self._memory.read_tables(addresses, size)
        parts = [(pa, range(pa, pa + size, PAGE)) for pa in addresses.tolist()]
        known = self._pages()
        missing = [n for n, (_, pages) in enumerate(parts) if not all(page in known for page in pages)]
        raw = np.zeros((len(parts), size // 8), dtype=np.uint64)
        readable = np.ones(len(parts), dtype=np.bool_)
        if missing:
            read, good = self._memory.read_tables(addresses[missing], size)
            raw[missing], readable[missing] = read, good
            self._keep(known, addresses[missing][good], read[good])
        for n in set(range(len(parts))).difference(missing):
            raw[n] = np.frombuffer(b"".join(known[page] for page in parts[n][1]), dtype="<u8")
        return raw, readable

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read what will be asked for, in one go; see AheadMemory. Raises TargetError."""
        self._read({page for pa, size in ranges for page in range(pa & -PAGE, pa + size, PAGE)})

    def _pages(self) -> dict[int, memoryview]:
        """Return the pages of this stop."""
        token = self._token()
        if self._stop[0] != token:
            self._stop = (token, {})
        return self._stop[1]

    def _read(self, pages: range | set[int]) -> dict[int, memoryview]:
        """Return those of some pages that are RAM as a whole. Raises TargetError."""
        known = self._pages()
        found = {page: known[page] for page in pages if page in known}
        if len(found) < len(pages):
            missing = np.array(sorted(set(pages).difference(found)), dtype=np.uint64)
            read, good = self._memory.read_tables(missing, PAGE)
            found |= self._keep(known, missing[good], read[good])
        return found

    @staticmethod
    def _keep(
        known: dict[int, memoryview], addresses: NDArray[np.uint64], raw: NDArray[np.uint64]
    ) -> dict[int, memoryview]:
        """Keep what was read, while there is room; return it by page."""
        data = memoryview(raw.astype("<u8", copy=False).tobytes())
        size = raw.shape[1] * 8
        pages = (pa + at for pa in addresses.tolist() for at in range(0, size, PAGE))
        found = {page: data[n * PAGE : (n + 1) * PAGE] for n, page in enumerate(pages)}
        if len(known) + len(found) <= MOST:
            known.update(found)
        return found
