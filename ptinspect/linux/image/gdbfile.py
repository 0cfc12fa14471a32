"""The part of a vmlinux that GDB needs: sections, symbols and call frames, no debug information.

GDB reads an index of all debug information when it is given a file (a second for 300 MB), and expands
most of it at the first name that it looks up: 15 s and 1.8 GB with GDB 13, 3 s and 0.5 GB with GDB 18.
Its own -readnever is as fast as this file is (0.4 s, 80 MB), but leaves the call frames out too: 63 of 66
backtraces then ended early or lacked functions with GDB 13, and 33 of 34 with GDB 18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.linux.image.derived import derived

VERSION = 2
"""Version of what is written; files of another one are written anew."""
MAX_FILES = 8
"""Files kept in the cache."""
MAX_SECTION = 256 << 20
MAX_SECTIONS = 4096

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMTAB, _NOBITS = 2, 8
_ALLOC = 0x2
_KEPT = (b".debug_frame",)
"""Sections that are kept although they are not loaded: with them GDB finds callers (DWARF 5, 6.4)."""


def gdb_file(path: Path) -> Path:
    """Return a small ELF file with the symbols of `path`, from the user's cache or made now.

    Returns `path` itself where that cannot be done: GDB then takes its time, or reports what is wrong.
    """

    def write(out: IO[bytes]) -> None:
        with open_input(path) as file:
            parts = _parts(file)
        if parts is None:
            raise ValueError("a file without symbols")
        out.writelines(parts)

    try:
        return derived(path, "gdb", f"{VERSION}", ".elf", write, keep=MAX_FILES)
    except (OSError, UserError, ValueError, OverflowError, struct.error):
        return path


def _parts(file: BinaryIO) -> list[bytes] | None:
    """Return the pieces of the small file; None if this is no ELF file with symbols."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:6] != b"\x7fELF\x02\x01":
        return None
    fields = list(_HEADER.unpack(header))
    table, size, count, names_at = fields[6], fields[11], fields[12], fields[13]
    if size != _SECTION.size or not 0 < count <= MAX_SECTIONS or names_at >= count:
        return None
    file.seek(table)
    data = file.read(size * count)
    if len(data) != size * count:
        return None
    sections = [list(one) for one in _SECTION.iter_unpack(data)]
    names = _content(file, sections[names_at])
    if names is None or not any(one[1] == _SYMTAB for one in sections):
        return None
    wanted = set(_wanted(sections, names, names_at))
    contents = []
    end = _HEADER.size
    for number, section in enumerate(sections):
        content = _content(file, section) if number in wanted else b""
        if content is None:
            return None
        _place(section, end, kept=number in wanted)
        content += bytes(-len(content) % 8)
        end += len(content)
        contents.append(content)
    fields[5], fields[6], fields[9], fields[10] = 0, end, 0, 0  # no program headers
    return [_HEADER.pack(*fields), *contents, *(_SECTION.pack(*one) for one in sections)]


def _place(section: list[int], offset: int, *, kept: bool) -> None:
    """Change a section header to that of the small file: with its bytes, without them, or empty."""
    if kept or section[2] & _ALLOC:
        section[1] = section[1] if kept else _NOBITS
        section[4] = offset
        return
    section[:] = [0] * len(section)


def _wanted(sections: list[list[int]], names: bytes, names_at: int) -> Iterator[int]:
    """Return the numbers of the sections whose bytes are kept."""
    yield names_at
    for number, section in enumerate(sections):
        if section[1] == _SYMTAB:
            yield number
            if section[6] < len(sections):
                yield section[6]
        elif names[section[0] : names.find(b"\0", section[0])] in _KEPT:
            yield number


def _content(file: BinaryIO, section: list[int]) -> bytes | None:
    """Return the bytes of a section; None if it is too large or truncated."""
    if section[1] == _NOBITS:
        return b""
    if section[5] > MAX_SECTION:
        return None
    file.seek(section[4])
    data = file.read(section[5])
    return data if len(data) == section[5] else None
