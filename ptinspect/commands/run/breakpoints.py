"""`break`, `delete`: set, list and delete breakpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.expression import ADDRESS_HELP, Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames
from ptinspect.link.session import Breakpoint
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Column, Note, Report, Table


@dataclass(frozen=True)
class BreakpointResult:
    """A breakpoint."""

    id: int
    address: VirtAddr
    """A physical one for code that runs with the MMU off."""
    place: str


@dataclass(frozen=True)
class SetResult(BreakpointResult):
    """The breakpoint that was set."""

    slots: Mapping[str, int] | Absent = ABSENT
    """How many of the CPU's are in use, where they are few."""
    as_linked: bool | Absent = ABSENT
    """True if the kernel may run elsewhere."""


@dataclass(frozen=True)
class ListResult:
    """The breakpoints that GDB knows."""

    breakpoints: Sequence[BreakpointResult]
    slots: Mapping[str, int] | Absent = ABSENT


@dataclass(frozen=True)
class DeleteResult:
    """The breakpoints that were deleted."""

    deleted: Sequence[int]


@command(
    "break",
    aliases=("b",),
    group="Run and stop",
    summary="Set a breakpoint, or list them",
    example="break pa:0x40289510",
    arguments=(
        argument(
            "address",
            nargs="?",
            type=arguments.location,
            metavar="ADDR",
            help=f"{ADDRESS_HELP}; none: list the breakpoints",
        ),
        argument("--temporary", "-t", action="store_true", help="delete it when it is hit"),
        argument("--software", action="store_true", help="write an instruction instead of a comparison"),
        argument("--if", dest="condition", metavar="CONDITION", help="a condition in GDB's language"),
        CPU,
    ),
    result=SetResult | ListResult,
    needs=Needs.TARGET,
    details="A breakpoint compares the program counter: code that runs with the MMU off or under the "
    "identity map stands at its physical address, pa:0x… Under KVM it is always one of the CPU's own, "
    "of which there are few (status), --software or not.",
)
def set_breakpoint(
    guest: Guest,
    *,
    address: Address | None,
    temporary: bool,
    software: bool,
    condition: str | None,
    cpu: int | None,
) -> Report:
    """Set a breakpoint, or list all."""
    if address is None:
        return _listed(guest)
    session = guest.require("break", stopped=True)
    found = session.set_breakpoint(
        address.value(GuestNames(guest, cpu)),
        hardware=not software,
        temporary=temporary,
        cpu=cpu,
        condition=condition,
    )
    early = guest.kernel is not None and address.names_symbol and not guest.view.placed
    slots, notes = _slots(guest)
    notes.insert(0, Note(f"breakpoint {found.id} at {guest.place(found.address)}"))
    if early:
        text = "it is not known yet where the kernel will run: with KASLR (no 'nokaslr') it is elsewhere"
        notes.append(Note(text, "changed"))
    as_linked = True if early else ABSENT
    return Report(SetResult(**vars(_result(guest, found)), slots=slots, as_linked=as_linked), notes)


def _listed(guest: Guest) -> Report:
    found = guest.target.breakpoints
    slots, notes = _slots(guest)
    rows = [(str(b.id), guest.place(b.address), "temporary" if b.temporary else "") for b in found]
    table = Table((Column("no.", "right"), Column("address"), Column("kind")), rows, empty="no breakpoints")
    return Report(ListResult([_result(guest, b) for b in found], slots), (table, *notes))


def _result(guest: Guest, found: Breakpoint) -> BreakpointResult:
    return BreakpointResult(found.id, VirtAddr(found.address), guest.place(found.address))


def _slots(guest: Guest) -> tuple[Mapping[str, int] | Absent, list[Note]]:
    """Return how many of the CPU's breakpoints are in use where they are few, and the same for people."""
    if guest.state != "stopped" or (used := guest.stopped.slots_used()) is None:
        return ABSENT, []
    return used.as_json(), [Note(str(used), "dim")]


@command(
    "delete",
    aliases=("d",),
    group="Run and stop",
    summary="Delete breakpoints",
    example="delete 1",
    arguments=(
        argument(
            "numbers",
            nargs="*",
            type=arguments.either("all", other=arguments.whole(0, 1 << 31)),
            metavar="N",
            help="numbers of breakpoints, or: all",
        ),
    ),
    result=DeleteResult,
    needs=Needs.STOPPED,
)
def delete(ctx: Context, *, numbers: Sequence[int | str]) -> Report:
    """Delete breakpoints by number."""
    session = ctx.guest.stopped
    known = [b.id for b in session.breakpoints]
    if not numbers and not (known and ctx.confirm(f"delete all {len(known)} breakpoint(s)?")):
        raise UserError("delete: which breakpoints?", "delete 1, or delete all; break lists them")
    wanted = known if not numbers or "all" in numbers else [int(number) for number in numbers]
    for number in wanted:
        if number not in known:
            raise UserError(f"no breakpoint {number}", "break lists them")
    for number in dict.fromkeys(wanted):
        session.delete_breakpoint(number)
    return Report(DeleteResult(wanted), (Note(f"deleted {len(wanted)} breakpoint(s)"),))
