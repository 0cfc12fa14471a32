"""`x`: look at memory, virtual through our own walk, or physical."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ptinspect.arch.bits import MASK64
from ptinspect.commands.framework.arguments import CPU, address_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.look.disassemble import named
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames
from ptinspect.output.model import Column, Note, Report, Styled, Table, escape

_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
LIMIT = 1 << 20
"""Bytes that one `x` may show."""
FOLLOWS = "x"
"""Name in Guest.kept of what the next `x` without an address shows."""


@dataclass(frozen=True)
class Follows:
    """Say where `x` goes on."""

    form: str
    """Count, shape and unit as typed."""
    address: int
    """First address that was not shown."""
    text: Address
    """The same as if it had been typed; physical or not."""


@dataclass(frozen=True)
class MemoryResult:
    """Memory as it was read."""

    address: str
    """As typed."""
    bytes: str
    """Hexadecimal digits, in the order of memory."""
    physical: bool
    error: str
    """Why it ends early, if it does."""


@dataclass(frozen=True)
class LinesResult:
    """Instructions, as GDB writes them."""

    lines: list[str]


def parse_format(text: str) -> tuple[int, str, int]:
    """Read GDB's count, format and size letters in any order. Raises UserError."""
    match = re.fullmatch(r"(\d*)([a-z]*)", text)
    if match is None:
        raise UserError(f"x/{text}: not a format", "for example x/8gx, x/s, x/4i")
    count = int(match[1] or 1)
    shape, unit = "x", 0
    for letter in match[2]:
        if letter in _SIZES:
            unit = _SIZES[letter]
        elif letter in "xducsai":
            shape = letter
        else:
            raise UserError(f"x/{text}: unknown letter {letter!r}", "formats xducsai, sizes bhwg")
    unit = {"a": 8, "i": 4, "s": 1}.get(shape) or unit or (1 if shape == "c" else 8)
    if not 1 <= count * unit <= LIMIT:
        raise UserError(f"x/{text}: between 1 byte and {LIMIT >> 20} MiB at once")
    return count, shape, unit


@command(
    "x",
    group="Look",
    summary="Show memory at a virtual or physical address",
    example="x/8gx pa:0x41475000",
    needs=Needs.STOPPED,
    arguments=(
        address_argument("address", nargs="?", metavar="ADDR"),
        argument("--format", "-f", metavar="NFU", help="as after x/ in GDB: 8gx, s, 4i (4gx)"),
        CPU,
    ),
    result=MemoryResult | LinesResult,
    details="x/COUNT FORMAT SIZE as in GDB: formats x (hex), d, u, c, s (string), a (address with "
    "symbol), i (instructions); sizes b, h, w, g. Virtual addresses go through our own walk, so "
    "the MMU may be off and the CPU at EL0. Without ADDR, and with Enter: what follows what was shown.",
    slash="--format",
    repeats=True,
    again="x",
)
def examine(guest: Guest, *, address: Address | None, format: str | None, cpu: int | None) -> Report:
    """Show memory, and remember what follows it."""
    last = guest.kept.get(FOLLOWS)
    if address is None:
        if not isinstance(last, Follows):
            raise UserError("x: from which address on?", "x/8gx $sp")
        form, where, text = format or last.form, last.address, last.text
    else:
        form, text = format or "4gx", address
        where = address.value(GuestNames(guest, cpu))
    report, after = _show(guest, text, where, parse_format(form))
    guest.kept[FOLLOWS] = Follows(form, after, replace(text, text=f"{after:#x}"))
    return report


def _show(guest: Guest, text: Address, address: int, form: tuple[int, str, int]) -> tuple[Report, int]:
    """Return what is at an address, and the first address past it."""
    count, shape, unit = form
    if shape == "i":
        return _instructions(guest, address, count, text.physical), address + 4 * count
    if shape == "s":
        return _strings(guest, text, address, count)
    data, missing = guest.read(address, count * unit, physical=text.physical)
    values = [data[i : i + unit] for i in range(0, len(data) - unit + 1, unit)]
    across = {1: 8, 2: 8, 4: 4, 8: 2}[unit] if shape != "a" else 1
    rows = []
    for first in range(0, len(values), across):
        cells = [_cell(guest, value, shape) for value in values[first : first + across]]
        rows.append((address + first * unit, cells))
    report = _memory(text, rows, data, missing)
    return report, (address + len(values) * unit) & MASK64


def _cell(guest: Guest, value: bytes, shape: str) -> str:
    number = int.from_bytes(value, "little")
    if shape == "a":
        return guest.place(number)
    if shape == "c":
        return f"{number} '{chr(number)}'" if 0x20 <= number < 0x7F else str(number)
    if shape == "d":
        return str(int.from_bytes(value, "little", signed=True))
    return str(number) if shape == "u" else f"{number:#0{2 + 2 * len(value)}x}"


def _strings(guest: Guest, text: Address, address: int, count: int) -> tuple[Report, int]:
    rows: list[tuple[int, list[str]]] = []
    data, missing = guest.read(address, min(count * 256, LIMIT), physical=text.physical)
    position = 0
    for _ in range(count):
        if position >= len(data):
            break
        end = data.find(b"\0", position)
        piece = data[position : end if end >= 0 else len(data)][:256]
        rows.append((address + position, [f'"{escape(piece.decode("utf-8", "backslashreplace"))}"']))
        position += len(piece) + 1
    shown = data[: max(position - 1, 0)]
    report = _memory(text, rows, shown, missing if len(rows) < count else "")
    return report, (address + min(position, len(data))) & MASK64


def _instructions(guest: Guest, address: int, count: int, physical: bool) -> Report:
    """Disassemble with GDB, which reads through the CPU's own translation."""
    if physical and guest.stopped.cpu_state(guest.stopped.current_cpu).system.get("SCTLR_EL1", 0) & 1:
        raise UserError("x/i reads as the CPU does: physical addresses only while the MMU is off")
    text = guest.stopped.gdb_command(f"x/{count}i {address:#x}")
    lines = [escape(line) for line in text.expandtabs(8).splitlines()]
    shown = [
        head + colon + named(guest, code) for head, colon, code in (line.partition(":") for line in lines)
    ]
    return Report(LinesResult(lines), [Note("\n".join(shown))] if lines else [])


def _memory(text: Address, rows: Sequence[tuple[int, Sequence[str]]], data: bytes, missing: str) -> Report:
    """Show memory: address and cells of each line; `missing`: why it ends early."""
    prefix = "pa:" if text.physical else ""
    lines = [(Styled(f"{prefix}{address:#x}", "address"), " ".join(cells)) for address, cells in rows]
    body: list[Table | Note] = [Table((Column("address"), Column("bytes")), lines)] if lines else []
    if missing:
        body.append(Note(missing, "bad"))
    return Report(MemoryResult(text.text, data.hex(), text.physical, missing), body)
