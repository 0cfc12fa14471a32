"""`poke descriptor`, `poke undo`: change one descriptor of the guest's tables, and change it back."""

from __future__ import annotations

from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest import injection
from ptinspect.guest.expression import Address, address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames
from ptinspect.output.encode import Hex
from ptinspect.output.model import Note, Report


@dataclass(frozen=True)
class PokeResult:
    """One descriptor that was changed."""

    descriptor_pa: PhysAddr
    before: Hex
    after: Hex


@command(
    "poke descriptor",
    group="Tables",
    summary="Write eight bytes at a physical address: inject a fault",
    example="poke descriptor pa:0x411f7000 0x411f8003 --yes",
    arguments=(
        argument("pa", type=address, metavar="PA", help="physical address, a multiple of 8: pa:0x…"),
        argument("value", type=arguments.number, metavar="VALUE", help="the new descriptor"),
        switch("--yes", "do not ask", "-y"),
    ),
    result=PokeResult,
    needs=Needs.STOPPED,
    details="Asks first, unless --yes. The CPUs' TLBs are not flushed. poke undo takes it back.",
    changes=True,
)
def descriptor(ctx: Context, *, pa: Address, value: int, yes: bool) -> Report:
    """Ask, then write."""
    place = pa.value(GuestNames(ctx.guest))
    if not yes:
        old = injection.descriptor_at(ctx.guest, place)
        if not ctx.confirm(f"change pa:{place:#x} from {old:#x} to {value:#x}?"):
            raise UserError("nothing was changed", "--yes where nobody can be asked")
    made = injection.poke(ctx.guest, place, value)
    return _report(made.pa, made.old, made.new)


@command(
    "poke undo",
    group="Tables",
    summary="Take the last poke back",
    example="poke undo",
    result=PokeResult,
    needs=Needs.STOPPED,
    changes=True,
)
def undo(guest: Guest) -> Report:
    """Write back what the last poke replaced, unless it was changed since."""
    done = injection.undo_poke(guest)
    return _report(done.pa, done.new, done.old)


def _report(pa: int, before: int, after: int) -> Report:
    result = PokeResult(PhysAddr(pa), Hex(before), Hex(after))
    return Report(result, (Note(f"pa:{pa:#x}: {before:#x} -> {after:#x}", "changed"),))
