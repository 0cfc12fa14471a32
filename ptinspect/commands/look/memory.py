"""`x`, `disassemble`: memory as values, text and instructions, virtual through our own walk, or physical."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ptinspect.arch.bits import MASK64, VirtAddr, bit
from ptinspect.commands.framework.arguments import CPU, address_argument, number_argument, switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.instructions import TARGET, instructions, named
from ptinspect.guest.names import Located, cpu_state, located
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, Styled, Table, escape, headings, spanned

COUNT = 16
"""Instructions shown of a longer function, or where nobody knows the function."""
BEFORE = 6
"""Those of them that lie before the address that was asked for."""
MOST = 4096
CODE_COLUMNS = 50
"""What an instruction may take of a line of 80."""

_LINE = re.compile(r"(?:=>)?\s*(0x[0-9a-f]+)(?: <[^>]*>)?:\s*(.*)")


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
    physical: bool | Absent = ABSENT
    """True if the addresses are physical ones: as typed, or since the kernel has not mapped itself yet."""


@command(
    "disassemble",
    aliases=("disas",),
    group="Look",
    summary="Show the instructions of a function",
    example="disassemble kpti_install_ng_mappings",
    needs=Needs.STOPPED,
    arguments=(
        address_argument("address", nargs="?", metavar="ADDR"),
        number_argument("-n", 1, MOST, "N instructions from ADDR on", dest="count"),
        switch("--all", "the whole function"),
        CPU,
    ),
    result=DisassembleResult,
    details=f"Without ADDR: where the CPU stands. Of a function longer than {COUNT} instructions those "
    "around the address are shown; --all shows all, -n N so many from ADDR on. The code is read where it "
    "lies: physically (pa:) while the kernel has not mapped itself. x/8i ADDR shows as many as wanted, too.",
)
def disassemble(
    guest: Guest, *, address: Address | None, count: int | None, all: bool, cpu: int | None
) -> Report:
    """Show instructions."""
    pc = cpu_state(guest, cpu).pc
    at = Located(pc, guest.is_flat(pc)) if address is None else located(guest, address, cpu)
    if at.address % 4:
        raise UserError(f"{at.address:#x} is no multiple of 4", "instructions are four bytes, aligned")
    start, end, name = _bounds(guest, at)
    first, length = (at.address, count) if count is not None else _window(at.address, start, end, all)
    listing, missing = instructions(guest, first, length, physical=at.physical)
    lines = [_instruction(guest, line, pc, at.physical) for line in listing]
    whole = not end or (first <= start and first + 4 * length >= end)
    body: list[Note | Table] = [Note(f"{name} ({(end - start) // 4} instructions)", "title")] if name else []
    body += [spanned(spans) for spans, _ in lines]
    if missing:
        body.append(Note(missing, "bad"))
    if not whole and count is None:
        body.append(Note("--all shows the whole function", "dim"))
    result = DisassembleResult(
        address=VirtAddr(at.address),
        function=name,
        start=VirtAddr(start) if end else None,
        end=VirtAddr(end) if end else None,
        whole=whole,
        instructions=[found for _, found in lines if found is not None],
        physical=at.physical or ABSENT,
    )
    return Report(result, body)


def _bounds(guest: Guest, at: Located) -> tuple[int, int, str]:
    """Return first address and end of the function, as the next symbol tells, and its name."""
    code = guest.code()
    near = code.nearest(at.address, physical=at.physical)
    found = code.extent(at.address, physical=at.physical)
    if near is None or found is None:
        return at.address, 0, ""
    start, end = found
    most = at.address + 4 * MOST
    return start, most if end is None else min(end, most), near.symbol


def _window(address: int, start: int, end: int, everything: bool) -> tuple[int, int]:
    """Return the first instruction that is shown, and how many are."""
    if not end:
        return address, COUNT
    length = (end - start) // 4
    if everything or length <= COUNT:
        return start, min(length, MOST)
    return max(start, min(address - 4 * BEFORE, end - 4 * COUNT)), COUNT


def _instruction(guest: Guest, line: str, pc: int, physical: bool) -> tuple[list[Styled], Instruction | None]:
    """Return a line of GDB's with the symbols that it may not know, and the instruction."""
    match = _LINE.match(line)
    if match is None:
        return [Styled(escape(line), "bad")], None
    address, code = int(match[1], 16), escape(match[2])
    near = guest.nearest(address, physical=physical)
    place = "" if near is None else f"+{near.offset:#x}"
    mark = "=> " if address == pc else "   "
    shown = named(guest, code, physical=physical)
    code = TARGET.sub(lambda found: found[1], code)
    if len(shown) > CODE_COLUMNS:  # a long name: the address is shorter
        shown = code
    parts = [
        Styled(mark, "changed"),
        Styled(f"{'pa:' if physical else ''}{address:#x}", "address"),
        Styled(f" {place:<6} ", "dim"),
        Styled(shown, "changed" if address == pc else "plain"),
    ]
    return parts, Instruction(VirtAddr(address), " ".join(code.split()))


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
        form = format or "4gx"
        at = located(guest, address, cpu)
        where, text = at.address, replace(address, physical=at.physical)
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
        code = bit(number, 55) or guest.is_flat(number)  # any small number may lie in the image's memory
        return guest.place(number) if code else f"{number:#x}"
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
    """Disassemble with GDB what is read at an address."""
    listing, missing = instructions(guest, address, count, physical=physical)
    lines = [escape(line) for line in listing]
    shown = [_shown(guest, line, physical) for line in lines]
    body = [Note("\n".join(shown))] if lines else []
    return Report(LinesResult(lines), [*body, Note(missing, "bad")] if missing else body)


def _shown(guest: Guest, line: str, physical: bool) -> str:
    """Return a line of GDB's with symbols, and the mark of a physical address."""
    head, colon, code = line.partition(":")
    if physical:
        head = head.replace("0x", "pa:0x", 1)
    return head + colon + named(guest, code, physical=physical)


def _memory(text: Address, rows: Sequence[tuple[int, Sequence[str]]], data: bytes, missing: str) -> Report:
    """Show memory: address and cells of each line; `missing`: why it ends early."""
    prefix = "pa:" if text.physical else ""
    lines = [(Styled(f"{prefix}{address:#x}", "address"), " ".join(cells)) for address, cells in rows]
    body: list[Table | Note] = [Table(headings("address", "bytes"), lines)] if lines else []
    if missing:
        body.append(Note(missing, "bad"))
    return Report(MemoryResult(text.text, data.hex(), text.physical, missing), body)
