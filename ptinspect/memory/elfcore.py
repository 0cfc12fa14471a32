"""ELF core files of a guest's memory, as QEMU's dump-guest-memory writes them.

Source: ELF-64 object file format; QEMU dump/dump.c, target/arm/arch_dump.c (struct aarch64_prstatus);
Linux include/uapi/linux/elf.h. Nothing in the file is believed. (pyelftools reads as many bytes as a note
claims to have, and as many headers as the file claims, before anybody can look at the numbers.)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import UserError
from ptinspect.memory.dumpfile import DumpFile, Piece, open_file

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


def load(path: Path) -> tuple[DumpFile, Notes]:
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
