"""Type layouts from BTF, the compact type format that kernels carry.

Source: Linux Documentation/bpf/btf.rst and include/uapi/linux/btf.h. The blob is untrusted: every
offset is checked, chains of types are bounded.
"""

from __future__ import annotations

import struct

import numpy as np

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.types import MAX_DEPTH, Member, Types

MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
MAX_TYPES = 4_000_000

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)

_EXTRA = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
_EACH = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
_ALIASES = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)


def find_btf(data: bytes) -> BtfTypes | None:
    """Find BTF in an image by its header; None if there is none that is consistent from end to end."""
    at = -1
    needle = struct.pack("<HBB", MAGIC, 1, 0) + struct.pack("<I", HEADER.size)
    while (at := data.find(needle, at + 1)) >= 0:
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


class BtfTypes(Types):
    """Answer from a BTF blob."""

    def __init__(self, blob: bytes) -> None:
        """Index the types. Raises KernelFileError if the blob is damaged."""
        super().__init__()
        try:
            magic, version, _, header, type_off, type_len, str_off, str_len = HEADER.unpack_from(blob)
        except struct.error:
            raise KernelFileError("the BTF is truncated") from None
        if magic != MAGIC or version != 1:
            raise KernelFileError(f"no BTF of version 1 (magic {magic:#x}, version {version})")
        self._types = blob[header + type_off : header + type_off + type_len]
        self._strings = blob[header + str_off : header + str_off + str_len]
        self._at: list[int] = [0]
        self._index()
        self._named: dict[tuple[str, bool], int] = {}

    def _index(self) -> None:
        data, at = self._types, 0
        unpack = struct.Struct("<III").unpack_from
        while at + 12 <= len(data):
            if len(self._at) > MAX_TYPES:
                raise KernelFileError("the BTF has too many types")
            _, info, _ = unpack(data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if not INT <= kind <= ENUM64:
                raise KernelFileError(f"the BTF has a type of kind {kind}, which is not known")
            self._at.append(at)
            at += 12 + _EXTRA.get(kind, 0) + _EACH.get(kind, 0) * count
        if at != len(data):
            raise KernelFileError("the BTF is truncated")

    def _head(self, type_id: int) -> tuple[int, int, int, int, int, int]:
        """Return kind, count, kind flag, size or type, name offset and place of a type."""
        if not 0 < type_id < len(self._at):
            raise KernelFileError(f"the BTF names a type {type_id} that it does not have")
        at = self._at[type_id]
        name, info, size = struct.unpack_from("<III", self._types, at)
        return info >> 24 & 0x1F, info & 0xFFFF, info >> 31, size, name, at

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        return self._strings[offset:end].decode("ascii", errors="replace") if end >= 0 else ""

    def _find(self, name: str) -> int:
        """Return the id of a struct, union, enum or typedef by name."""
        if not self._named:
            heads = np.array(self._at[1:], dtype=np.int64)
            words = np.frombuffer(self._types, dtype=np.uint8)
            columns = [words[heads + i].astype(np.uint32) << (8 * (i % 4)) for i in range(8)]
            names = columns[0] | columns[1] | columns[2] | columns[3]
            kinds = (columns[4] | columns[5] | columns[6] | columns[7]) >> 24 & 0x1F
            for kind in (INT, TYPEDEF, ENUM64, ENUM, UNION, STRUCT):
                for index in np.flatnonzero((kinds == kind) & (names != 0)):
                    key = (self._string(int(names[index])), kind == TYPEDEF)
                    self._named[key] = int(index) + 1
        found = self._named.get((name, False)) or self._named.get((name, True))
        if not found:
            raise KernelFileError(f"the kernel has no type {name!r}")
        return found

    def _resolve(self, type_id: int) -> int:
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
