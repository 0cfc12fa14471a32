"""`print`, `whatis`, `ptype`: the value of a C expression, what lies there, and its type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, bit
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU, SNAP
from ptinspect.commands.framework.command import argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest.expression import ADDRESS_HELP, Address
from ptinspect.guest.expression import address as read_address
from ptinspect.guest.expressions import c_tree
from ptinspect.guest.expressions.c_evaluator import Operand
from ptinspect.guest.expressions.values import Values
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import early
from ptinspect.guest.regions import name_of
from ptinspect.guest.roots import source
from ptinspect.guest.table_choice import Tables
from ptinspect.linux.image.c_types import ULONG, CType
from ptinspect.output.encode import ABSENT, Absent, Hex
from ptinspect.output.model import Note, Report, Styled, Table, escape, facts, headings, more

if TYPE_CHECKING:
    from ptinspect.stack.kernel_code import Near

FORMATS = {"x": "hexadecimal", "d": "signed", "u": "unsigned", "t": "binary", "c": "character", "a": "place"}
MOST_ROWS = 400
"""Members or elements that are shown."""
_TRACE = re.compile(r"[A-Za-z_.][\w.$]*\+0x[0-9a-f]+/0x[0-9a-f]+( \[[\w-]+\])?|.* \[[\w-]+\](\s*\+.*)?")
"""A place as a call trace has it, or in a module: the slash and the brackets are none of C's."""


EXPRESSION = argument(
    "expression", nargs="+", type=arguments.piece, metavar="EXPR", help=f"{c_tree.HELP}; {ADDRESS_HELP}"
)


@dataclass(frozen=True)
class PrintResult:
    """The value of an expression, and what lies there."""

    expression: str
    value: Hex
    decimal: int
    signed: int
    physical: bool
    symbol: str
    offset: int | None
    region: str
    pa: PhysAddr | Absent = ABSENT
    """Where it lies, of a symbol as linked."""
    as_linked: bool | Absent = ABSENT
    """True of a symbol if it is not known where the kernel will run."""
    type: str | Absent = ABSENT
    """Its type in C."""
    address: Hex | Absent = ABSENT
    """Where the value lies."""
    text: str | Absent = ABSENT
    """What it says: a string, the name of an enum's value, true or false."""


@dataclass(frozen=True)
class PartResult:
    """A member of a struct, or an element of an array."""

    name: str
    offset: int
    """Bytes."""
    type: str
    value: str
    bits: int | Absent = ABSENT
    """Width of a bit field."""


@dataclass(frozen=True)
class PartsResult:
    """A struct, union or array, and what it holds."""

    expression: str
    type: str
    address: Hex
    size: int
    physical: bool
    parts: list[PartResult]
    cut: bool
    """There are more parts."""
    text: str | Absent = ABSENT
    """The string that it is."""


@command(
    "print",
    aliases=("p", "inspect"),
    group="Look",
    summary="Evaluate a C expression, and say what lies at that address",
    example="print ((struct task_struct *)$SP_EL0)->comm",
    arguments=(
        EXPRESSION,
        argument(
            "--format", "-f", choices=tuple(FORMATS), help=", ".join(f"{k} {v}" for k, v in FORMATS.items())
        ),
        CPU,
        SNAP,
    ),
    result=PrintResult | PartsResult,
    details="C on integers, with the kernel's types where it describes them (BTF): print $current->comm, "
    "print ((struct page *) 0x…)->flags, print *(u64 *)($sp + 8), print sizeof(struct page). $current is the "
    "task that runs. A symbol is its address, unless its type is known (init_task, jiffies, variables that "
    "each CPU has): then it is the variable, and &NAME its address. *NUMBER has 8 bytes; pa:… is physical: "
    "print *pa:0x41475000. Also 4K, 2M, BIT(11), GENMASK(47, 12), offsetof, container_of. print/x, /d, /u, "
    "/t, /c or /a show one form alone. | and > are C's in parentheses, and before a number or register; else "
    "they are the shell's. ptype shows what a struct is made of; memory is not changed: poke.",
    slash="--format",
    raw=True,
)
def evaluate(
    guest: Guest, *, expression: list[str], format: str | None, cpu: int | None, snap: str | None
) -> Report:
    """Evaluate an expression."""
    text = " ".join(expression)
    values = Values(guest, cpu, snap, format or "")
    address = _plain_address(text)
    if address is not None and (_TRACE.fullmatch(text) or address.physical):
        value = address.value(values.scope.names)
        operand = Operand(ULONG, value, physical=address.physical)
    else:
        operand = values.evaluator.operand(c_tree.parse(text))
    if operand.type.scalar or operand.type.kind == "function":
        return _scalar(text, operand, values, address)
    return _parts(text, operand, values)


