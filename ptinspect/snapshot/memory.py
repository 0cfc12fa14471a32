"""Guest-physical memory as far as a snapshot holds it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MemoryReadError
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex


class SnapshotMemory:
    """Read the captured tables at the addresses where they were; nothing else is there."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._tables = snapshot.tables
        self._granule = snapshot.regime.granule
        self._addresses, self._rows = TableIndex(snapshot.tables).by_address
        self._root_size = snapshot.regime.root_size

    @property
    def label(self) -> str:
        """Name the snapshot."""
        return f"snapshot {self._snapshot.name}"

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`, across tables if they are neighbours.

        Raises MemoryReadError for bytes that are not part of a captured table, or of one that could
        not be read.
        """
        parts = []
        at, left = pa, length
        while left > 0:
            row, start = self._row_at(at)
            if row is None:
                raise MemoryReadError(pa, length, f"pa:{at:#x} is not in snapshot {self._snapshot.name}")
            if not self._tables.readable[row]:
                raise MemoryReadError(pa, length, f"the table at pa:{at - start:#x} could not be read")
            count = min(left, (self._root_size if row == 0 else self._granule) - start)
            parts.append(self._bytes(row, start, count))
            at, left = at + count, left - count
        return b"".join(parts)

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. Tables that were not captured are not readable."""
        raw = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        readable = np.zeros(addresses.shape[0], dtype=np.bool_)
        whole = np.zeros(addresses.shape[0], dtype=np.bool_)
        if size == self._granule and self._addresses.size:
            slot = np.minimum(np.searchsorted(self._addresses, addresses), self._addresses.size - 1)
            whole = self._addresses[slot] == addresses
            rows = self._rows[slot[whole]]
            raw[whole] = self._tables.raw[rows]
            readable[whole] = self._tables.readable[rows]
        for i in np.nonzero(~whole)[0].tolist():
            try:
                raw[i] = np.frombuffer(self.read(int(addresses[i]), size), dtype="<u8")
                readable[i] = True
            except MemoryReadError:
                continue
        return raw, readable

    def _row_at(self, pa: int) -> tuple[int | None, int]:
        """Return the row that holds the byte at `pa`, and the byte's offset in it."""
        if 0 <= pa < 1 << 64 and self._addresses.size:
            slot = int(np.searchsorted(self._addresses, np.uint64(pa), side="right")) - 1
            start = pa - int(self._addresses[slot]) if slot >= 0 else -1
            if 0 <= start < self._granule:
                return int(self._rows[slot]), start
        start = pa - self._snapshot.root.pa
        if 0 <= start < self._root_size:
            return 0, start
        return None, 0

    def _bytes(self, row: int, start: int, count: int) -> bytes:
        """Return bytes of one row without copying the rest of it."""
        first, last = start // 8, (start + count + 7) // 8
        words = self._tables.raw[row, first:last].astype("<u8").tobytes()
        return words[start - first * 8 :][:count]
