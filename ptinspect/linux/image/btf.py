"""Type layouts from BTF, the compact type format that kernels carry.

Source: Linux Documentation/bpf/btf.rst and include/uapi/linux/btf.h. The blob is untrusted: every
offset is checked, chains of types are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.btf_kinds import (
    ARRAY,
    CONST,
    DATASEC,
    DECL_TAG,
    ENUM,
    ENUM64,
    FUNC_PROTO,
    INT,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VOLATILE,
)
from ptinspect.text import escape

MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
MAX_TYPES = 4_000_000
MAX_DEPTH = 32
"""Steps from a type to the one it stands for, and levels of arrays, that are followed."""
MAX_NESTED = 200
"""Anonymous types that the search for one member enters."""

_EXTRA, _EACH = np.zeros((2, 32), dtype=np.uint32)
"""Words that follow a type of each kind, and words for each of its members."""
_EXTRA[[INT, ARRAY, VAR, DECL_TAG]] = 1, 3, 1, 1
_EACH[[STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64]] = 3, 3, 2, 2, 3, 3
_ALIASES = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)


class Offsets(Protocol):
    """Offsets of members: all that most callers need."""

    def offset(self, path: str) -> int:
        """Return the offset in bytes of a member. Raises KernelFileError if it is not known."""
        ...


@dataclass(frozen=True)
class Member:
    """Describe one member of a struct or union."""

    name: str
    """Empty for an anonymous struct or union."""
    offset: int
    """Offset in bits from the start of the enclosing type."""
    type_id: int
    bits: int
    """Width of a bit field; 0 for others."""


def _places(data: bytes, needle: bytes) -> Iterator[int]:
    """Yield where some bytes are."""
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


@dataclass(frozen=True)
class Entry:
    """What stands about one type."""

    kind: int
    name: str
    """Empty for pointers, arrays and anonymous ones."""
    size: int
    """Bytes, of what has a size of its own."""
    target: int
    """The type that it is made of, points to, or stands for; 0 is void."""
    count: int
    """Elements of an array."""
    signed: bool
    """Of an integer or an enum."""
    boolean: bool
    """Of an integer: 0 and 1 are its values."""


def find_btf(data: bytes) -> BtfTypes | None:
    """Find BTF in an image by its header; None if there is none that is consistent from end to end."""
    for at in _places(data, struct.pack("<HBBI", MAGIC, 1, 0, HEADER.size)):
        if len(data) - at < HEADER.size:
            return None
        _, _, _, header, type_off, type_len, str_off, str_len = HEADER.unpack_from(data, at)
        end = at + header + max(type_off + type_len, str_off + str_len)
        sane = type_len >= 12 and str_len > 1 and type_off == 0 and str_off == type_len
        if sane and end <= len(data) and data[at + header + str_off] == 0:
            try:
                return BtfTypes(data[at:end])
            except KernelFileError:
                continue
    return None


class BtfTypes:
    """The types in a BTF blob: sizes and member offsets."""

    def __init__(self, blob: bytes) -> None:
        """Index the types. Raises KernelFileError if the blob is damaged."""
        try:
            magic, version, _, header, type_off, type_len, str_off, str_len = HEADER.unpack_from(blob)
        except struct.error:
            raise KernelFileError("the BTF is truncated") from None
        if magic != MAGIC or version != 1:
            raise KernelFileError(f"no BTF of version 1 (magic {magic:#x}, version {version})")
        self._types = blob[header + type_off : header + type_off + type_len]
        self._strings = blob[header + str_off : header + str_off + str_len]
        self._words = np.frombuffer(self._types[: len(self._types) & ~3], dtype="<u4")
        self._at = self._index()
        self._found: dict[str, dict[int, int]] = {}
        self._places: dict[str, Member] = {}

    def _index(self) -> np.ndarray:
        """Return where each type begins, in bytes; number 0, which is void, has no place.

        What lies where is known when all before it is. So for each word the length is taken that a type
        would have which began there, of all at once, and the way goes from type to type by these.
        """
        info = np.append(self._words[1:], np.uint32(0))
        kinds = info.view(np.uint8)[3::4] & 0x1F
        lengths = 3 + _EXTRA.take(kinds) + _EACH.take(kinds) * (info & 0xFFFF)
        after = (np.arange(len(info), dtype=np.uint32) + lengths).data
        found, at = [0], 0
        while at + 2 < len(after):
            found.append(at)
            at = after[at]
        if not at or 4 * at != len(self._types):
            raise KernelFileError("the BTF is truncated")
        if len(found) > MAX_TYPES:
            raise KernelFileError("the BTF has too many types")
        places = np.array(found)
        self._names, self._kinds = self._words[places], kinds[places]
        self._names[0] = self._kinds[0] = 0
        wrong = self._kinds[1:][(self._kinds[1:] < INT) | (self._kinds[1:] > ENUM64)]
        if len(wrong):
            raise KernelFileError(f"the BTF has a type of kind {wrong[0]}, which is not known")
        return 4 * places

    def _head(self, type_id: int) -> tuple[int, int, int, int, int, int]:
        """Return kind, count, kind flag, size or type, name offset and place of a type."""
        if not 0 < type_id < len(self._at):
            raise KernelFileError(f"the BTF names a type {type_id} that it does not have")
        at = int(self._at[type_id])
        name, info, size = struct.unpack_from("<III", self._types, at)
        return info >> 24 & 0x1F, info & 0xFFFF, info >> 31, size, name, at

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        return escape(self._strings[offset:end].decode("ascii", errors="replace")) if end >= 0 else ""

    def _find(self, name: str) -> int:
        """Return the id of a struct, union, enum or typedef by name."""
        found = self.named(name, (STRUCT, UNION, ENUM, ENUM64, INT, TYPEDEF))
        if not found:
            raise KernelFileError(f"the kernel has no type {name!r}")
        return found

    def named(self, name: str, kinds: Sequence[int]) -> int:
        """Return the id of a type, or variable, by name: of the first of these kinds, and there the last.

        0 if there is none.
        """
        if name not in self._found:
            called = np.zeros(len(self._strings) + 1, dtype=bool)
            called[list(_places(self._strings, name.encode(errors="replace") + b"\0"))] = True
            ids = np.flatnonzero(called.take(self._names, mode="clip") & (self._names != 0))
            self._found[name] = dict(zip(self._kinds[ids].tolist(), ids.tolist(), strict=True))
        found = self._found[name]
        return next((found[kind] for kind in kinds if kind in found), 0)

    def names(self, kind: int) -> list[str]:
        """Return the names of all of one kind."""
        return [self._string(int(at)) for at in self._names[(self._kinds == kind) & (self._names != 0)]]

    @cached_property
    def sections(self) -> dict[int, str]:
        """The sections in which the variables are that the kernel describes, by their ids."""
        found: dict[int, str] = {}
        for section in np.flatnonzero(self._kinds == DATASEC).tolist():
            _, count, _, _, name, at = self._head(section)
            for i in range(count):
                found[struct.unpack_from("<I", self._types, at + 12 + 12 * i)[0]] = self._string(name)
        return found

    @cached_property
    def constants(self) -> dict[str, int]:
        """The constants of all enums, by name; 32 bits wide or 64."""
        found: dict[str, int] = {}
        for enum in np.flatnonzero((self._kinds == ENUM) | (self._kinds == ENUM64)).tolist():
            found |= {name: value for value, name in self.enumerators(enum).items()}
        return found

    def enumerators(self, type_id: int) -> dict[int, str]:
        """Return the names of an enum's values."""
        kind, count, signed, _, _, at = self._head(type_id)
        found: dict[int, str] = {}
        for i in range(count):
            if kind == ENUM:
                name, value = struct.unpack_from("<Ii" if signed else "<II", self._types, at + 12 + 8 * i)
            else:
                name, value = struct.unpack_from("<Iq" if signed else "<IQ", self._types, at + 12 + 12 * i)
            found.setdefault(value, self._string(name))
        return found

    def entry(self, type_id: int) -> Entry:
        """Return what stands about a type. Raises KernelFileError if there is none of this id."""
        kind, _, flag, size, name, at = self._head(type_id)
        element, count = self._array(type_id) or (size, 0)
        encoding = struct.unpack_from("<I", self._types, at + 12)[0] if kind == INT else 0
        signed = bool(encoding >> 24 & 1) if kind == INT else bool(flag)
        return Entry(kind, self._string(name), size, element, count, signed, bool(encoding >> 24 & 4))

    def resolve(self, type_id: int) -> int:
        """Follow typedefs and qualifiers."""
        for _ in range(MAX_DEPTH):
            kind, _, _, target, _, _ = self._head(type_id)
            if kind not in _ALIASES:
                return type_id
            type_id = target
        raise KernelFileError("the BTF has a type that leads to itself")

    def members(self, type_id: int) -> list[Member]:
        """List the members of a struct or union by its id."""
        kind, count, flag, _, _, at = self._head(type_id)
        if kind not in (STRUCT, UNION):
            return []
        found = []
        for i in range(count):
            name, target, offset = struct.unpack_from("<III", self._types, at + 12 + 12 * i)
            bits = offset >> 24 if flag else 0
            found.append(Member(self._string(name), offset & 0xFFFFFF if flag else offset, target, bits))
        return found

    def _array(self, type_id: int) -> tuple[int, int] | None:
        """Return element type and number of elements of an array, else None."""
        kind, _, _, _, _, at = self._head(type_id)
        if kind != ARRAY:
            return None
        element, _, count = struct.unpack_from("<III", self._types, at + 12)
        return element, count

    def _plain_size(self, type_id: int) -> int:
        """Return the size that a type carries; a pointer carries none."""
        kind, _, _, size, _, _ = self._head(type_id)
        return 8 if kind == PTR else size

    # -- what is asked ---------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the size of a type in bytes. Raises KernelFileError if the kernel has no such type."""
        return self._size(self._find(name))

    def offset(self, path: str) -> int:
        """Return the offset in bytes of a member: `task_struct.thread.cpu_context.sp`, `pt_regs.regs[30]`.

        Members of anonymous structs and unions are found by their own name. Raises KernelFileError if
        there is no such type or member, or it is a bit field.
        """
        return self.field(path)[0]

    def field(self, path: str) -> tuple[int, int]:
        """Return offset and size in bytes of a member, as `offset` does."""
        place = self._locate(path)
        if place.bits or place.offset % 8:
            raise KernelFileError(f"{path!r} is a bit field")
        return place.offset // 8, self._size(place.type_id)

    # -- paths -----------------------------------------------------------------------------------

    def _locate(self, path: str) -> Member:
        """Follow a path; the offset of the result counts from the start of its first type."""
        known = self._places.get(path)
        if known is None:
            first, *rest = path.split(".")
            known = Member(first, 0, self._find(first), 0)
            for step in rest:
                known = self._step(known, step, path)
            self._places[path] = known
        return known

    def _step(self, where: Member, step: str, path: str) -> Member:
        """Go to a member, and to elements of it if it is an array: `regs[30]`."""
        name, *indices = step.replace("]", "").split("[")
        found = self._member(self.resolve(where.type_id), name, set())
        if found is None:
            raise KernelFileError(f"the kernel has no {path!r}: {name!r} is missing")
        offset, type_id, bits = where.offset + found.offset, found.type_id, found.bits
        for index in indices:
            array = self._array(self.resolve(type_id))
            if array is None or not index.isdecimal():
                raise KernelFileError(f"{path!r}: {name!r} is not an array, or the index is not a number")
            type_id, count = array
            if int(index) >= count:
                raise KernelFileError(f"{path!r}: {name!r} has {count} elements")
            offset += 8 * int(index) * self._size(type_id)
        return Member(name, offset, type_id, bits)

    def member(self, type_id: int, name: str) -> Member | None:
        """Return a member of a struct or union, of an anonymous one in it too; None if there is none."""
        return self._member(self.resolve(type_id), name, set())

    def _member(self, type_id: int, name: str, seen: set[int]) -> Member | None:
        """Return a member with its bit offset, looking into anonymous ones; each type is entered once."""
        if type_id in seen or len(seen) > MAX_NESTED:
            return None
        seen.add(type_id)
        nested = []
        for member in self.members(type_id):
            if member.name and member.name == name:
                return member
            if not member.name:
                nested.append(member)
        for member in nested:
            found = self._member(self.resolve(member.type_id), name, seen)
            if found is not None:
                return Member(name, member.offset + found.offset, found.type_id, found.bits)
        return None

    def _size(self, type_id: int) -> int:
        """Return the size of a type in bytes, arrays multiplied out."""
        count = 1
        for _ in range(MAX_DEPTH):
            type_id = self.resolve(type_id)
            array = self._array(type_id)
            if array is None:
                return count * self._plain_size(type_id)
            type_id, elements = array
            count *= elements
        raise KernelFileError("the type information has an array that contains itself")
