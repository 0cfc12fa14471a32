"""The one interface to guest-physical memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr


@dataclass(frozen=True)
class RamBlock:
    """Describe a range of guest-physical addresses backed by RAM (or ROM that holds code and data)."""

    start: PhysAddr
    """First address."""
    size: int
    """Length in bytes."""
    name: str = ""
    """QEMU's name of the memory region (`info mtree -f`)."""
    writable: bool = True
    """False for ROM and flash; flash reads as a device does while a firmware programs it."""

    @property
    def end(self) -> int:
        """The first address behind the block."""
        return self.start + self.size

    def contains(self, pa: int, length: int = 1) -> bool:
        """Tell whether the whole range lies in this block."""
        return self.start <= pa and pa + length <= self.end


class PhysicalMemory(Protocol):
    """Read guest-physical memory. Implementations: gdbstub, QEMU's own RAM, dump file, snapshot, test."""

    @property
    def label(self) -> str:
        """Name the way the bytes come, for `status` and for snapshots."""
        ...

    def read(self, pa: int, length: int) -> bytes:
        """Return exactly `length` bytes at `pa`.

        Raises MemoryReadError if any byte of the range is not RAM, TargetError if the link failed.
        """
        ...

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables of `size` bytes each, in as few round trips as possible.

        `addresses` has shape (n,), sorted and unique. Returns `(raw, readable)`: raw has shape
        (n, size // 8), little-endian descriptors as uint64, zeros in the rows that could not be
        read; readable has shape (n,) and says which rows are true. An address outside RAM is an
        unreadable row, never zeros that claim to be read. Raises TargetError if the link failed.
        """
        ...
