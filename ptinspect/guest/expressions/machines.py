"""Who does what an expression says: numbers of the guest as it stands, or GDB at the next stop."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Self

from ptinspect.arch.bits import MASK64
from ptinspect.errors import UserError
from ptinspect.guest.expressions.c_evaluator import Scope, Word
from ptinspect.linux.image.c_types import ULONG, CType


def converted(value: int, type: CType) -> int:
    """Return a number as one of a type: cut off, and with its sign (6.3.1.2, 6.3.1.3)."""
    if type.kind == "bool":
        return int(value != 0)
    bits = 8 * (type.size or 8)
    value &= (1 << bits) - 1
    return value - (1 << bits) if type.signed and value >> (bits - 1) else value


def calculated(sign: str, left: int, right: int, type: CType) -> int:
    """Return what an operator makes of two numbers of one type. Raises UserError on a division by zero."""
    if sign in ("/", "%"):
        if right == 0:
            raise UserError(f"a division by zero: {left} {sign} 0")
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)  # towards zero (6.5.5)
        found = quotient if sign == "/" else left - right * quotient
    else:
        found = _PLAIN[sign](left, right)
    return int(found) if sign in _COMPARISONS else converted(found, type)


_COMPARISONS = ("==", "!=", "<", ">", "<=", ">=")
_PLAIN: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "&": operator.and_, "|": operator.or_,
    "^": operator.xor, "<<": operator.lshift, ">>": operator.rshift, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


def _int(word: Word) -> int:
    assert isinstance(word, int)
    return word


class Numbers:
    """Calculate with the registers and the memory of the guest as it stands."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def register(self, name: str, type: CType) -> Word:
        """Return a register."""
        return converted(self._scope.register(name), type)

    def task(self) -> Word:
        """Return the address of the task that runs."""
        return self._scope.task()

    def load(self, address: Word, type: CType, *, physical: bool) -> Word:
        """Read an integer."""
        data = self._scope.read(_int(address) & MASK64, type.size, physical=physical)
        return converted(int.from_bytes(data, "little"), type)

    def convert(self, value: Word, type: CType) -> Word:
        """Convert a number."""
        return converted(_int(value), type)

    def binary(self, sign: str, left: Word, right: Word, type: CType) -> Word:
        """Calculate."""
        return calculated(sign, _int(left), _int(right), type)

    def choose(self, condition: Word, yes: Callable[[], Word], no: Callable[[], Word]) -> Word:
        """Return one of two."""
        return yes() if condition else no()


class Words(str):
    """What GDB has to calculate, of a type that it knows."""

    type: str
    """GDB's name of its type; `truth` for what is 0 or 1."""

    def __new__(cls, text: str, type: str) -> Self:
        """Note the type."""
        made = super().__new__(cls, text)
        made.type = type
        return made


class GdbWords:
    """Write what GDB has to calculate at each stop; what is known now is a number in it.

    Every operand is cast to its type, so that GDB needs no types of the kernel, and its language no matter.
    """

    def __init__(self, scope: Scope) -> None:
        """`scope`: tells whether there is such a register, and whose task runs."""
        self._scope = scope

    def register(self, name: str, type: CType) -> Word:
        """Name a register as GDB does. Raises UserError if there is none."""
        spelt = f"${self._scope.spelling(name)}"
        if spelt == "$cpsr":
            spelt = f"({spelt} & 0xffffffff)"  # flags are no number to GDB, until something is done with them
        return self.convert(spelt, type)

    def task(self) -> Word:
        """Return the address of the task that runs: SP_EL0 in the kernel (arch/arm64/asm/current.h)."""
        return self.register("SP_EL0", ULONG)

    def load(self, address: Word, type: CType, *, physical: bool) -> Word:
        """Have an integer read."""
        if physical:
            raise UserError("GDB reads no physical memory in a condition", "a virtual address")
        plain = _plain(type)
        return Words(f"*({plain} *)({_text(address)})", plain)

    def convert(self, value: Word, type: CType) -> Word:
        """Convert a number, or have one converted."""
        if isinstance(value, int):
            return converted(value, type)
        plain = _plain(type)
        known = value.type if isinstance(value, Words) else ""
        if known == plain or (known == "truth" and (type.size < 8 or type.kind == "bool")):
            return value
        return (
            Words(f"({value} != 0)", "truth") if type.kind == "bool" else Words(f"(({plain}) {value})", plain)
        )

    def binary(self, sign: str, left: Word, right: Word, type: CType) -> Word:
        """Calculate, or have it done."""
        if isinstance(left, int) and isinstance(right, int):
            return calculated(sign, left, right, type)
        if right == 0 and (sign in ("+", "-", "|", "^") or (sign == "!=" and _is_truth(left))):
            return left
        a, b = self.convert(left, type), right if sign in ("<<", ">>") else self.convert(right, type)
        text = f"({_text(a)} {sign} {_text(b)})"
        if sign in _COMPARISONS:
            return Words(text, "truth")
        return Words(text, _plain(type)) if type.size == 8 else self.convert(text, type)

    def choose(self, condition: Word, yes: Callable[[], Word], no: Callable[[], Word]) -> Word:
        """Return one of two, or have it chosen."""
        if isinstance(condition, int):
            return yes() if condition else no()
        a, b = yes(), no()
        type = "truth" if all(_is_truth(each) or each in (0, 1) for each in (a, b)) else ""
        return Words(f"({condition} ? {_text(a)} : {_text(b)})", type)


def _is_truth(word: Word) -> bool:
    return isinstance(word, Words) and word.type == "truth"


def _text(word: Word) -> str:
    """Write a number so that GDB takes it for the same, whatever its type: those above are long anyway."""
    if isinstance(word, str):
        return word
    if abs(word) <= 0x7FFF_FFFF:
        return f"({word})" if word < 0 else str(word)
    return f"((signed long) {word & MASK64:#x}ul)" if word < 0 else f"{word:#x}ul"


def _plain(type: CType) -> str:
    """Return the name of a type that GDB knows by itself."""
    names = {1: "char", 2: "short", 4: "int", 8: "long"}
    if type.kind == "pointer" or type.size not in names:
        type = ULONG
    return f"{'signed' if type.signed else 'unsigned'} {names[type.size]}"
