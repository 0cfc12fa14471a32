"""`print`: the value of an expression as addresses are written, and what lies there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, bit
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU, SNAP
from ptinspect.commands.framework.command import argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError
from ptinspect.guest.expression import ADDRESS_HELP
from ptinspect.guest.expression import address as read_address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import early, names_at_hand
from ptinspect.guest.regions import name_of
from ptinspect.guest.roots import Tables, source
from ptinspect.output.encode import ABSENT, Absent, Hex
from ptinspect.output.model import Column, Note, Report, Styled, Table

if TYPE_CHECKING:
    from ptinspect.stack.kernel_code import Near

FORMATS = {"x": "hexadecimal", "d": "signed", "u": "unsigned", "t": "binary", "c": "character", "a": "place"}


def piece(text: str) -> str:
    """Read a piece of an expression."""
    return text


arguments.completes("address", piece)


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


@command(
    "print",
    aliases=("p",),
    group="Look",
    summary="Evaluate an expression, and say what lies at that address",
    example="print kpti_install_ng_mappings+0x40",
    arguments=(
        argument("expression", nargs="+", type=piece, metavar="EXPR", help=ADDRESS_HELP),
        argument(
            "--format", "-f", choices=tuple(FORMATS), help=", ".join(f"{k} {v}" for k, v in FORMATS.items())
        ),
        CPU,
        SNAP,
    ),
    result=PrintResult,
    details="Sums and differences of numbers (0x…, decimal, 4K, 2M), symbols and $registers; pa:… for a "
    "physical address. print/x, /d, /u, /t, /c or /a show one form alone. x shows memory. Types "
    "are GDB's: gdb print …",
    slash="--format",
)
def evaluate(
    guest: Guest, *, expression: list[str], format: str | None, cpu: int | None, snap: str | None
) -> Report:
    """Evaluate an expression."""
    address = read_address(" ".join(expression))
    value = address.value(names_at_hand(guest, cpu, snap))
    near = _nearest(guest, value, snap, address.physical)
    as_linked, pa, note = early(guest, address, snap)
    result = PrintResult(
        expression=address.text,
        value=Hex(value),
        decimal=value,
        signed=value - (bit(value, 63) << 64),
        physical=address.physical,
        symbol="" if near is None else near.symbol,
        offset=None if near is None else near.offset,
        region="" if address.physical else _region(guest, value, snap),
        pa=ABSENT if pa is None else PhysAddr(pa),
        as_linked=as_linked or ABSENT,
    )
    if format is not None:
        return Report(result, (Note(_as(format, value, near)),))
    rows = [("", Styled(f"{'pa:' if address.physical else ''}{value:#x}", "address"))]
    rows.append(("decimal", Styled(str(value))))
    if bit(value, 63):
        rows.append(("signed", Styled(str(result.signed))))
    if near is not None:
        rows.append(("symbol", Styled(f"{near}")))
    if result.region:
        rows.append(("region", Styled(result.region)))
    if pa is not None:
        rows.append(("lies at", Styled(f"pa:{pa:#x}", "address")))
    table = Table((Column(""), Column("")), rows)
    return Report(result, (table, Note(note, "changed")) if note else (table,))


def _as(form: str, value: int, near: Near | None) -> str:
    if form == "d":
        return str(value - (bit(value, 63) << 64))
    if form == "c":
        low = value & 0xFF
        return f"{low} {chr(low)!r}" if 0x20 <= low < 0x7F else str(low)
    if form == "a":
        return f"{value:#x}" + ("" if near is None else f" ({near})")
    return {"x": f"{value:#x}", "u": str(value), "t": f"{value:#b}"}[form]


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
