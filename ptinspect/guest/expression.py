"""Addresses as people write them: numbers, symbols and registers, sums of them, and ranges."""

from __future__ import annotations

import re

from ptinspect.arch.bits import MASK64
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, UserError
from ptinspect.typed import Protocol

ADDRESS_HELP = "address: 0x…, SYMBOL[+OFFSET], $REGISTER[-OFFSET]; physical: pa:0x…, pa:SYMBOL"
PHYSICAL_END = 1 << 52
"""No physical address lies above (Arm ARM D8.1.8)."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_TERM = r"\s*([+-]?)\s*([^\s+-]+)"
HEX = r"0[xX]_*[0-9a-fA-F][0-9a-fA-F_]{0,99}"
DECIMAL = r"[0-9][0-9_]{0,99}"
"""Numbers as people group their digits, none so long that Python would not read it."""
_SIZE = rf"({HEX}|{DECIMAL})\s*([kKmMgGtTpP]?)(?:[iI]?[bB])?"
_OF_SIZE = r"(?:(?<=[0-9a-f])/0x[0-9a-f]+)?( \[[\w-]+\])?$"
"""What the kernel prints after the offset into a function: its size, and its module (kernel/kallsyms.c)."""
_FROM_TO = r"(?:0x)?([0-9a-fA-F]{8,16})-(?:0x)?([0-9a-fA-F]{8,16})"
"""A range as the kernel's own lists have it: /proc/PID/maps, kernel_page_tables, /proc/iomem."""
_NAME = r"\$\w+|[A-Za-z_.][\w.$]*"


class Names(Protocol):
    """Resolve the names that an expression may use."""

    def symbol(self, name: str) -> int:
        """Return the run-time virtual address of a kernel symbol. Raises PtinspectError."""
        ...

    def physical(self, name: str) -> int:
        """Return the physical address at which a kernel symbol lies. Raises PtinspectError."""
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
    """As typed, the sign removed; of a module's symbol `NAME [MODULE]`."""
    value: int | None
    """The number, or None for a symbol or a register."""


@dataclass(frozen=True)
class Address:
    """An address as typed; `value` needs names only if it uses any."""

    text: str
    """As typed."""
    physical: bool
    """True if it began with `pa:`: its symbols stand for where they lie in physical memory."""
    terms: tuple[Term, ...]
    """The summands."""

    @property
    def names_symbol(self) -> bool:
        """Whether a symbol is among them."""
        return any(term.value is None and not term.text.startswith("$") for term in self.terms)

    def value(self, names: Names | None = None) -> int:
        """Return the address, 64 bits. Raises UserError if a name cannot be resolved."""
        total = self._physical_sum(names) if self.physical and self.names_symbol else self._sum(names)
        if not 0 <= total <= MASK64:
            hint = "one address is wanted here, no range" if total < 0 else ""
            raise UserError(f"{self.text!r} lies outside of 64 bits", hint)
        return total

    def _physical_sum(self, names: Names | None) -> int:
        """Return the sum with symbols where they lie, unless the offset to there is among the summands."""
        try:
            total = self._sum(names)
        except GuestError:
            total = -1
        return total if 0 <= total < PHYSICAL_END else self._sum(names, lies=True)

    def _sum(self, names: Names | None, *, lies: bool = False) -> int:
        total = 0
        for term in self.terms:
            total += term.sign * (_named(term.text, names, lies) if term.value is None else term.value)
        return total


@dataclass(frozen=True)
class Range:
    """A range of addresses as typed."""

    text: str
    """As typed."""
    start: Address
    """First address."""
    end: Address | None = None
    """First address past the end, or None."""
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


def parse_number(text: str) -> int | None:
    """Return the number that `text` is: 0x…, decimal, or 16 hex digits as kernels print; else None."""
    if re.fullmatch(rf"{HEX}|[0-9a-fA-F]{{16}}", text):
        return int(text.replace("_", ""), 16)
    if re.fullmatch(DECIMAL, text):
        return int(text.replace("_", ""))
    return None


def _named(text: str, names: Names | None, lies: bool) -> int:
    if names is None:
        raise UserError(f"{text!r}: no guest and no kernel file to look it up in", "use a number: 0x…")
    if text.startswith("$"):
        return names.register(text[1:])
    return names.physical(text) if lies else names.symbol(text)


def address(text: str) -> Address:
    """Read an address expression: numbers, symbols and registers joined by + and -.

    `func+0x17c/0x200 [module]`, as a call trace has it, is that place in the function. Raises UserError.
    """
    physical = text.lower().startswith("pa:")
    body = text[3:] if physical else text
    after = re.search(_OF_SIZE, body)
    body, module = (body[: after.start()], after[1] or "") if after else (body, "")
    terms: list[Term] = []
    term = re.compile(_TERM)
    position = 0
    while position < len(body):
        match = term.match(body, position)
        if match is None or (terms and not match[1]) or (not terms and match[1] == "-"):
            break
        value = _term_value(match[2])
        if value is None and not re.fullmatch(_NAME, match[2]):
            break
        named = value is None and not match[2].startswith("$")
        terms.append(Term(-1 if match[1] == "-" else 1, match[2] + module * named, value))
        position = match.end()
    if not terms or body[position:].strip():
        raise UserError(f"{text!r} is not an address", ADDRESS_HELP)
    return Address(text, physical, tuple(terms))


def _term_value(text: str) -> int | None:
    value = parse_number(text)
    if value is not None:
        return value
    return parse_size(text) if re.fullmatch(r"[0-9]+[KMGT]", text) else None


def address_range(text: str) -> Range:
    """Read a range: `A..B`, `A-B` of two whole numbers, `A+LENGTH` or one address. Raises UserError."""
    listed = re.fullmatch(_FROM_TO, text)
    first, dots, last = (f"0x{listed[1]}", "..", f"0x{listed[2]}") if listed else text.partition("..")
    if dots:
        start, end = address(first), address(last)
        if end.physical and not start.physical:
            raise UserError(f"{text!r}: the first address is virtual, the second physical")
        return Range(text, start, end=end)
    head, plus, tail = text.rpartition("+")
    length = parse_size(tail) if plus else None
    if head and length is not None:
        return Range(text, address(head), length=length)
    return Range(text, address(text))


def parse_size(text: str) -> int | None:
    """Return the bytes of a size: 4096, 0x1000, 4K, 2M, 1G; None if it is none."""
    match = re.fullmatch(_SIZE, text)
    if match is None:
        return None
    digits = match[1].replace("_", "").lower()
    return int(digits, 16 if digits.startswith("0x") else 10) * _UNITS[match[2].upper()]
