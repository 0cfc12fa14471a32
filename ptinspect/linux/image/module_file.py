"""Files of kernel modules (.ko): the symbols that a kernel does not keep in memory, such as those of data.

A module is a relocatable ELF file: a symbol's value counts from the beginning of its section (ELF-64,
st_value), and where the kernel has put the sections it remembers, or the symbols that it keeps tell.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from ptinspect.arch.bits import MASK64
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError, UserError
from ptinspect.files import open_input
from ptinspect.linux.image.symbols import SymbolTable
from ptinspect.linux.image.vmlinux import SYMBOL, names_of
from ptinspect.packing import HEAD, DamagedError, packing_of, unpacked

SUFFIX = ".ko"
MAX_FILES = 200_000
"""Files of a directory that are looked at."""
MAX_BYTES = 256 << 20
"""Bytes of a module's file, unpacked; the largest of Debian's have 20 MiB."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = np.dtype(
    [("name", "<u4"), ("kind", "<u4"), ("flags", "<u8"), ("va", "<u8"), ("offset", "<u8"), ("size", "<u8"),
     ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("each", "<u8")]
)  # fmt: skip
_RELOCATABLE, _AARCH64 = 1, 183
_SYMTAB, _NOBITS = 2, 8
_WRITE, _EXEC = 1, 4
_RESERVED = 0xFF00
"""SHN_LORESERVE: what is not in a section."""


class ModuleFiles:
    """A directory with files of modules, however deep, as below /lib/modules; packed ones too."""

    def __init__(self, directory: Path) -> None:
        """Raise UserError if there is no such directory."""
        if not directory.is_dir():
            raise UserError(f"no directory {directory}")
        self.directory = directory

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Name of the module, as the kernel writes it -> its file."""
        found: dict[str, Path] = {}
        for count, path in enumerate(self.directory.rglob(f"*{SUFFIX}*")):
            if count >= MAX_FILES:
                break
            name, _, rest = path.name.partition(SUFFIX)
            if rest in ("", ".gz", ".xz", ".zst"):
                found.setdefault(name.replace("-", "_"), path)
        return found

    def symbols(self, name: str) -> ModuleFile | None:
        """Return the file of the module of this name, read; None if there is none. Raises KernelFileError."""
        path = self._paths.get(name)
        return None if path is None else ModuleFile.read(path)


@dataclass(frozen=True)
class ModuleFile:
    """The symbols of one file."""

    path: Path
    names: tuple[str, ...]
    sections: tuple[str, ...]
    """The section that each symbol is in."""
    values: tuple[int, ...]
    """Bytes from the section's beginning to each symbol."""
    kinds: str
    """A letter for each, as nm prints them for symbols that are not global."""

    @classmethod
    def read(cls, path: Path) -> ModuleFile:
        """Read a file. Raises KernelFileError unless it is a module for arm64."""
        try:
            with open_input(path) as file:
                kind = packing_of(file.read(HEAD))
                file.seek(0)
                data = (unpacked(file, kind, strict=True) if kind else file).read(MAX_BYTES + 1)
        except (OSError, DamagedError) as error:
            raise KernelFileError(f"{path}: {error}") from error
        if len(data) > MAX_BYTES:
            raise KernelFileError(f"{path}: more than {MAX_BYTES >> 20} MiB")
        try:
            return cls(path, *_symbols(data))
        except (ValueError, IndexError, OverflowError, struct.error) as error:
            raise KernelFileError(f"{path}: no module for arm64, or a damaged one") from error

    def bases(self, known: Mapping[str, Iterable[int]]) -> dict[str, int]:
        """Return where sections lie, by symbols whose addresses are known: name -> addresses.

        Raises KernelFileError where they do not agree: the module in memory is of another build.
        """
        found: dict[str, set[int]] = {}
        times = Counter(self.names)
        for name, section, value in zip(self.names, self.sections, self.values, strict=True):
            places = {address - value for address in known.get(name, ())}
            if len(places) == 1 and times[name] == 1:
                found.setdefault(section, set()).update(places)
        if any(len(places) > 1 for places in found.values()):
            raise KernelFileError(f"{self.path} is not the module in memory: its symbols lie elsewhere")
        return {section: places.pop() for section, places in found.items()}

    def placed(self, bases: Mapping[str, int]) -> SymbolTable:
        """Return the symbols of the sections whose places are given."""
        rows = [i for i, section in enumerate(self.sections) if section in bases]
        values = [(bases[self.sections[i]] + self.values[i]) & MASK64 for i in rows]
        addresses = np.array(values, np.uint64)
        return SymbolTable([self.names[i] for i in rows], addresses, "".join(self.kinds[i] for i in rows))


def _symbols(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], str]:
    """Return names, sections, values and letters.

    Raises ValueError, IndexError, OverflowError or struct.error.
    """
    ident, kind, machine, *_, table_at, _, _, _, _, _, count, names_in = _HEADER.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or (kind, machine) != (_RELOCATABLE, _AARCH64):
        raise ValueError("no relocatable ELF file for arm64")
    sections = np.frombuffer(data, _SECTION, count, table_at)

    def content(index: int) -> bytes:
        return data[int(sections["offset"][index]) :][: int(sections["size"][index])]

    titles = content(names_in)
    called = [titles[at : titles.find(b"\0", at)].decode("utf-8", "replace") for at in sections["name"]]
    found = np.flatnonzero(sections["kind"] == _SYMTAB)
    if not found.size:
        return (), (), (), ""
    raw = content(int(found[0]))
    rows = np.frombuffer(raw[: len(raw) // SYMBOL.itemsize * SYMBOL.itemsize], SYMBOL)
    usable = (rows["section"] > 0) & (rows["section"] < min(count, _RESERVED)) & (rows["info"] & 0xF < 3)
    rows = rows[usable]
    names, kept = names_of(rows, content(int(sections["link"][found[0]])))
    rows = rows[kept]
    letters = [
        "t" if flags & _EXEC else "b" if kind == _NOBITS else "d" if flags & _WRITE else "r"
        for flags, kind in zip(sections["flags"].tolist(), sections["kind"].tolist(), strict=True)
    ]
    inside = rows["section"].tolist()
    return (
        tuple(names),
        tuple(called[index] for index in inside),
        tuple(rows["value"].tolist()),
        "".join(letters[index] for index in inside),
    )
