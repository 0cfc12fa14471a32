"""A vmlinux: its segments, sections and symbols; its debug information stays on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.container import FileBytes, Segment
from ptinspect.linux.image.symbols import NO_SYMBOLS, SymbolTable

SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
"""A symbol of ELF-64: st_name, st_info, st_other, st_shndx, st_value, st_size."""
_USABLE = (0, 1, 2)
"""NOTYPE, OBJECT, FUNC (ELF-64 st_info)."""
_SHN_ABS = 0xFFF1
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_NOBITS = 8
MAX_TABLE = 256 << 20
"""Bytes of a symbol or string table that are accepted."""
MAX_SEGMENT = 1 << 30
"""Bytes that a part of a kernel may have; all of one are below 100 MB."""


@dataclass(frozen=True)
class Section:
    """Describe one section of the file."""

    name: str
    """`.text`, `.BTF`, …"""
    kind: int
    """sh_type."""
    flags: int
    """sh_flags."""
    va: int
    """Link-time address; 0 if it is not loaded."""
    offset: int
    """Offset in the file."""
    size: int
    """Bytes."""
    link: int
    """Index of the section it belongs with (a symbol table's strings)."""

    @property
    def stored(self) -> bool:
        """True if the file holds its bytes as they are: neither .bss nor compressed."""
        return self.kind != _NOBITS and not self.flags & 0x800


class Vmlinux:
    """Read a vmlinux piece by piece."""

    def __init__(self, path: Path, data: FileBytes) -> None:
        """Read the headers. Raises KernelFileError if this is no arm64 kernel."""
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError
        from elftools.elf.elffile import ELFFile

        self.path = path
        self.data = data
        try:
            elf = ELFFile(data.file)
            machine, kind = elf.header["e_machine"], elf.header["e_type"]
            if machine not in (183, "EM_AARCH64") or elf.elfclass != 64 or not elf.little_endian:
                raise KernelFileError(f"{path}: an ELF file, but not a little-endian arm64 one")
            if kind not in ("ET_EXEC", "ET_DYN"):
                raise KernelFileError(f"{path}: a relocatable or core file, no vmlinux")
            self.segments = [
                Segment(int(s["p_vaddr"]), int(s["p_offset"]), int(s["p_filesz"]))
                for s in elf.iter_segments("PT_LOAD")
                if s["p_filesz"]
            ]
            self.end = max((s["p_vaddr"] + s["p_memsz"] for s in elf.iter_segments("PT_LOAD")), default=0)
            self.sections = [
                Section(
                    s.name,
                    _section_type(s["sh_type"]),
                    *(int(s[f"sh_{n}"]) for n in ("flags", "addr", "offset", "size", "link")),
                )
                for s in elf.iter_sections()
            ]
        except (ELFError, ConstructError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise KernelFileError(f"{path}: a damaged ELF file: {error}") from error
        if not self.segments:
            raise KernelFileError(f"{path}: an ELF file with nothing to load, no vmlinux")
        largest = max(segment.size for segment in self.segments)
        if largest > MAX_SEGMENT:
            raise KernelFileError(f"{path}: a segment of {largest} bytes, more than {MAX_SEGMENT}: damaged")
        text = self.section(".text")
        self.has_code = text is None or text.kind != _NOBITS
        """False for a file that keeps only debug information."""

    def section(self, name: str) -> Section | None:
        """Return a section by name; None if there is none."""
        return next((s for s in self.sections if s.name == name), None)

    def bytes_of(self, section: Section, limit: int = MAX_TABLE) -> bytes:
        """Return the bytes of a section. Raises KernelFileError if there are too many or too few."""
        data = self.data.read(section.offset, min(section.size, limit + 1))
        if section.size > limit or len(data) != section.size:
            raise KernelFileError(f"{self.path}: section {section.name} is too large or truncated")
        return data

    def symbols(self) -> tuple[SymbolTable, str]:
        """Return the symbol table, and why it is empty if it is."""
        section = self.section(".symtab")
        if section is None or not section.stored or section.link >= len(self.sections):
            return NO_SYMBOLS, "the file is stripped: it has no .symtab"
        strings = self.bytes_of(self.sections[section.link])
        raw = self.bytes_of(section)
        table = np.frombuffer(raw[: len(raw) // SYMBOL.itemsize * SYMBOL.itemsize], dtype=SYMBOL)
        usable = np.isin(table["info"] & 0xF, _USABLE) & (table["section"] != 0) & (table["name"] != 0)
        table = table[usable & (table["name"] < len(strings))]
        names, rows = names_of(table, strings)
        table = table[rows]
        letters = self._letters()[np.minimum(table["section"], len(self.sections))]
        letters = np.where(table["section"] == _SHN_ABS, ord("a"), letters)
        letters = np.where(table["info"] >> 4 != 0, letters - 32, letters)
        kinds = letters.astype(np.uint8).tobytes().decode("ascii")
        return SymbolTable(names, table["value"].astype(np.uint64), kinds), ""

    def _letters(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return nm's letter for symbols of each section, and one for unknown sections at the end."""
        found = []
        for s in self.sections:
            letter = (
                "t" if s.flags & _EXEC else "b" if s.kind == _NOBITS else "d" if s.flags & _WRITE else "r"
            )
            found.append(ord(letter))
        return np.array([*found, ord("r")], dtype=np.uint8)


def names_of(table: np.ndarray[Any, Any], strings: bytes) -> tuple[list[str], list[int]]:
    """Return the names of symbols, and their rows: not those without one, nor marks of assemblers."""
    names, rows = [], []
    for row, start in enumerate(table["name"].tolist()):
        end = strings.find(b"\0", start)
        name = strings[start:end]
        if end > start and not name.startswith((b"$", b".L")):
            names.append(name.decode("utf-8", "replace").replace("\n", " "))
            rows.append(row)
    return names, rows


def _section_type(value: str | int) -> int:
    """Return sh_type as a number; pyelftools names the types it knows."""
    if isinstance(value, int):
        return value
    return _NOBITS if value == "SHT_NOBITS" else 1
