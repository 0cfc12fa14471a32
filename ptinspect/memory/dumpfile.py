"""Guest-physical memory in a file: a raw image of RAM, or pieces of it as an ELF core has them."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import MemoryReadError, UserError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock

MAX_PIECES = 4096


@dataclass(frozen=True)
class Piece:
    """Name the memory that a part of a file holds."""

    start: int
    """Guest-physical address of the first byte."""
    offset: int
    """Where it stands in the file."""
    size: int
    """Bytes."""

    @property
    def end(self) -> int:
        """One past the end."""
        return self.start + self.size


def open_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor. Raises UserError."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{path} is no regular file")
    return number


class DumpFile:
    """Read a file whose pieces are the guest's memory; nothing is kept, and nothing is read ahead."""

    def __init__(self, path: Path, start: int, pieces: Sequence[Piece] | None = None) -> None:
        """Open the file: the whole of it is the memory at `start`, or parts of it are, by `pieces`.

        Pieces may overlap only if they put the same byte at the same address. Raises UserError if it
        cannot be used.
        """
        self._path = path
        self._file = -1
        self._file = open_file(path)
        size = os.fstat(self._file).st_size
        if size == 0:
            raise UserError(f"{path} is empty")
        self._pieces = _checked(path, size, [Piece(start, 0, size)] if pieces is None else pieces)
        self._starts = [piece.start for piece in self._pieces]
        self.ram = tuple(RamBlock(PhysAddr(p.start), p.size, path.name) for p in self._pieces)
        self._ranges = Ranges.of_blocks(self.ram)

    @property
    def label(self) -> str:
        """Name the file."""
        return f"dump file {self._path.name}"

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        number, self._file = self._file, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()

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
        parts = []
        at, end = pa, pa + length
        while at < end:
            piece = self._pieces[bisect_right(self._starts, at) - 1]
            if not piece.start <= at < piece.end:
                raise MemoryReadError(pa, length, f"not in {self._path.name}")
            count = min(end, piece.end) - at
            parts.append(self._read(at, piece.offset + at - piece.start, count))
            at += count
        return b"".join(parts)

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Read many tables; see PhysicalMemory. Tables outside the file are not readable."""
        readable = self._ranges.contains_each(addresses, size)
        raw = np.zeros((addresses.shape[0], size // 8), dtype=np.uint64)
        for i in np.nonzero(readable)[0].tolist():
            try:
                raw[i] = np.frombuffer(self.read(int(addresses[i]), size), dtype="<u8")
            except MemoryReadError:
                readable[i] = False
        return raw, readable

    def _read(self, pa: int, offset: int, count: int) -> bytes:
        """Read a part of the file, which may have become shorter."""
        try:
            data = os.pread(self._file, count, offset)
        except OSError as error:
            raise MemoryReadError(pa, count, f"{self._path.name}: {error.strerror}") from error
        if len(data) != count:
            raise MemoryReadError(pa, count, f"{self._path.name} ends before it")
        return data


def _checked(path: Path, size: int, pieces: Sequence[Piece]) -> list[Piece]:
    """Return pieces in order of address, without overlap. Raises UserError if they make no sense."""
    if len(pieces) > MAX_PIECES:
        raise UserError(f"{path}: {len(pieces)} pieces of memory, more than {MAX_PIECES}")
    found: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.start, -p.size)):
        if piece.size <= 0:
            continue
        if piece.start < 0 or piece.end > 1 << 52:
            raise UserError(f"{path}: memory at {piece.start:#x}+{piece.size:#x}: more than 52 address bits")
        if piece.offset < 0 or piece.offset + piece.size > size:
            raise UserError(
                f"{path} is truncated: {size} bytes, the memory at pa:{piece.start:#x} ends at "
                f"{piece.offset + piece.size}"
            )
        if found and piece.start < found[-1].end:
            last = found[-1]
            if piece.start - piece.offset != last.start - last.offset:
                raise UserError(f"{path} contradicts itself: pa:{piece.start:#x} is in it twice")
            if piece.end > last.end:
                found[-1] = Piece(last.start, last.offset, piece.end - last.start)
            continue
        found.append(piece)
    if not found:
        raise UserError(f"{path} holds no memory")
    return found
