"""Argument types: addresses and ranges that name symbols and registers, sizes, levels, numbers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ptinspect.arch.bits import MASK64
from ptinspect.errors import UserError

ADDRESS_HELP = "address: 0x…, SYMBOL[+OFFSET], $REGISTER[-OFFSET], or pa:0x… for a physical one"
RANGE_HELP = "range: A..B (B not included), A+LENGTH, or one address"

LEVEL_NAMES: tuple[str, ...] = ("pgd", "p4d", "pud", "pmd", "pte")

Read = TypeVar("Read")
"""What a type makes of the text."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_TERM = re.compile(r"\s*([+-]?)\s*([^\s+-]+)")
_SIZE = re.compile(r"(0[xX][0-9a-fA-F_]+|[0-9_]+)\s*([kKmMgGtTpP]?)(?:[iI]?[bB])?")
_NAME = re.compile(r"\$\w+|[A-Za-z_.][\w.$]*")


class Names(Protocol):
    """Resolve the names that an expression may use."""

    def symbol(self, name: str) -> int:
        """Return the run-time virtual address of a kernel symbol. Raises PtinspectError."""
        ...

    def register(self, name: str) -> int:
        """Return the value of a register of the chosen CPU. Raises PtinspectError."""
        ...


@dataclass(frozen=True)
class Term:
    """One summand of an expression."""

    sign: int
    """1 or -1."""
    text: str
    """As typed, the sign removed."""
    value: int | None
    """The number, or None for a symbol or a register."""


@dataclass(frozen=True)
class Address:
    """An address as typed; `value` needs names only if it uses any."""

    text: str
    """As typed."""
    physical: bool
    """True if it began with `pa:`."""
    terms: tuple[Term, ...]
    """The summands."""

    def value(self, names: Names | None = None) -> int:
        """Return the address, 64 bits. Raises UserError if a name cannot be resolved."""
        total = 0
        for term in self.terms:
            total += term.sign * (_named(term.text, names) if term.value is None else term.value)
        if not 0 <= total <= MASK64:
            raise UserError(f"{self.text!r} lies outside of 64 bits")
        return total


@dataclass(frozen=True)
class Range:
    """A range of addresses as typed."""

    text: str
    """As typed."""
    start: Address
    """First address."""
    end: Address | None = None
    """First address behind the range, or None."""
    length: int | None = None
    """Length in bytes, or None."""

    @property
    def physical(self) -> bool:
        """Tell whether it is a range of physical addresses."""
        return self.start.physical

    def value(self, names: Names | None = None) -> tuple[int, int]:
        """Return the first and the last address, both included. Raises UserError if it is empty."""
        start = self.start.value(names)
        if self.end is not None:
            last = self.end.value(names) - 1
        else:
            last = start + (1 if self.length is None else self.length) - 1
        if last < start:
            raise UserError(f"{self.text!r} is empty: it ends before it begins")
        return start, min(last, MASK64)


def _named(text: str, names: Names | None) -> int:
    if names is None:
        raise UserError(f"{text!r}: no guest and no kernel file to look it up in", "use a number: 0x…")
    return names.register(text[1:]) if text.startswith("$") else names.symbol(text)


def parse_number(text: str) -> int | None:
    """Return the number that `text` is: 0x…, decimal, or 16 hex digits as kernels print; else None."""
    if re.fullmatch(r"0[xX][0-9a-fA-F_]+", text):
        return int(text, 16)
    if re.fullmatch(r"[0-9a-fA-F]{16}", text):
        return int(text, 16)
    if re.fullmatch(r"[0-9][0-9_]*", text):
        return int(text.replace("_", ""))
    return None


def number(text: str) -> int:
    """Read an unsigned 64-bit number. Raises UserError."""
    value = parse_number(text)
    if value is None or value > MASK64:
        raise UserError(f"{text!r} is not a 64-bit number", "write 0x… or decimal")
    return value


def address(text: str) -> Address:
    """Read an address expression: numbers, symbols and registers joined by + and -. Raises UserError."""
    physical = text.lower().startswith("pa:")
    body = text[3:] if physical else text
    terms: list[Term] = []
    position = 0
    while position < len(body):
        match = _TERM.match(body, position)
        if match is None or (terms and not match[1]) or (not terms and match[1] == "-"):
            break
        value = _term_value(match[2])
        if value is None and not _NAME.fullmatch(match[2]):
            break
        terms.append(Term(-1 if match[1] == "-" else 1, match[2], value))
        position = match.end()
    if not terms or body[position:].strip():
        raise UserError(f"{text!r} is not an address", ADDRESS_HELP)
    return Address(text, physical, tuple(terms))


