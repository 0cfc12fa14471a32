"""`disassemble`: the instructions of a function, with the place of the program counter."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ptinspect.arch.bits import VirtAddr, bit
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU, address_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames, cpu_state
from ptinspect.output.model import Note, Report, Styled, Table, escape, spanned

COUNT = 16
"""Instructions shown of a longer function, or where nobody knows the function."""
BEFORE = 6
"""Those of them that lie before the address that was asked for."""
MOST = 4096
CODE_COLUMNS = 50
"""What an instruction may take of a line of 80."""

_LINE = re.compile(r"(?:=>)?\s*(0x[0-9a-f]+)(?: <[^>]*>)?:\s*(.*)")
_TARGET = re.compile(r"(0x[0-9a-f]{9,16})(?: <[^>]*>)?")


@dataclass(frozen=True)
class Instruction:
    """One instruction as GDB writes it."""

    address: VirtAddr
    text: str


@dataclass(frozen=True)
class DisassembleResult:
    """The instructions of a function, or a part of them."""

    address: VirtAddr
    function: str
    start: VirtAddr | None
    end: VirtAddr | None
    whole: bool
    instructions: list[Instruction]


@command(
    "disassemble",
    aliases=("disas",),
    group="Look",
    summary="Show the instructions of a function",
    example="disassemble kpti_install_ng_mappings",
    needs=Needs.STOPPED,
    arguments=(
        address_argument("address", nargs="?", metavar="ADDR"),
        argument(
            "-n", dest="count", type=arguments.whole(1, MOST), metavar="N", help="N instructions from ADDR on"
        ),
        argument("--all", action="store_true", help="the whole function"),
        CPU,
    ),
    result=DisassembleResult,
    details=f"Without ADDR: where the CPU stands. Of a function longer than {COUNT} instructions those "
    "around the address are shown; --all shows all, -n N so many from ADDR on. GDB reads the code as the "
    "CPU does. x/8i ADDR shows as many as wanted, too.",
)
def disassemble(
    guest: Guest, *, address: Address | None, count: int | None, all: bool, cpu: int | None
) -> Report:
    """Show instructions."""
    pc = cpu_state(guest, cpu).pc
    at = pc if address is None else address.value(GuestNames(guest, cpu))
    if at % 4:
        raise UserError(f"{at:#x} is no multiple of 4", "instructions are four bytes, aligned")
    start, end, name = _bounds(guest, at)
    first, length = (at, count) if count is not None else _window(at, start, end, all)
    try:
        listing = guest.stopped.gdb_command(f"x/{length}i {first:#x}")
    except PtinspectError as error:
        raise UserError(
            f"no code can be read at {first:#x}: {error.message}", "x/8gx ADDR; walk ADDR"
        ) from error
    lines = [_instruction(guest, line, pc) for line in listing.expandtabs(8).splitlines()]
    whole = not end or (first <= start and first + 4 * length >= end)
    body: list[Note | Table] = [Note(f"{name} ({(end - start) // 4} instructions)", "title")] if name else []
    body += [spanned(spans) for spans, _ in lines]
    if not whole and count is None:
        body.append(Note("--all shows the whole function", "dim"))
    result = DisassembleResult(
        address=VirtAddr(at),
        function=name,
        start=VirtAddr(start) if end else None,
        end=VirtAddr(end) if end else None,
        whole=whole,
        instructions=[found for _, found in lines if found is not None],
    )
    return Report(result, body)


def _bounds(guest: Guest, address: int) -> tuple[int, int, str]:
    """Return first address and end of the function, as the next symbol tells, and its name."""
    near = guest.nearest(address)
    if near is None:
        return address, 0, ""
    name, offset = near
    start = address - offset
    after = guest.nearest(address + 4)
    low, high = address, address + 4 * MOST
    if after is None or after[0] != name:
        return start, address + 4, name
    while high - low > 4:  # the first address that is no longer of this symbol
        middle = low + (high - low) // 8 * 4
        found = guest.nearest(middle)
        low, high = (middle, high) if found is not None and found[0] == name else (low, middle)
    return start, high, name


def _window(address: int, start: int, end: int, everything: bool) -> tuple[int, int]:
    """Return the first instruction that is shown, and how many are."""
    if not end:
        return address, COUNT
    length = (end - start) // 4
    if everything or length <= COUNT:
        return start, min(length, MOST)
    return max(start, min(address - 4 * BEFORE, end - 4 * COUNT)), COUNT


def _instruction(guest: Guest, line: str, pc: int) -> tuple[list[Styled], Instruction | None]:
    """Return a line of GDB's with the symbols that it may not know, and the instruction."""
    match = _LINE.match(line)
    if match is None:
        return [Styled(escape(line), "bad")], None
    address, code = int(match[1], 16), escape(match[2])
    near = guest.nearest(address)
    place = "" if near is None else f"+{near[1]:#x}"
    mark = "=> " if address == pc else "   "
    shown = named(guest, code)
    code = _TARGET.sub(lambda found: found[1], code)
    if len(shown) > CODE_COLUMNS:  # a long name: the address is shorter
        shown = code
    parts = [
        Styled(mark, "changed"),
        Styled(f"{address:#x}", "address"),
        Styled(f" {place:<6} ", "dim"),
        Styled(shown, "changed" if address == pc else "plain"),
    ]
    return parts, Instruction(VirtAddr(address), " ".join(code.split()))


def named(guest: Guest, code: str) -> str:
    """Return an instruction with symbols for the addresses that it goes to, or takes."""
    return _TARGET.sub(lambda found: _place(guest, int(found[1], 16)), code)


def _place(guest: Guest, address: int) -> str:
    """Return the symbol for an address that lies in it, else the address: data may have no symbols."""
    near = guest.nearest(address) if bit(address, 55) else None
    if near is None:
        return f"{address:#x}"
    return f"<{near[0]}{f'+{near[1]:#x}' if near[1] else ''}>"
