"""`disassemble`: the instructions of a function, with the place of the program counter."""

from __future__ import annotations

import argparse
import re

from ptinspect.arch.bits import bit
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames, cpu_state
from ptinspect.output.model import Note, Report, Styled, Table, escape, hex_address, spanned

COUNT = 16
"""Instructions shown of a longer function, or where nobody knows the function."""
BEFORE = 6
"""Those of them that lie before the address that was asked for."""
MOST = 4096
CODE_COLUMNS = 50
"""What an instruction may take of a line of 80."""

_LINE = re.compile(r"(?:=>)?\s*(0x[0-9a-f]+)(?: <[^>]*>)?:\s*(.*)")
_TARGET = re.compile(r"(0x[0-9a-f]{9,16})(?: <[^>]*>)?")


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("address", nargs="?", type=expression.address, metavar="ADDR", help=expression.ADDRESS_HELP)
    add("-n", dest="count", type=argtypes.whole(1, MOST), metavar="N", help="N instructions from ADDR on")
    add("--all", action="store_true", help="the whole function")
    add_cpu_option(parser)


@command(
    "disassemble",
    aliases=("disas",),
    group="Look",
    summary="Show the instructions of a function",
    example="disassemble kpti_install_ng_mappings",
    needs=Needs.STOPPED,
    configure=_configure,
    details=f"Without ADDR: where the CPU stands. Of a function longer than {COUNT} instructions those "
    "around the address are shown; --all shows all, -n N so many from ADDR on. GDB reads the code as the "
    "CPU does. x/8i ADDR shows as many as wanted, too.",
)
def disassemble(ctx: Context, args: argparse.Namespace) -> Report:
    """Show instructions."""
    pc = cpu_state(ctx.guest, args.cpu).pc
    address = pc if args.address is None else args.address.value(GuestNames(ctx.guest, args.cpu))
    if address % 4:
        raise UserError(f"{address:#x} is no multiple of 4", "instructions are four bytes, aligned")
    start, end, name = _bounds(ctx, address)
    first, count = _window(address, start, end, args)
    try:
        said = ctx.stopped.gdb_command(f"x/{count}i {first:#x}")
    except PtinspectError as error:
        raise UserError(
            f"no code can be read at {first:#x}: {error.message}", "x/8gx ADDR; walk ADDR"
        ) from error
    lines = [_instruction(ctx, line, pc) for line in said.expandtabs(8).splitlines()]
    whole = not end or (first <= start and first + 4 * count >= end)
    body: list[Note | Table] = [Note(f"{name} ({(end - start) // 4} instructions)", "title")] if name else []
    body += [spanned(spans) for spans, _ in lines]
    if not whole and args.count is None:
        body.append(Note("--all shows the whole function", "dim"))
    result = {
        "address": hex_address(address),
        "function": name,
        "start": hex_address(start) if end else None,
        "end": hex_address(end) if end else None,
        "whole": whole,
        "instructions": [facts for _, facts in lines if facts],
    }
    return Report(result, body)


def _bounds(ctx: Context, address: int) -> tuple[int, int, str]:
    """Return first address and end of the function, as the next symbol tells, and its name."""
    near = ctx.nearest(address)
    if near is None:
        return address, 0, ""
    name, offset = near
    start = address - offset
    after = ctx.nearest(address + 4)
    low, high = address, address + 4 * MOST
    if after is None or after[0] != name:
        return start, address + 4, name
    while high - low > 4:  # the first address that is no longer of this symbol
        middle = low + (high - low) // 8 * 4
        found = ctx.nearest(middle)
        low, high = (middle, high) if found is not None and found[0] == name else (low, middle)
    return start, high, name


def _window(address: int, start: int, end: int, args: argparse.Namespace) -> tuple[int, int]:
    if args.count is not None:
        return address, args.count
    if not end:
        return address, COUNT
    length = (end - start) // 4
    if args.all or length <= COUNT:
        return start, min(length, MOST)
    first = max(start, min(address - 4 * BEFORE, end - 4 * COUNT))
    return first, COUNT


def _instruction(ctx: Context, line: str, pc: int) -> tuple[list[Styled], dict[str, str]]:
    """Return a line of GDB's with the symbols that it may not know, and what it says."""
    match = _LINE.match(line)
    if match is None:
        return [Styled(escape(line), "bad")], {}
    address, code = int(match[1], 16), escape(match[2])
    near = ctx.nearest(address)
    place = "" if near is None else f"+{near[1]:#x}"
    mark = "=> " if address == pc else "   "
    shown = named(ctx, code)
    code = _TARGET.sub(lambda found: found[1], code)
    if len(shown) > CODE_COLUMNS:  # a long name: the address is shorter
        shown = code
    parts = [
        Styled(mark, "changed"),
        Styled(f"{address:#x}", "address"),
        Styled(f" {place:<6} ", "dim"),
        Styled(shown, "changed" if address == pc else "plain"),
    ]
    return parts, {"address": hex_address(address), "text": " ".join(code.split())}


def named(ctx: Context, code: str) -> str:
    """Return an instruction with symbols for the addresses that it goes to, or takes."""
    return _TARGET.sub(lambda found: _place(ctx, int(found[1], 16)), code)


def _place(ctx: Context, address: int) -> str:
    """Return the symbol for an address that lies in it, else the address: data may have no symbols."""
    near = ctx.nearest(address) if bit(address, 55) else None
    if near is None:
        return f"{address:#x}"
    return f"<{near[0]}{f'+{near[1]:#x}' if near[1] else ''}>"