def location(text: str) -> Address:
    """Read the address of an instruction; GDB's `*ADDR` is the same here. Raises UserError."""
    return address(text.removeprefix("*"))


def _term_value(text: str) -> int | None:
    value = parse_number(text)
    if value is not None:
        return value
    return _size(text) if re.fullmatch(r"[0-9]+[KMGT]", text) else None


def address_range(text: str) -> Range:
    """Read a range: `A..B`, `A+LENGTH` or one address. Raises UserError."""
    first, dots, last = text.partition("..")
    if dots:
        start, end = address(first), address(last)
        if end.physical and not start.physical:
            raise UserError(f"{text!r}: the first address is virtual, the second physical")
        return Range(text, start, end=end)
    head, plus, tail = text.rpartition("+")
    length = _size(tail) if plus else None
    if head and length is not None:
        return Range(text, address(head), length=length)
    return Range(text, address(text))


def _size(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1].replace("_", ""), 0) * _UNITS[match[2].upper()] if match else None


def size(text: str) -> int:
    """Read a size in bytes: 4096, 0x1000, 4K, 2M, 1G. Raises UserError."""
    value = _size(text)
    if not value:
        raise UserError(f"{text!r} is not a size", "write bytes, or 4K, 2M, 1G")
    return value


def level(text: str) -> int | str:
    """Read a level: -1 to 3, or Linux's name of it (pgd, p4d, pud, pmd, pte). Raises UserError."""
    if text.lower() in LEVEL_NAMES:
        return text.lower()
    if re.fullmatch(r"-1|[0-3]", text):
        return int(text)
    raise UserError(f"{text!r} is not a level", "write -1 to 3, or pgd, p4d, pud, pmd, pte")


def level_number(value: int | str, start_level: int) -> int:
    """Return the Arm level of a level as `level` read it, in a regime that starts at `start_level`.

    Linux counts from the leaves: pte is level 3, pmd 2, pud 1, p4d 0; pgd is the root's, and names
    above the root are folded into it (include/asm-generic/pgtable-nop4d.h and its like).
    """
    if isinstance(value, int):
        return value
    named = {"pgd": start_level, "p4d": 0, "pud": 1, "pmd": 2, "pte": 3}[value]
    return max(named, start_level)


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a type that reads a number between `minimum` and `maximum`, both included."""

    def read(text: str) -> int:
        value = parse_number(text)
        if value is None or not minimum <= value <= maximum:
            raise UserError(f"{text!r} is not a number from {minimum} to {maximum}")
        return value

    return read


def seconds(text: str) -> float:
    """Read a time in seconds: 30, 0.5, 30s, 2m. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|ms)?", text)
    if not match:
        raise UserError(f"{text!r} is not a time", "write seconds: 30, 0.5, 2m")
    return float(match[1]) * {"s": 1.0, "m": 60.0, "ms": 0.001}[match[2] or "s"]


def snapshot(text: str) -> str:
    """Read the name of a snapshot or of a snapshot file; `Context.snapshot_or_file` finds it."""
    if not text:
        raise UserError("a snapshot's name cannot be empty")
    return text


def command_word(text: str) -> str:
    """Read a word of a command's name."""
    return text


def register_name(text: str) -> str:
    """Read the name of a register, with or without `$`."""
    return text.removeprefix("$")


def guest_name(text: str) -> str:
    """Read the name of a reference guest."""
    return text


_KINDS: dict[object, str] = {
    address: "address",
    location: "address",
    address_range: "address",
    snapshot: "snapshot",
    command_word: "command",
    level: "level",
    register_name: "register",
    guest_name: "guest",
    Path: "file",
}


def completes(kind: str, reader: Callable[[str], Read]) -> Callable[[str], Read]:
    """Have `reader`, the type of an argument, completed as `kind` (commands/candidates.py)."""
    _KINDS[reader] = kind
    return reader


def completion_kind(action: argparse.Action) -> str:
    """Return what completes an argument: address, snapshot, command, file, or nothing."""
    return _KINDS.get(action.type, "")
