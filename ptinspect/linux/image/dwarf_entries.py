"""The entries of .debug_info that define a type, found without decoding what lies between them.

A kernel has hundreds of megabytes of DWARF. The name of a type is looked up in .debug_str, the
references to that name in .debug_info, and only the entries found there are decoded. Source: DWARF 5
standard, chapters 5 and 7.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from ptinspect.errors import KernelFileError

MAX_HITS = 20_000
"""References to one name that are looked at: a common name is that of thousands of variables."""
MAX_UNITS = 256
"""Compilation units that are searched one entry at a time where names are not referred to directly."""
MAX_STRINGS = 32
"""Places in .debug_str that end with the name."""
REFERENCE = 4
"""Bytes of a reference into .debug_str; a name that is no longer, its end included, stands for itself."""
OFFSET_BITS = 48
"""Bits of a type id that are the offset in .debug_info; what is above them is the caller's."""
_NAMED = {
    "DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_enumeration_type", "DW_TAG_typedef",
    "DW_TAG_base_type",
}  # fmt: skip
_INSIDE = _NAMED | {"DW_TAG_member", "DW_TAG_array_type", "DW_TAG_pointer_type", "DW_TAG_subroutine_type"}
_SECTIONS = ("debug_info", "debug_abbrev", "debug_str", "debug_line_str", "debug_str_offsets", "debug_addr")


@dataclass(frozen=True)
class _Opened:
    """Hold the sections."""

    info: bytes
    """.debug_info."""
    strings: bytes
    """.debug_str."""
    dwarf: Any
    """pyelftools' view of them."""


