"""Values as people read them: numbers by their type, strings, elements and members, within bounds."""

from __future__ import annotations

from itertools import groupby

from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError, MemoryReadError, PtinspectError, UserError
from ptinspect.guest.expressions.c_evaluator import Evaluator, Operand
from ptinspect.guest.expressions.guest_scope import MOST_AHEAD, GuestScope
from ptinspect.guest.expressions.machines import Numbers
from ptinspect.guest.guest import Guest
from ptinspect.linux.image.c_types import CType, Field
from ptinspect.text import escape

MOST_TEXT = 256
"""Bytes of a string that are shown."""
MOST_ELEMENTS = 16
"""Elements of an array that are shown."""
MOST_COMPARED = 64
"""Elements of an array within a struct that are looked at."""
MOST_MEMBERS = 2000
ANONYMOUS_DEPTH = 16
"""Structs without a name within each other."""
INSIDE_DEPTH, INSIDE_MEMBERS = 3, 12
"""Structs within each other, and members of each, that are shown in one line."""
LARGE = 4096
"""From here on an unsigned number is rather an address or flags than a count."""


@dataclass(frozen=True)
class Part:
    """A member of a struct, or an element of an array."""

    name: str
    type: CType
    offset: int
    """Bytes from the start of the whole."""
    bits: int
    """Width of a bit field; 0 for others."""
    operand: Operand


