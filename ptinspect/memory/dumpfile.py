"""Guest-physical memory in a file: a raw image of RAM, or an ELF core as QEMU's dump-guest-memory writes it.

Source: ELF-64 object file format; QEMU dump/dump.c, target/arm/arch_dump.c (struct aarch64_prstatus);
Linux include/uapi/linux/elf.h. Nothing in the file is believed. (pyelftools reads as many bytes as a note
claims to have, and as many headers as the file claims, before anybody can look at the numbers.)
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass
from ptinspect.errors import MemoryReadError, UserError
from ptinspect.memory.ranges import Ranges
from ptinspect.memory.source import RamBlock


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
        if length and not self._ranges.contains(pa, length):
            raise MemoryReadError(pa, length, f"not in {self._path.name}")
        parts = []
        at, end = pa, pa + length
        while at < end:
            piece = self._pieces[bisect_right(self._starts, at) - 1]
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


MAGIC = b"\x7fELF"
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM = struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")
ET_CORE, EM_AARCH64, PT_LOAD, PT_NOTE = 4, 183, 1, 4
NT_PRSTATUS = 1
PN_XNUM = 0xFFFF
MAX_NOTES = 16 << 20
"""Bytes of notes that are read at most, all together."""
MAX_CPUS = 1024
REGISTERS = struct.Struct("<34Q")
REGISTERS_AT = 112
"""In struct aarch64_note of QEMU and struct elf_prstatus of Linux."""


@dataclass(frozen=True)
class Notes:
    """Hold what stands beside the memory."""

    cpus: tuple[CpuState, ...]
    """General registers of each CPU; no system registers, which such files do not have."""
    vmcoreinfo: str
    """The guest's own VMCOREINFO text; empty if there is none."""


def is_elf(path: Path) -> bool:
    """Tell whether a file begins as an ELF file does. Raises UserError if it cannot be read."""
    with os.fdopen(open_file(path), "rb") as file:
        return file.read(4) == MAGIC


def load_core(path: Path) -> tuple[DumpFile, Notes]:
    """Open an ELF core. Raises UserError if it is none of an aarch64 machine, truncated or damaged."""
    with os.fdopen(open_file(path), "rb") as file:
        programs = _programs(path, file)
        notes = _notes(path, file, [p for p in programs if p[0] == PT_NOTE])
    pieces = [Piece(p[4], p[2], min(p[5], p[6]) if p[6] else p[5]) for p in programs if p[0] == PT_LOAD]
    return DumpFile(path, 0, pieces), notes


def _programs(path: Path, file: BinaryIO) -> list[tuple[int, ...]]:
    """Return the program headers."""
    data = file.read(HEADER.size)
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise UserError(f"{path} is no ELF file, or is truncated")
    ident, kind, machine, _, _, offset, _, _, _, entry, count, *_ = HEADER.unpack(data)
    if ident[4] != 2 or ident[5] != 1 or machine != EM_AARCH64 or kind != ET_CORE:
        what = "a kernel or program" if kind != ET_CORE else "of another machine"
        raise UserError(
            f"{path} is no core file of an aarch64 guest: it is {what}",
            "monitor dump-guest-memory FILE writes one; a vmlinux goes with --kernel",
        )
    if entry != PROGRAM.size or not 0 < count < PN_XNUM:
        raise UserError(f"{path}: {count} program headers of {entry} bytes: damaged, or too many")
    return list(PROGRAM.iter_unpack(_part(path, file, offset, count * entry, "program headers")))


def _part(path: Path, file: BinaryIO, offset: int, size: int, what: str) -> bytes:
    """Return a part of the file. Raises UserError if it is not there."""
    data = os.pread(file.fileno(), size, offset) if offset < 1 << 62 else b""
    if len(data) != size:
        raise UserError(f"{path} is truncated: its {what} are missing")
    return data


def _notes(path: Path, file: BinaryIO, programs: list[tuple[int, ...]]) -> Notes:
    cpus: list[CpuState] = []
    info = ""
    total = sum(program[5] for program in programs)
    if total > MAX_NOTES:
        raise UserError(f"{path}: {total} bytes of notes, more than {MAX_NOTES}")
    for program in programs:
        for name, kind, body in _each_note(_part(path, file, program[2], program[5], "notes")):
            if name == b"VMCOREINFO":
                info = body.split(b"\0")[0].decode("ascii", "replace")
            elif name == b"CORE" and kind == NT_PRSTATUS and len(cpus) < MAX_CPUS:
                cpus.append(_registers(path, body, len(cpus)))
    return Notes(tuple(cpus), info)


def _each_note(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield name, type and content; what is left at the end is no note."""
    at = 0
    while at + NOTE.size <= len(data):
        names, size, kind = NOTE.unpack_from(data, at)
        start = at + NOTE.size
        body = start + (names + 3 & ~3)
        at = body + (size + 3 & ~3)
        if body + size > len(data):
            return
        yield data[start : start + names].rstrip(b"\0"), kind, data[body : body + size]


def _registers(path: Path, body: bytes, cpu: int) -> CpuState:
    """Return the registers of a CPU, which are x0 to x30, sp, pc and pstate."""
    if len(body) < REGISTERS_AT + REGISTERS.size:
        raise UserError(f"{path}: the registers of CPU {cpu} are cut short")
    values = REGISTERS.unpack_from(body, REGISTERS_AT)
    return CpuState(cpu, tuple(values[:31]), values[31], values[32], values[33], {})


MAX_PIECES = 4096