def _plain_address(text: str) -> Address | None:
    """Return the address that is typed, if it is no more than that."""
    try:
        return read_address(text)
    except UserError:
        return None


def _scalar(text: str, operand: Operand, values: Values, address: Address | None) -> Report:
    guest, snap = values.guest, values.snap
    number = values.number(operand)
    kind = operand.type
    bits = 8 * (kind.size or 8)
    value = number & ((1 << bits) - 1)
    plain = address is not None and operand.address is None and kind.kind == "int"
    leads = bits == 64 and (plain or not kind.signed)
    near = _nearest(guest, value, snap, operand.physical) if leads else None
    as_linked, pa, note = early(guest, address, snap) if plain and address is not None else (False, None, "")
    named = kind.kind != "int" or (kind.is_text and 0x20 <= number < 0x7F)
    says = values.scalar(kind, number) if named else ""
    lies = operand.address if isinstance(operand.address, int) else None
    result = PrintResult(
        expression=text,
        value=Hex(value),
        decimal=value,
        signed=value - (bit(value, bits - 1) << bits),
        physical=operand.physical,
        symbol="" if near is None else near.symbol,
        offset=None if near is None else near.offset,
        region="" if operand.physical or not leads else _region(guest, value, snap),
        pa=ABSENT if pa is None else PhysAddr(pa),
        as_linked=as_linked or ABSENT,
        type=kind.name,
        address=ABSENT if lies is None else Hex(lies),
        text=says or ABSENT,
    )
    if values.form:
        return Report(result, (Note(values.formed(number, kind)),))
    rows = [("", Styled(f"{'pa:' if operand.physical and lies is None else ''}{value:#x}", "address"))]
    if near is None and not result.region:  # an address is no count of anything
        rows.append(("decimal", Styled(str(number))))
        if bit(value, 63) and bits == 64 and number >= 0:
            rows.append(("signed", Styled(str(result.signed))))
    if says and kind.kind != "pointer":
        rows.append(("value", Styled(says.partition(" ")[2] if kind.is_text else says)))
    if kind.kind == "pointer" and says.endswith(('"', "…")):
        rows.append(("string", Styled(says.partition(" ")[2])))
    if near is not None:
        rows.append(("symbol", Styled(f"{near}")))
    if result.region:
        rows.append(("region", Styled(result.region)))
    if pa is not None:
        rows.append(("lies at", Styled(f"pa:{pa:#x}", "address")))
    if not plain:
        where = "" if lies is None else f" at {'pa:' if operand.physical else ''}{lies:#x}"
        rows.append(("type", Styled(f"{kind.name}{where}")))
    table = facts(rows)
    return Report(result, (table, Note(note, "changed")) if note else (table,))


def _parts(text: str, operand: Operand, values: Values) -> Report:
    """Show a struct or an array."""
    kind, at = operand.type, operand.address
    if not isinstance(at, int) or kind.kind not in ("struct", "union", "array"):
        raise UserError(f"{text}: a value of type {kind.name} is not shown", "cast it: (TYPE) EXPR")
    where = f"{'pa:' if operand.physical else ''}{at:#x}"
    values.need_some(operand)
    if kind.kind == "array" and values.scope.types.target(kind).is_text:
        string = values.string(operand)
        found = PartsResult(text, kind.name, Hex(at), kind.size, operand.physical, [], False, string)
        return Report(found, (Note(f"{string}   {kind.name} at {where}"),))
    parts = values.parts(operand)
    shown = [
        PartResult(part.name, part.offset, part.type.name, values.text(part.operand), part.bits or ABSENT)
        for part in parts[:MOST_ROWS]
    ]
    result = PartsResult(
        text, kind.name, Hex(at), kind.size, operand.physical, shown, len(parts) > len(shown)
    )
    rows = [(str(part.offset), part.name, escape(_cut(part.value))) for part in shown]
    title = f"{kind.name} at {where}, {kind.size} bytes"
    table = Table(headings(">offset", "member", "value"), rows, title)
    return Report(result, (table, *more(len(parts) - len(shown), hint="name one: EXPR[N]")))