class Values:
    """Read values of one expression, and write them."""

    def __init__(self, guest: Guest, cpu: int | None = None, snap: str | None = None, form: str = "") -> None:
        """`form`: x, d, u, t, c or a for numbers; empty: as their types say."""
        self.guest, self.snap, self.form = guest, snap, form
        self.scope = GuestScope(guest, cpu, snap)
        self.evaluator = Evaluator(self.scope, Numbers(self.scope))

    def number(self, operand: Operand) -> int:
        """Return the value of a scalar, with its sign. Raises PtinspectError if it cannot be read."""
        found = self.evaluator.value(operand)
        assert isinstance(found, int)
        return found

    def text(self, operand: Operand, depth: int = 0) -> str:
        """Write a value in one line; what cannot be read is written as that."""
        kind = operand.type
        try:
            if kind.kind == "array" and self.scope.types.target(kind).is_text and not self.form:
                return self.string(operand) or '""'
            if kind.kind in ("array", "struct", "union"):
                return self._inside(operand, depth)
            if kind.kind in ("void", "float", "function"):
                return f"({kind.name})"
            return self.scalar(kind, self.number(operand))
        except (GuestError, KernelFileError, MemoryReadError, UserError) as error:
            return f"unreadable: {error.message}"

    def _inside(self, operand: Operand, depth: int) -> str:
        if depth >= INSIDE_DEPTH:
            return "{…}"
        parts = self.parts(operand)
        if operand.type.kind == "array":
            texts = [self.text(part.operand, depth + 1) for part in parts[:MOST_COMPARED]]
            runs = [(text, len(list(same))) for text, same in groupby(texts)]
            texts = [
                text if count == 1 else f"{text} ({count} times)" for text, count in runs[:MOST_ELEMENTS]
            ]
            cut = len(parts) > MOST_COMPARED or len(runs) > MOST_ELEMENTS
        else:
            texts = [f"{p.name} = {self.text(p.operand, depth + 1)}" for p in parts[:INSIDE_MEMBERS]]
            cut = len(parts) > INSIDE_MEMBERS
        return f"{{{', '.join([*texts, *(['…'] if cut else [])])}}}"

    def scalar(self, kind: CType, value: int) -> str:
        """Write a number of a type."""
        if self.form:
            return self.formed(value, kind)
        if kind.kind == "bool":
            return "true" if value else "false"
        if kind.kind == "enum":
            name = self.scope.types.enumerators(kind).get(value)
            return str(value) if name is None else f"{escape(name)} ({value})"
        if kind.kind == "pointer":
            return self._pointer(kind, value)
        if kind.is_text:
            return f"{value} {chr(value)!r}" if 0x20 <= value < 0x7F else str(value)
        large = not kind.signed and value >= LARGE
        return f"{value:#x}" if large else str(value)

    def formed(self, value: int, kind: CType) -> str:
        """Write a number in the form that was asked for."""
        bits = 8 * (kind.size or 8)
        unsigned = value & ((1 << bits) - 1)
        if self.form == "d":
            return str(unsigned - (bit(unsigned, bits - 1) << bits))
        if self.form == "c":
            low = unsigned & 0xFF
            return f"{low} {chr(low)!r}" if 0x20 <= low < 0x7F else str(low)
        if self.form == "a":
            return self._place(unsigned)
        return {"x": f"{unsigned:#x}", "u": str(unsigned), "t": f"{unsigned:#b}"}[self.form]

    def _pointer(self, kind: CType, value: int) -> str:
        if value == 0:
            return "NULL"
        if self.scope.types.target(kind).is_text:
            try:
                return f"{value:#x} {self.string_at(value, MOST_TEXT)}"
            except PtinspectError:
                return f"{value:#x}"
        return self._place(value)

    def _place(self, value: int) -> str:
        try:
            near = None if self.snap or not bit(value, 55) else self.guest.nearest(value)
        except PtinspectError:
            near = None
        return f"{value:#x}" if near is None else f"{value:#x} ({near})"

    def string(self, operand: Operand) -> str:
        """Return the string in an array, quoted and escaped; of one of unknown length up to its end."""
        assert isinstance(operand.address, int)
        most = operand.type.count or MOST_TEXT
        return self.string_at(operand.address, min(most, MOST_TEXT), physical=operand.physical)

    def string_at(self, address: int, most: int, *, physical: bool = False) -> str:
        """Return the string at an address, quoted and escaped. Raises GuestError if it cannot be read."""
        data = b""
        while len(data) < most and b"\0" not in data:  # what follows it may not be mapped
            step = min(most - len(data), 64 - (address + len(data)) % 64)
            data += self.scope.read((address + len(data)) & MASK64, step, physical=physical)
        text, end, _ = data.partition(b"\0")
        shown = escape(text.decode("utf-8", "backslashreplace"))
        return f'"{shown}"' + ("" if end or len(data) < MOST_TEXT else "…")

    def need_some(self, operand: Operand) -> None:
        """Raise what keeps all of a struct or an array from being read: its address is wrong then."""
        if not isinstance(operand.address, int):
            return
        at, trouble = operand.address, None
        for place in (at, *range((at | 0xFFF) + 1, at + min(operand.type.size, MOST_AHEAD), 0x1000)):
            try:
                self.scope.read(place, 1, physical=operand.physical)
                return
            except (GuestError, MemoryReadError) as error:
                trouble = trouble or error
        raise trouble or GuestError(f"{at:#x} cannot be read")

    def parts(self, operand: Operand) -> list[Part]:
        """Return the members of a struct or the elements of an array; those of anonymous ones with it."""
        kind = operand.type
        if isinstance(operand.address, int) and kind.size:
            self.scope.read_ahead(operand.address, kind.size, physical=operand.physical)
        if kind.kind == "array":
            return self._elements(operand)
        return self._members(operand, self.scope.types.fields(kind), 0)

    def _elements(self, array: Operand) -> list[Part]:
        kind = self.scope.types.target(array.type)
        found = []
        for number in range(min(array.type.count or 1, MOST_MEMBERS)):
            part = self.evaluator.field(array, kind, 8 * kind.size * number, 0)
            found.append(Part(f"[{number}]", kind, kind.size * number, 0, part))
        return found

    def _members(self, whole: Operand, fields: list[Field], before: int, depth: int = 0) -> list[Part]:
        found: list[Part] = []
        for field in fields:
            at = before + field.offset
            if len(found) >= MOST_MEMBERS:
                break
            if field.name:
                part = self.evaluator.field(whole, field.type, at, field.bits)
                found.append(Part(field.name, field.type, at // 8, field.bits, part))
            elif field.type.kind in ("struct", "union") and depth < ANONYMOUS_DEPTH:
                found += self._members(whole, self.scope.types.fields(field.type), at, depth + 1)
        return found
