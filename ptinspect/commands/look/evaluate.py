"""`print`: the value of an expression as addresses are written, and what lies there."""

from __future__ import annotations

import argparse

from ptinspect.arch.bits import MASK64, VirtAddr, bit
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import SNAP, add_cpu_option
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError
from ptinspect.guest import expression
from ptinspect.guest.names import names_at_hand
from ptinspect.guest.regions import name_of
from ptinspect.guest.source import Tables, source
from ptinspect.output.model import Column, Note, Report, Styled, Table, hex_address

FORMATS = {"x": "hexadecimal", "d": "signed", "u": "unsigned", "t": "binary", "c": "character", "a": "place"}


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("expression", nargs="+", type=piece, metavar="EXPR", help=expression.ADDRESS_HELP)
    add("--format", "-f", choices=tuple(FORMATS), help=", ".join(f"{k} {v}" for k, v in FORMATS.items()))
    add_cpu_option(parser)
    add("--snap", type=argtypes.snapshot, metavar="SNAP", help=SNAP.options["help"])


def piece(text: str) -> str:
    """Read a piece of an expression."""
    return text


argtypes.completes("address", piece)


@command(
    "print",
    aliases=("p",),
    group="Look",
    summary="Evaluate an expression, and say what lies at that address",
    example="print kpti_install_ng_mappings+0x40",
    configure=_configure,
    details="Sums and differences of numbers (0x…, decimal, 4K, 2M), symbols and $registers; pa:… for a "
    "physical address. print/x, /d, /u, /t, /c or /a show one form alone. x shows memory. Types "
    "are GDB's: gdb print …",
    slash="--format",
)
def evaluate(ctx: Context, args: argparse.Namespace) -> Report:
    """Evaluate an expression."""
    address = expression.address(" ".join(args.expression))
    value = address.value(names_at_hand(ctx.guest, args.cpu, args.snap))
    near = None if address.physical else _nearest(ctx, value, args.snap)
    region = "" if address.physical else _region(ctx, value, args.snap)
    result = {
        "expression": address.text,
        "value": hex_address(value),
        "decimal": value,
        "signed": value - (bit(value, 63) << 64),
        "physical": address.physical,
        "symbol": "" if near is None else near[0],
        "offset": None if near is None else near[1],
        "region": region,
    }
    if args.format is not None:
        return Report(result, (Note(_as(args.format, value, near)),))
    rows = [("", Styled(f"{'pa:' if address.physical else ''}{value:#x}", "address"))]
    rows.append(("decimal", Styled(str(value))))
    if bit(value, 63):
        rows.append(("signed", Styled(str(result["signed"]))))
    if near is not None:
        rows.append(("symbol", Styled(f"{near[0]}+{near[1]:#x}")))
    if region:
        rows.append(("region", Styled(region)))
    return Report(result, (Table((Column(""), Column("")), rows),))


def _as(form: str, value: int, near: tuple[str, int] | None) -> str:
    if form == "d":
        return str(value - (bit(value, 63) << 64))
    if form == "c":
        low = value & 0xFF
        return f"{low} {chr(low)!r}" if 0x20 <= low < 0x7F else str(low)
    if form == "a":
        return f"{value:#x}" + ("" if near is None else f" ({near[0]}+{near[1]:#x})")
    return {"x": f"{value:#x}", "u": str(value), "t": f"{value:#b}"}[form]


def _nearest(ctx: Context, value: int, snap: str | None) -> tuple[str, int] | None:
    try:
        snapshot = ctx.snapshot_or_file(snap) if snap else None
        return ctx.nearest(value, snapshot) if bit(value, 55) else None
    except PtinspectError:
        return None


def _region(ctx: Context, value: int, snap: str | None) -> str:
    """Return the name of the part of the kernel's address space, where a guest or a snapshot tells."""
    if (ctx.state != "stopped" and not snap) or not bit(value, 63) or value > MASK64:
        return ""

    try:
        where = source(ctx.guest, Tables(snap=snap), "print", value)
        return name_of(ctx.guest, where, VirtAddr(value))
    except PtinspectError:
        return ""
