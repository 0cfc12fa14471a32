"""`break`, `delete`: set, list and delete breakpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.breakpoints.breakpoints import SymbolBreakpoint, symbol_breakpoints
from ptinspect.guest.breakpoints.reachable import set_breakpoint
from ptinspect.guest.expression import ADDRESS_HELP, Address
from ptinspect.guest.guest import Guest
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
    pending: bool | Absent = ABSENT
    """True while it is not known where the kernel runs: `address` is the kernel file's then."""
    places: Sequence[VirtAddr] | Absent = ABSENT
    """Where it is set now, if it follows a symbol: a physical one where the MMU is off, or by identity."""


@dataclass(frozen=True)
class SetResult(BreakpointResult):
    """The breakpoint that was set."""

    slots: Mapping[str, int] | Absent = ABSENT
    """How many of the CPU's are in use, where they are few."""
    as_linked: bool | Absent = ABSENT
    """True if the kernel may run elsewhere."""
    warnings: Sequence[str] | Absent = ABSENT
    """Why it may never be hit."""


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
    example="break start_kernel",
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
    details="At a symbol it follows the kernel: pending while it is not known where that runs, then at its "
    "own address; code that runs with the MMU off or by the identity map at its physical one; after a reset "
    "again. In a module ('NAME [MODULE]') it waits until that is loaded, and loaded again. At a number it "
    "compares the program counter, whatever is there: pa:0x… for a physical address. "
    "Under KVM it is always one of the CPU's own, of which there are few (status), --software or not.",
)
def break_at(
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
    guest.require("break", stopped=True)
    options: dict[str, Any] = {
        "hardware": not software, "temporary": temporary, "cpu": cpu, "condition": condition
    }  # fmt: skip
    made, doubts = set_breakpoint(guest, address, **options)
    warnings = [Note(f"{doubt.text}; {doubt.hint}", "changed") for doubt in doubts]
    words = [doubt.text for doubt in doubts] or ABSENT
    if isinstance(made, SymbolBreakpoint):
        result, where = _symbol_result(guest, made), _where(guest, made)
    else:
        result, where = _result(guest, made), f"at {guest.place(made.address)}"
    slots, notes = _slots(guest)
    head = Note(f"breakpoint {result.id} {where}", "changed" if result.pending is True else "plain")
    more = SetResult(**vars(result), slots=slots, as_linked=result.pending, warnings=words)
    return Report(more, (head, *warnings, *notes))


def _where(guest: Guest, one: SymbolBreakpoint) -> str:
    places = ", ".join(guest.place(place) for place in one.places)
    waits = symbol_breakpoints(guest).waits_until(one.address)
    if not waits:
        return f"at {places}"
    also = f"; until then at {places}" if places else ""
    return f"at {one.address.text}, pending until {waits}{also}"


def _listed(guest: Guest) -> Report:
    breakpoints = symbol_breakpoints(guest)
    breakpoints.refresh()
    found = {b.id: (_result(guest, b), "temporary" if b.temporary else "") for b in guest.target.breakpoints}
    for one in breakpoints.all:
        pending = "pending" if breakpoints.waits_until(one.address) else ""
        kind = " ".join(filter(None, ("temporary" if one.temporary else "", pending)))
        found[one.id] = (_symbol_result(guest, one), kind)
    slots, notes = _slots(guest)
    rows = [(str(b.id), b.place, kind) for _, (b, kind) in sorted(found.items())]
    table = Table((Column("no.", "right"), Column("address"), Column("kind")), rows, empty="no breakpoints")
    return Report(ListResult([b for _, (b, _) in sorted(found.items())], slots), (table, *notes))


def _result(guest: Guest, found: Breakpoint) -> BreakpointResult:
    return BreakpointResult(found.id, VirtAddr(found.address), guest.place(found.address))


def _symbol_result(guest: Guest, one: SymbolBreakpoint) -> BreakpointResult:
    places = [VirtAddr(place) for place in one.places]
    if places and not symbol_breakpoints(guest).waits_until(one.address):
        return BreakpointResult(one.id, places[0], guest.place(places[0]), ABSENT, places)
    linked = symbol_breakpoints(guest).linked_at(one.address)
    return BreakpointResult(one.id, VirtAddr(linked), one.address.text, True, places)


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
    ours = [one.id for one in symbol_breakpoints(ctx.guest).all]
    known = sorted({*ours, *(b.id for b in session.breakpoints)})
    if not numbers and not (known and ctx.confirm(f"delete all {len(known)} breakpoint(s)?")):
        raise UserError("delete: which breakpoints?", "delete 1, or delete all; break lists them")
    wanted = known if not numbers or "all" in numbers else [int(number) for number in numbers]
    for number in wanted:
        if number not in known:
            raise UserError(f"no breakpoint {number}", "break lists them")
    for number in dict.fromkeys(wanted):
        if not symbol_breakpoints(ctx.guest).delete(number):
            session.delete_breakpoint(number)
    return Report(DeleteResult(wanted), (Note(f"deleted {len(wanted)} breakpoint(s)"),))
