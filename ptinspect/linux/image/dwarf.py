"""Type layouts from DWARF, for a vmlinux without BTF: just the types that are asked for, answers kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.dwarf_entries import OFFSET_BITS, DwarfEntries, entry_name
from ptinspect.linux.image.kallsyms import cache_directory
from ptinspect.linux.image.types import MAX_DEPTH, Member, Types

_ALIASES = {"DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type"}
VERSION = 2
"""Version of the format of the file that answers are kept in."""
MAX_ANSWERS = 4096
MAX_BYTES = 1 << 20
_LENGTHS = {"size": 1, "field": 2, "bits": 2, "has": 1}
"""Kind of question -> numbers of its answer."""


class Answers:
    """Keep what was answered about one kernel in the user's cache, a JSON file; it may fail silently."""

    def __init__(self, key: str) -> None:
        """Begin with what was kept under this key."""
        self._file = cache_directory("types") / f"{key}.json"
        self._known: dict[str, list[int]] = {}
        try:
            stored = json.loads(self._file.read_bytes()[:MAX_BYTES])
            if stored["version"] == VERSION:
                answers = {str(k): [int(n) for n in v] for k, v in stored["answers"].items()}
                self._known = {k: v for k, v in answers.items() if len(v) == _LENGTHS.get(k.split(" ")[0])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return

    def get(self, question: str, ask: Callable[[], list[int]]) -> list[int]:
        """Return the answer, asking if it is not known; what asking raises is not kept."""
        if question not in self._known:
            answer = ask()
            if len(self._known) >= MAX_ANSWERS:
                return answer
            self._known[question] = answer
            self._save()
        return self._known[question]

    def _save(self) -> None:
        text = json.dumps({"version": VERSION, "answers": self._known})
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, suffix=".tmp", delete=False) as file:
                file.write(text)
            Path(file.name).replace(self._file)
        except OSError:
            return


class DwarfTypes(Types):
    """Answer from the DWARF of an ELF file, read when something new is asked; ids are offsets in it."""

    def __init__(self, path: Path, key: str = "") -> None:
        """Name the file, and under which key the answers are kept in the cache (none: they are not)."""
        super().__init__()
        self._entries = DwarfEntries(path)
        self._answers = Answers(key) if key else None

    # -- answers that are kept -------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the size of a type in bytes. Raises KernelFileError if the kernel has no such type."""
        return self._kept("size", name, lambda: [super(DwarfTypes, self).size(name)])[0]

    def field(self, path: str) -> tuple[int, int]:
        """Return offset and size in bytes of a member, as `offset` does."""
        offset, size = self._kept("field", path, lambda: list(super(DwarfTypes, self).field(path)))
        return offset, size

    def bit_field(self, path: str) -> tuple[int, int]:
        """Return offset and width in bits of a member that may be a bit field."""
        offset, width = self._kept("bits", path, lambda: list(super(DwarfTypes, self).bit_field(path)))
        return offset, width

    def has(self, path: str) -> bool:
        """Tell whether there is such a type, or such a member of it."""
        return bool(self._kept("has", path, lambda: [int(super(DwarfTypes, self).has(path))])[0])

    def _kept(self, kind: str, path: str, ask: Callable[[], list[int]]) -> list[int]:
        if self._answers is None:
            return ask()
        return self._answers.get(f"{kind} {path}", ask)

    # -- what Types asks -------------------------------------------------------------------------

    def _find(self, name: str) -> int:
        return self._entries.find(name)

    def _resolve(self, type_id: int) -> int:
        for _ in range(MAX_DEPTH):
            if not type_id:
                return 0
            entry = self._entries.entry(type_id)
            if entry.tag not in _ALIASES:
                return type_id
            type_id = self._entries.target(entry)
        raise KernelFileError("the debug information has a type that leads to itself")

    def members(self, type_id: int) -> list[Member]:
        """List the members of a struct or union; empty for anything else."""
        entry = self._entries.entry(type_id) if type_id else None
        if entry is None or entry.tag not in ("DW_TAG_structure_type", "DW_TAG_union_type"):
            return []
        found = []
        for child in self._entries.children(entry):
            if child.tag != "DW_TAG_member":
                continue
            bits = _number(child, "DW_AT_bit_size")
            target = self._entries.target(child)
            found.append(Member(entry_name(child), self._bit_offset(child, bits, target), target, bits))
        return found

    def _bit_offset(self, child: Any, bits: int, target: int) -> int:
        """Return where a member begins: DWARF 4 and later by DW_AT_data_bit_offset, before from the top."""
        if "DW_AT_data_bit_offset" in child.attributes:
            return _number(child, "DW_AT_data_bit_offset")
        offset = 8 * _number(child, "DW_AT_data_member_location")
        if "DW_AT_bit_offset" in child.attributes:
            storage = _number(child, "DW_AT_byte_size") or self._size(target)
            return offset + 8 * storage - bits - _number(child, "DW_AT_bit_offset")
        return offset

    def _array(self, type_id: int) -> tuple[int, int] | None:
        entry = self._entries.entry(type_id) if type_id else None
        if entry is None or entry.tag != "DW_TAG_array_type":
            return None
        counts = [
            _count(child) for child in self._entries.children(entry) if child.tag == "DW_TAG_subrange_type"
        ]
        dimension = type_id >> OFFSET_BITS
        if dimension + 1 < len(counts):  # a row of a matrix: the same entry, one dimension further
            return type_id + (1 << OFFSET_BITS), counts[dimension]
        return self._entries.target(entry), counts[dimension] if dimension < len(counts) else 0

    def _plain_size(self, type_id: int) -> int:
        if not type_id:
            return 0
        entry = self._entries.entry(type_id)
        return _number(entry, "DW_AT_byte_size") or (8 if entry.tag == "DW_TAG_pointer_type" else 0)


def _number(entry: Any, name: str) -> int:
    """Return an attribute that is a constant; 0 if it is not there. Raises KernelFileError for others."""
    attribute = entry.attributes.get(name)
    if attribute is None:
        return 0
    if not isinstance(attribute.value, int):
        raise KernelFileError(f"{name} at {entry.offset:#x} is computed, which only other languages do")
    return attribute.value


def _count(subrange: Any) -> int:
    """Return the number of elements of one dimension; 0 for a flexible array."""
    if "DW_AT_count" in subrange.attributes:
        return _number(subrange, "DW_AT_count")
    return _number(subrange, "DW_AT_upper_bound") + 1 if "DW_AT_upper_bound" in subrange.attributes else 0
