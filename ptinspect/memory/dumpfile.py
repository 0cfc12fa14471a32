"""Guest-physical memory in a file: a raw image of RAM, as `pmemsave` or a memory backend writes it."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import MemoryReadError, UserError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock


class DumpFile:
    """Read a raw image whose first byte is the guest's byte at `start`."""

    def __init__(self, path: Path, start: int) -> None:
        """Open the image; it is mapped, not read. Raises UserError if it cannot be used."""
        self._path = path
        self._start = start
        try:
            if not path.is_file():
                raise UserError(f"{path} is no regular file")
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise UserError(f"{path} is empty") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        self.ram = (RamBlock(PhysAddr(start), len(self._bytes), path.name),)
        self._ranges = Ranges(self.ram)

    @property
    def label(self) -> str:
        """Name the file."""
        return f"dump file {self._path.name}"

    def close(self) -> None:
        """Unmap the file."""
        self._bytes.close()

    def __enter__(self) -> DumpFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, pa: int, length: int) -> bytes:
        """Return `length` bytes at `pa`. Raises MemoryReadError for bytes that the file does not hold."""
        if length == 0:
            return b""
        if not self._ranges.contains(pa, length):
            raise MemoryReadError(pa, length, f"not in {self._path.name}")
        return self._bytes[pa - self._start : pa - self._start + length]

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. Tables outside the file are not readable."""
        readable = self._ranges.contains_each(addresses, size)
        raw = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        rows = raw.view(np.uint8)
        for i in np.nonzero(readable)[0].tolist():
            at = int(addresses[i]) - self._start
            rows[i] = np.frombuffer(self._bytes, dtype=np.uint8, count=size, offset=at)
        return raw, readable
