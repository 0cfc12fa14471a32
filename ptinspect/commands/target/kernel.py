"""`kernel` and `symbol`: the kernel file, and what it knows."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest import expression
from ptinspect.guest.names import names_at_hand
from ptinspect.output.model import Column, Note, Report, Table, escape, hex_address


def _configure_kernel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="Image, vmlinuz, or vmlinux")
    parser.add_argument("--force", action="store_true", help="use it even if the guest runs another kernel")


def _configure_symbol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", type=expression.address, metavar="SYMBOL|ADDR", help=expression.ADDRESS_HELP)


@command(
    "kernel",
    group="Guest",
    summary="Name the guest's kernel file, or show it",
    example="kernel vmlinux",
    configure=_configure_kernel,
    details="Symbols, and where the kernel runs, come from it. The same as --kernel FILE. The file of "
    "another kernel than the one in the stopped guest is refused (their code is compared).",
    changes=True,
)
def kernel(ctx: Context, args: argparse.Namespace) -> Report:
    """Name or show the kernel file."""
    if args.file is not None:
        if not args.file.is_file():
            raise UserError(f"no file {args.file}")
        before = ctx.guest.kernel_path, ctx.guest.force_kernel
        ctx.use_kernel(args.file, force=args.force)
        wrong = ctx.guest.kernel_refused
        if wrong is not None:
            ctx.use_kernel(before[0], force=before[1])
            raise wrong
    found = ctx.kernel
    if found is None:
        return Report({"file": None}, (Note("no kernel file; 'kernel FILE' names one", "dim"),))
    result = {
        "file": str(found.path),
        "banner": escape(found.banner),
        "symbols": len(found.symbols),
        "text": hex_address(found.text_va),
        "size": found.size,
    }
    rows = [
        ("file", str(found.path)),
        ("banner", escape(found.banner)),
        ("symbols", str(len(found.symbols))),
        ("linked at", f"{f'{found.text_va:#x}' if found.linked else 'not known'}, {found.size} bytes"),
    ]
    return Report(result, (Table((Column(""), Column("")), rows),))


@command(
    "symbol",
    aliases=("sym",),
    group="Guest",
    summary="Find a symbol, or what lies at an address",
    example="symbol kpti_install_ng_mappings",
    configure=_configure_symbol,
    details="With a stopped guest, addresses are those at run time, KASLR included; pa: where it lies.",
)
def symbol(ctx: Context, args: argparse.Namespace) -> Report:
    """Find a symbol by name or by address."""
    file = ctx.kernel
    if file is None:
        raise UserError("symbols need the kernel file", "kernel FILE, or --kernel FILE")
    live = ctx.session is not None and ctx.session.state.name == "STOPPED"
    address = args.what.value(names_at_hand(ctx.guest))
    near = ctx.nearest(address)
    name = "" if near is None else near[0]
    offset = None if near is None else near[1]
    pa = _physical(ctx, address) if live and not args.what.physical else None
    result = {
        "address": hex_address(address),
        "symbol": name,
        "offset": offset,
        "pa": None if pa is None else hex_address(pa),
    }
    where = f", pa:{pa:#x}" if pa is not None else ""
    return Report(result, (Note(ctx.place(address) + where + ("" if name else ": no symbol there")),))


def _physical(ctx: Context, address: int) -> int | None:
    try:
        return ctx.view().pa_of(address)
    except PtinspectError:
        return None