class DwarfEntries:
    """Find and decode entries of .debug_info, by name and by offset."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is read when the first entry is asked for."""
        self._path = path
        self._ids: dict[str, int] = {}

    @cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        from elftools.common.exceptions import DWARFError, ELFError
        from elftools.construct import ConstructError

        own = (DWARFError, ELFError, ConstructError)
        return (
            *own,
            KeyError,
            ValueError,
            IndexError,
            AttributeError,
            TypeError,
            struct.error,
            AssertionError,
        )

    @cached_property
    def _opened(self) -> _Opened:
        """Read the sections. Raises KernelFileError if there are none."""
        from elftools.dwarf.dwarfinfo import DwarfConfig
        from elftools.elf.elffile import ELFFile

        found: dict[str, bytes] = {}
        try:
            with self._path.open("rb") as file:
                elf = ELFFile(file)
                for name in _SECTIONS:
                    section = elf.get_section_by_name(f".{name}")
                    if section is not None:
                        found[name] = section.data()
            config = DwarfConfig(elf.little_endian, elf.get_machine_arch(), elf.elfclass // 8)
            if not found.get("debug_info") or "debug_abbrev" not in found:
                raise KernelFileError(f"{self._path} has no debug information")
            return _Opened(found["debug_info"], found.get("debug_str", b""), _dwarf_info(config, found))
        except self._errors as error:
            raise KernelFileError(f"{self._path}: damaged debug information: {error}") from error
        except OSError as error:
            raise KernelFileError(f"{self._path}: {error.strerror or error}") from error

    def entry(self, offset: int) -> Any:
        """Decode the entry that a type id names. Raises KernelFileError."""
        try:
            return self._opened.dwarf.get_DIE_from_refaddr(offset & (1 << OFFSET_BITS) - 1)
        except self._errors as error:
            raise KernelFileError(f"damaged debug information at {offset:#x}: {error}") from error

    def find(self, name: str) -> int:
        """Return the offset of the definition of a type. Raises KernelFileError if there is none."""
        if name not in self._ids:
            self._ids[name] = self._search(name)
        return self._ids[name]

    def _search(self, name: str) -> int:
        wanted: list[tuple[bool, int, int]] = []
        order = ("DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_enumeration_type", "DW_TAG_typedef")
        for entry in self._named(name):
            tag = str(entry.tag)
            rank = order.index(tag) if tag in order else len(order)
            wanted.append((_empty(entry), rank, int(entry.offset)))
            if wanted[-1][:2] == (False, 0):
                break
        if not wanted:
            raise KernelFileError(f"the kernel has no type {name!r}")
        return min(wanted)[2]

    def _named(self, name: str) -> Iterator[Any]:
        """Go through the definitions of a type with this name."""
        text = name.encode()
        if not text or b"\0" in text:
            return
        found = False
        for entry in self._referring(text):
            found = True
            yield entry
        if found:
            return
        try:
            for count, unit in enumerate(self._opened.dwarf.iter_CUs()):
                if count >= MAX_UNITS:
                    return
                for entry in unit.get_top_DIE().iter_children():
                    if _defines(entry, text):
                        yield entry
        except self._errors:
            return

    def _referring(self, text: bytes) -> Iterator[Any]:
        """Go through the definitions whose name is one of the references.

        The name comes first in an entry, behind an abbreviation code of one or two bytes. The linker
        lets a name share the end of a longer one. The second byte of a code may be one by itself: it then
        seems to be an entry with nothing in it.
        """
        for where in self._references(text):
            for code_size in (1, 2):
                entry = self._entry_or_none(where - code_size)
                if entry is not None and _defines(entry, text) and self._is_whole(entry):
                    yield entry
                    if not _empty(entry):
                        break

    def _references(self, text: bytes) -> Iterator[int]:
        """Yield the places in .debug_info that hold the name: a reference, or itself if it is as short."""
        if len(text) < REFERENCE:
            yield from _places(self._opened.info, text + b"\0", MAX_HITS)
        for at in _places(self._opened.strings, text + b"\0", MAX_STRINGS):
            yield from _places(self._opened.info, struct.pack("<I", at), MAX_HITS)

    def _entry_or_none(self, offset: int) -> Any:
        """Decode what may be an entry."""
        try:
            unit = self._opened.dwarf.get_CU_containing(offset)
            if offset < unit.cu_die_offset:
                return None
            return self._opened.dwarf.get_DIE_from_refaddr(offset, unit)
        except self._errors:
            return None

    def _is_whole(self, entry: Any) -> bool:
        """Tell whether what was decoded at a guessed place is an entry: its references and children fit."""
        unit = entry.cu
        end = unit.cu_offset + unit["unit_length"] + 4
        try:
            for name, attribute in entry.attributes.items():
                if str(attribute.form).startswith("DW_FORM_ref") and name in ("DW_AT_sibling", "DW_AT_type"):
                    target = unit.cu_offset + attribute.raw_value
                    if not unit.cu_die_offset < target < end:
                        return False
            if "DW_AT_sibling" in entry.attributes and entry.attributes["DW_AT_sibling"].raw_value <= 0:
                return False
            if entry.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
                return all(child.tag in _INSIDE for child in entry.iter_children())
        except self._errors:
            return False
        return True

    def children(self, entry: Any) -> list[Any]:
        """Return the entries below one. Raises KernelFileError."""
        try:
            return list(entry.iter_children())
        except self._errors as error:
            raise KernelFileError(f"damaged debug information at {entry.offset:#x}: {error}") from error

    def target(self, entry: Any) -> int:
        """Return the type that an entry refers to; 0 for void."""
        if "DW_AT_type" not in entry.attributes:
            return 0
        try:
            return int(entry.get_DIE_from_attribute("DW_AT_type").offset)
        except self._errors as error:
            raise KernelFileError(f"damaged debug information at {entry.offset:#x}: {error}") from error


def _dwarf_info(config: Any, found: dict[str, bytes]) -> Any:
    """Build pyelftools' view of the sections that are needed; it has a place for every section there is."""
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DWARFInfo

    def section(name: str) -> Any:
        data = found.get(name)
        return None if data is None else DebugSectionDescriptor(BytesIO(data), f".{name}", None, len(data), 0)

    places = [name for name in inspect.signature(DWARFInfo.__init__).parameters if name.endswith("_sec")]
    return DWARFInfo(config=config, **{name: section(name.removesuffix("_sec")) for name in places})


def _places(data: bytes, wanted: bytes, limit: int) -> Iterator[int]:
    """Yield where a sequence of bytes occurs."""
    at = -1
    for _ in range(limit):
        at = data.find(wanted, at + 1)
        if at < 0:
            return
        yield at


def _defines(entry: Any, text: bytes) -> bool:
    """Tell whether an entry defines a type of this name."""
    name = entry.attributes.get("DW_AT_name")
    declared = "DW_AT_declaration" in entry.attributes
    return entry.tag in _NAMED and not declared and name is not None and name.value == text


def _empty(entry: Any) -> bool:
    """Tell whether an entry has nothing in it, where a type mostly has members."""
    composed = entry.tag in ("DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_enumeration_type")
    return composed and next(entry.iter_children(), None) is None


def entry_name(entry: Any) -> str:
    """Return the name of an entry; empty if it has none."""
    name = entry.attributes.get("DW_AT_name")
    return name.value.decode("utf-8", "replace") if name is not None and isinstance(name.value, bytes) else ""