MOST_SHOWN = 160


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


@dataclass(frozen=True)
class TypeResult:
    """A type."""

    type: str
    size: int


@dataclass(frozen=True)
class MemberResult:
    """A member of a struct or union."""

    name: str
    offset: int
    """Bytes."""
    type: str
    size: int
    """Bytes."""
    bits: int | Absent = ABSENT
    """Width of a bit field."""


@dataclass(frozen=True)
class LayoutResult:
    """What a type is made of."""

    type: str
    size: int
    """Bytes."""
    parts: list[MemberResult]
    values: dict[str, int]
    """Of an enum."""


TYPE = argument(
    "expression", nargs="+", type=arguments.piece, metavar="TYPE", help="the name of a type, or an expression"
)


@command(
    "whatis",
    group="Look",
    summary="Say of which type an expression is",
    example="whatis $current->mm",
    arguments=(TYPE,),
    result=TypeResult,
    raw=True,
)
def whatis(guest: Guest, *, expression: list[str]) -> Report:
    """Say the type of an expression."""
    kind, _ = _type(guest, expression)
    size = f", {kind.size} bytes" if kind.size else ""
    return Report(TypeResult(kind.name, kind.size), (Note(f"{kind.name}{size}"),))


@command(
    "ptype",
    group="Look",
    summary="Show what a struct, union or enum is made of",
    example="ptype struct page",
    arguments=(
        TYPE,
        argument("--form", choices=("o",), help="as in GDB's ptype/o: offsets are always shown"),
    ),
    result=LayoutResult,
    details="As the kernel's own type information (BTF) has it: what lies at which offset, in bytes. Of a "
    "pointer, what it leads to.",
    slash="--form",
    raw=True,
)
def ptype(guest: Guest, *, expression: list[str], form: str | None) -> Report:
    """Show the members of a type."""
    kind, values = _type(guest, expression)
    types = values.scope.types
    while kind.kind in ("pointer", "array"):
        kind = types.target(kind)
    names = {name: value for value, name in types.enumerators(kind).items()}
    parts = []
    if kind.kind in ("struct", "union") and kind.size:
        parts = values.parts(Operand(kind, address=0))
    found = [
        MemberResult(part.name, part.offset, part.type.name, part.type.size, part.bits or ABSENT)
        for part in parts
    ]
    title = f"{kind.name}, {kind.size} bytes" if kind.size else f"{kind.name}: its size is not known"
    body: list[Note | Table] = [Note(title, "title")]
    if found:
        rows = [
            (
                str(each.offset),
                str(each.size),
                each.name + (f" : {each.bits}" if part.bits else ""),
                each.type,
            )
            for each, part in zip(found, parts, strict=True)
        ]
        body.append(Table(headings(">offset", ">bytes", "member", "type"), rows))
    elif names:
        body.append(Table(headings(">value", "name"), [(str(v), n) for n, v in names.items()]))
    return Report(LayoutResult(kind.name, kind.size, found, names), body)


def _type(guest: Guest, expression: list[str]) -> tuple[CType, Values]:
    values = Values(guest)
    found = values.evaluator.type_of_either(c_tree.parse_type_or_expression(" ".join(expression)))
    return found, values


def _nearest(guest: Guest, value: int, snap: str | None, physical: bool) -> Near | None:
    """Return the symbol; of what is neither a kernel's address nor taken for a physical one, none."""
    try:
        snapshot = guest.snapshot_or_file(snap) if snap else None
        if snapshot is None and (physical or guest.is_flat(value)):
            return guest.nearest(value, physical=True)
        return guest.nearest(value, snapshot) if bit(value, 55) and not physical else None
    except PtinspectError:
        return None


def _region(guest: Guest, value: int, snap: str | None) -> str:
    """Return the name of the part of the kernel's address space, where a guest or a snapshot tells."""
    if (guest.state != "stopped" and not snap) or not bit(value, 63) or value > MASK64:
        return ""

    try:
        where = source(guest, Tables(snap=snap), value)
        return name_of(guest, where, VirtAddr(value))
    except PtinspectError:
        return ""
