"""The one interface to guest-physical memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError


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
        """The first address past the end."""
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
        read; readable has shape (n,) and is true for the others. An address outside RAM is an
        unreadable row, never zeros that claim to be read. Raises TargetError if the link failed.
        """
        ...


def number_at(memory: PhysicalMemory, pa: int, size: int = 8) -> int:
    """Return the bytes at an address as a number: a descriptor, a pointer. Raises as `read` does."""
    return int.from_bytes(memory.read(pa, size), "little")


class RowMemory(Protocol):
    """Physical memory that saves the copy from the order of addresses to the order of rows."""

    def read_rows(
        self, addresses: NDArray[np.uint64], size: int, out: NDArray[np.uint64], rows: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Read the table at `addresses[n]` into the first `size` bytes of `out[rows[n]]`.

        `addresses` as for `read_tables`; `out` has shape (tables, words), C order. Returns which of
        the addresses could be read, shape (n,); the rows of the others hold zeros. Raises TargetError.
        """
        ...


class AheadMemory(Protocol):
    """Physical memory that may be far away: many small reads take as long as one if they come at once."""

    @property
    def far(self) -> bool:
        """Tell whether each read is a request to somebody else."""
        ...

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read the pages of some ranges (pa, bytes), which are going to be read, in one go.

        What is not RAM is left out. Raises TargetError.
        """
        ...


def far(memory: object) -> TypeGuard[AheadMemory]:
    """Tell whether reading ahead saves requests."""
    return bool(getattr(memory, "far", False))


def read_start(read: Callable[[int, int], bytes], address: int, length: int) -> bytes:
    """Return what `read` gives from an address on, up to the first page that it cannot read."""
    found = bytearray()
    while len(found) < length:
        at = address + len(found)
        try:
            found += read(at, min(length - len(found), 4096 - at % 4096))
        except GuestError:
            break
    return bytes(found)


def has_rows(memory: object) -> TypeGuard[RowMemory]:
    """Tell whether a memory is a RowMemory."""
    return hasattr(type(memory), "read_rows")


def read_rows(
    memory: PhysicalMemory,
    addresses: NDArray[np.uint64],
    size: int,
    to: tuple[NDArray[np.uint64], NDArray[np.intp]],
    readable: NDArray[np.bool_],
) -> None:
    """Read tables into `to`, an array and the row of each address, by the way the memory has for that.

    `readable` has one truth value for each row of the array and is set for those read. Raises TargetError.
    """
    out, rows = to
    if has_rows(memory):
        readable[rows] = memory.read_rows(addresses, size, out, rows)
        return
    values, good = memory.read_tables(addresses, size)
    out[rows, : size // 8] = values
    readable[rows] = good
    if not good.all():
        out[rows[~good]] = 0
