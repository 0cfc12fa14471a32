"""`poke descriptor`, `poke undo`: change one descriptor of the guest's tables, and change it back."""

from __future__ import annotations

import argparse

from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.guest import expression
from ptinspect.guest.names import GuestNames
from ptinspect.link.journal import POKE, Change
from ptinspect.output.model import Note, Report, hex_address


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("address", type=expression.address, metavar="PA", help="physical address, a multiple of 8: pa:0x…")
    add("value", type=lambda text: int(text, 0), metavar="VALUE", help="the new descriptor")
    add("--yes", "-y", action="store_true", help="do not ask")


@command(
    "poke descriptor",
    group="Tables",
    summary="Write eight bytes at a physical address: inject a fault",
    example="poke descriptor pa:0x411f7000 0x411f8003 --yes",
    needs=Needs.STOPPED,
    configure=_configure,
    details="Asks first, unless --yes. The CPUs' TLBs are not flushed. poke undo takes it back.",
    changes=True,
)
def descriptor(ctx: Context, args: argparse.Namespace) -> Report:
    """Ask, then write."""
    pa, value = args.address.value(GuestNames(ctx.guest)), args.value
    if pa % 8 or not 0 <= value < 1 << 64:
        raise UserError(f"pa:{pa:#x} = {value:#x}: a descriptor is eight bytes at a multiple of 8")
    old = int.from_bytes(ctx.stopped.memory.read(pa, 8), "little")
    if not args.yes and not ctx.confirm(f"change pa:{pa:#x} from {old:#x} to {value:#x}?"):
        raise UserError("nothing was changed", "--yes where nobody can be asked")
    write(ctx, pa, value)
    return _report(pa, old, value)


def write(ctx: Context, pa: int, value: int) -> int:
    """Write a descriptor, remember what was there, and return it."""
    session = ctx.stopped
    old = int.from_bytes(session.memory.read(pa, 8), "little")
    session.changes.make([Change(pa, old, value, what=POKE)])
    ctx.forget_stop()
    return old


@command(
    "poke undo",
    group="Tables",
    summary="Take the last poke back",
    example="poke undo",
    needs=Needs.STOPPED,
    changes=True,
)
def undo(ctx: Context, args: argparse.Namespace) -> Report:
    """Write back what the last poke replaced, unless it was changed since."""
    done = ctx.stopped.changes.made(POKE)
    if not done:
        raise UserError("nothing was poked")
    pa, old, value = done[-1].pa, done[-1].old, done[-1].new
    now = int.from_bytes(ctx.stopped.memory.read(pa, 8), "little")
    if now != value:
        raise UserError(f"pa:{pa:#x} holds {now:#x}, not {value:#x}: the guest changed it since")
    ctx.stopped.changes.undo([done[-1]])
    ctx.forget_stop()
    return _report(pa, value, old)


def _report(pa: int, old: int, value: int) -> Report:
    result = {"descriptor_pa": hex_address(pa), "before": hex_address(old), "after": hex_address(value)}
    return Report(result, (Note(f"pa:{pa:#x}: {old:#x} -> {value:#x}", "changed"),))
