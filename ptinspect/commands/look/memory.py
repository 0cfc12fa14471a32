"""`x`: look at memory, virtual through our own walk, or physical."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace

from ptinspect.arch.bits import MASK64
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.look.disassemble import named
from ptinspect.errors import GuestError, UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames
from ptinspect.output.model import Note, Report, escape
from ptinspect.output.views import run as views

_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_PAGE = 4096
LIMIT = 1 << 20
"""Bytes that one `x` may show."""


FOLLOWS = "x"
"""Name in Context.memo of what the next `x` without an address shows."""


@dataclass(frozen=True)
class Follows:
    """Say where `x` goes on."""

    form: str
    """Count, shape and unit as typed."""
    address: int
    """First address that was not shown."""
    text: expression.Address
    """The same as if it had been typed; physical or not."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", nargs="?", type=expression.address, metavar="ADDR", help=expression.ADDRESS_HELP
    )
    parser.add_argument("--format", "-f", metavar="NFU", help="as behind x/ in GDB: 8gx, s, 4i (4gx)")
    add_cpu_option(parser)


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
    configure=_configure,
    details="x/COUNT FORMAT SIZE as in GDB: formats x (hex), d, u, c, s (string), a (address with "
    "symbol), i (instructions); sizes b, h, w, g. Virtual addresses go through our own walk, so "
    "the MMU may be off and the CPU at EL0. Without ADDR, and with Enter: what follows what was shown.",
    slash="--format",
    repeats=True,
    again="x",
)
def examine(ctx: Context, args: argparse.Namespace) -> Report:
    """Show memory, and remember what follows it."""
    last = ctx.memo.get(FOLLOWS)
    if args.address is None:
        if not isinstance(last, Follows):
            raise UserError("x: from which address on?", "x/8gx $sp")
        form, where, text = args.format or last.form, last.address, last.text
        address = where
    else:
        form, text = args.format or "4gx", args.address
        address = args.address.value(GuestNames(ctx.guest, args.cpu))
    count, shape, unit = parse_format(form)
    report, behind = _show(ctx, text, address, (count, shape, unit))
    ctx.memo[FOLLOWS] = Follows(form, behind, replace(text, text=f"{behind:#x}"))
    return report


def _show(
    ctx: Context, text: expression.Address, address: int, form: tuple[int, str, int]
) -> tuple[Report, int]:
    """Return what is at an address, and the first address behind it."""
    count, shape, unit = form
    if shape == "i":
        return _instructions(ctx, address, count, text.physical), address + 4 * count
    if shape == "s":
        return _strings(ctx, text, address, count)
    data, missing = read(ctx, address, count * unit, text.physical)
    values = [data[i : i + unit] for i in range(0, len(data) - unit + 1, unit)]
    across = {1: 8, 2: 8, 4: 4, 8: 2}[unit] if shape != "a" else 1
    rows = []
    for first in range(0, len(values), across):
        cells = [_cell(ctx, value, shape) for value in values[first : first + across]]
        rows.append((address + first * unit, "", cells))
    report = views.memory(text.text, rows, data, text.physical, missing)
    return report, (address + len(values) * unit) & MASK64


def read(ctx: Context, address: int, length: int, physical: bool) -> tuple[bytes, str]:
    """Return what can be read from `address` on, and why it ends early, if it does."""
    parts: list[bytes] = []
    position = address
    while position < address + length:
        step = min(_PAGE - position % _PAGE, address + length - position)
        try:
            part = (
                ctx.stopped.memory.read(position, step) if physical else ctx.view().read_virt(position, step)
            )
        except GuestError as error:
            return b"".join(parts), error.message
        parts.append(part)
        position += step
    return b"".join(parts), ""


def _cell(ctx: Context, value: bytes, shape: str) -> str:
    number = int.from_bytes(value, "little")
    if shape == "a":
        return ctx.place(number)
    if shape == "c":
        return f"{number} '{chr(number)}'" if 0x20 <= number < 0x7F else str(number)
    if shape == "d":
        return str(int.from_bytes(value, "little", signed=True))
    return str(number) if shape == "u" else f"{number:#0{2 + 2 * len(value)}x}"


def _strings(ctx: Context, text: expression.Address, address: int, count: int) -> tuple[Report, int]:
    rows: list[tuple[int, str, list[str]]] = []
    data, missing = read(ctx, address, min(count * 256, LIMIT), text.physical)
    position = 0
    for _ in range(count):
        if position >= len(data):
            break
        end = data.find(b"\0", position)
        piece = data[position : end if end >= 0 else len(data)][:256]
        rows.append((address + position, "", [f'"{escape(piece.decode("utf-8", "backslashreplace"))}"']))
        position += len(piece) + 1
    shown = data[: max(position - 1, 0)]
    report = views.memory(text.text, rows, shown, text.physical, missing if len(rows) < count else "")
    return report, (address + min(position, len(data))) & MASK64


def _instructions(ctx: Context, address: int, count: int, physical: bool) -> Report:
    """Disassemble with GDB, which reads through the CPU's own translation."""
    if physical and ctx.stopped.cpu_state(ctx.stopped.current_cpu).system.get("SCTLR_EL1", 0) & 1:
        raise UserError("x/i reads as the CPU does: physical addresses only while the MMU is off")
    text = ctx.stopped.gdb_command(f"x/{count}i {address:#x}")
    lines = [escape(line) for line in text.expandtabs(8).splitlines()]
    shown = [head + colon + named(ctx, code) for head, colon, code in (line.partition(":") for line in lines)]
    return Report({"lines": lines}, [Note("\n".join(shown))] if lines else [])
