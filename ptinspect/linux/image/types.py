"""Questions about the layout of a kernel's types, whichever format describes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from ptinspect.errors import KernelFileError

MAX_DEPTH = 32
"""Steps from a type to the one it stands for, and levels of arrays, that are followed."""
MAX_NESTED = 200
"""Anonymous types that the search for one member enters."""


class Offsets(Protocol):
    """Say where members are; all that most questions need."""

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
    """Its type."""
    bits: int
    """Width of a bit field; 0 for others."""


class Types(ABC):
    """Answer for sizes and member offsets."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._places: dict[str, Member] = {}

    # -- what a format tells ---------------------------------------------------------------------

    @abstractmethod
    def _find(self, name: str) -> int:
        """Return the id of a struct, union, enum, typedef or base type. Raises KernelFileError."""

    @abstractmethod
    def _resolve(self, type_id: int) -> int:
        """Follow typedefs and qualifiers. Raises KernelFileError."""

    @abstractmethod
    def members(self, type_id: int) -> list[Member]:
        """List the members of a struct or union; empty for anything else."""

    @abstractmethod
    def _array(self, type_id: int) -> tuple[int, int] | None:
        """Return element type and number of elements of a resolved array, else None."""

    @abstractmethod
    def _plain_size(self, type_id: int) -> int:
        """Return the bytes of a resolved type that is no array."""

    # -- what is asked ---------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the size of a type in bytes. Raises KernelFileError if the kernel has no such type."""
        return self._size(self._find(name))

    def has(self, path: str) -> bool:
        """Tell whether there is such a type, or such a member of it."""
        try:
            self._locate(path)
        except KernelFileError:
            return False
        return True

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

    def bit_field(self, path: str) -> tuple[int, int]:
        """Return offset and width in bits of a member that may be a bit field."""
        place = self._locate(path)
        return place.offset, place.bits or 8 * self._size(place.type_id)

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
        found = self._member(self._resolve(where.type_id), name, set())
        if found is None:
            raise KernelFileError(f"the kernel has no {path!r}: {name!r} is missing")
        offset, type_id, bits = where.offset + found.offset, found.type_id, found.bits
        for index in indices:
            array = self._array(self._resolve(type_id))
            if array is None or not index.isdecimal():
                raise KernelFileError(f"{path!r}: {name!r} is no array, or the index is no number")
            type_id, count = array
            if int(index) >= count:
                raise KernelFileError(f"{path!r}: {name!r} has {count} elements")
            offset += 8 * int(index) * self._size(type_id)
        return Member(name, offset, type_id, bits)

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
            found = self._member(self._resolve(member.type_id), name, seen)
            if found is not None:
                return Member(name, member.offset + found.offset, found.type_id, found.bits)
        return None

    def _size(self, type_id: int) -> int:
        """Return the size of a type in bytes, arrays multiplied out."""
        count = 1
        for _ in range(MAX_DEPTH):
            type_id = self._resolve(type_id)
            array = self._array(type_id)
            if array is None:
                return count * self._plain_size(type_id)
            type_id, elements = array
            count *= elements
        raise KernelFileError("the type information has an array that contains itself")
