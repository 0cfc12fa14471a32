"""`break`, `tbreak`, `delete`, `enable`, `condition`, `ignore` …: what stops the guest, in one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU, switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.breakpoints import listing
from ptinspect.guest.breakpoints.breakpoints import SymbolBreakpoint, symbol_breakpoints
from ptinspect.guest.breakpoints.listing import Listed
from ptinspect.guest.breakpoints.reachable import set_breakpoint
from ptinspect.guest.expression import ADDRESS_HELP, Address
from ptinspect.guest.guest import Guest
from ptinspect.link.gdb.slots import OWNERS, Purpose
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, Style, Styled, Table, escape, headings
from ptinspect.text import counted


@dataclass(frozen=True, kw_only=True)
class StopperResult:
    """What stops the guest."""

    id: int
    place: str
    """Where, with its symbol; of a watchpoint, the expression."""
    kind: str = "breakpoint"
    """breakpoint, watchpoint, read watchpoint, access watchpoint, or GDB's word."""
    hits: int = 0
    """How often it has stopped the guest, or was ignored."""
    ignore: int | Absent = ABSENT
    """How many of the next hits do not stop the guest."""
    condition: str | Absent = ABSENT
    enabled: bool = True
    temporary: bool = False
    cpu: int | Absent = ABSENT
    """The only CPU that it stops."""
    owner: str | Absent = ABSENT
    """What has set it, if it was not the user: stack guard, kpti."""


@dataclass(frozen=True, kw_only=True)
class BreakpointResult(StopperResult):
    """A breakpoint."""

    address: VirtAddr
    """A physical one for code that runs with the MMU off."""
    pending: bool | Absent = ABSENT
    """True while it is not known where the kernel runs: `address` is the kernel file's then."""
    places: Sequence[VirtAddr] | Absent = ABSENT
    """Where it is set now, if it follows a symbol: a physical one where the MMU is off, or by identity."""


@dataclass(frozen=True, kw_only=True)
class WatchpointResult(StopperResult):
    """A watchpoint, or another way of GDB's to stop the guest that is at no address."""

    address: VirtAddr | Absent = ABSENT
    """What is watched, if that is known."""


@dataclass(frozen=True, kw_only=True)
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
    """The breakpoints and watchpoints."""

    breakpoints: Sequence[BreakpointResult]
    watchpoints: Sequence[WatchpointResult]
    slots: Mapping[str, int] | Absent = ABSENT


@dataclass(frozen=True)
class DeleteResult:
    """The breakpoints that were deleted."""

    deleted: Sequence[int]


@dataclass(frozen=True)
class EnabledResult:
    """The breakpoints that were enabled or disabled."""

    numbers: Sequence[int]
    enabled: bool


NUMBER = arguments.whole(0, 1 << 31)
COUNT = arguments.whole(0, (1 << 31) - 1)
SOFTWARE = switch("--software", "write an instruction instead of a comparison")
CONDITION = argument(
    "--if", dest="condition", metavar="CONDITION", help="stop only if it holds; or at the end: if CONDITION"
)
FOLLOWS = (
    "At a symbol it follows the kernel: pending while it is not known where that runs, then at its own "
    "address; code that runs with the MMU off or by the identity map at its physical one; after a reset "
    "again. In a module ('NAME [MODULE]') it waits until that is loaded, and loaded again. At a number it "
    "compares the program counter, whatever is there: pa:0x… for a physical address. Under KVM it is always "
    "one of the CPU's own, of which there are few (status), --software or not. Without KVM, QEMU runs all "
    "code of its page one instruction at a time (QEMU accel/tcg/cpu-exec.c, check_for_breakpoints): on one "
    "that runs often the guest gets slow, 2.3 times the boot for do_exit of 6.18; disable, tbreak. A "
    "condition is C as for print, with the kernel's types (if $current->pid == 1); what GDB alone knows "
    "($_thread == 2) is GDB's."
)


@command(
    "break",
    aliases=("b",),
    group="Run and stop",
    summary="Set a breakpoint, or list what stops the guest",
    example="break start_kernel",
    arguments=(
        argument(
            "address",
            nargs="?",
            type=arguments.location,
            metavar="ADDR",
            help=f"{ADDRESS_HELP}; none: list the breakpoints and watchpoints",
        ),
        switch("--temporary", "delete it when it is hit", "-t"),
        SOFTWARE,
        CONDITION,
        argument(
            "--ignore", type=COUNT, metavar="COUNT", help="its first hits, so many, do not stop the guest"
        ),
        CPU,
    ),
    result=SetResult | ListResult,
    needs=Needs.TARGET,
    details=f"{FOLLOWS} The list has all, GDB's own too, and how often each has stopped the guest.",
    clause="--if",
)
def break_at(
    guest: Guest,
    *,
    address: Address | None,
    temporary: bool,
    software: bool,
    condition: str | None,
    cpu: int | None,
    ignore: int | None = None,
) -> Report:
    """Set a breakpoint, or list all."""
    if address is None:
        return _list(guest)
    guest.require("break", stopped=True)
    made, doubts = set_breakpoint(
        guest, address, hardware=not software, temporary=temporary, cpu=cpu, condition=condition
    )
    if ignore is not None:
        listing.ignore(guest, made.id, ignore)
    one = listing.numbered(guest, made.id)
    result = _breakpoint(one)
    slots, notes = slots_of(guest)
    words = [doubt.text for doubt in doubts] or ABSENT
    more = SetResult(**vars(result), slots=slots, as_linked=result.pending, warnings=words)
    where = placed(guest, made) if isinstance(made, SymbolBreakpoint) else f"at {one.what}"
    head = Note(f"breakpoint {one.number} {where}{_when(one)}", "changed" if one.pending else "plain")
    warnings = [Note(f"{doubt.text}; {doubt.hint}", "changed") for doubt in doubts]
    return Report(more, (head, *warnings, *notes))


@command(
    "tbreak",
    aliases=("tb",),
    group="Run and stop",
    summary="Set a breakpoint that goes when it is hit",
    example="tbreak start_kernel",
    arguments=(
        argument("address", type=arguments.location, metavar="ADDR", help=ADDRESS_HELP),
        SOFTWARE,
        CONDITION,
        CPU,
    ),
    result=SetResult,
    needs=Needs.STOPPED,
    details=FOLLOWS,
    clause="--if",
)
def tbreak(
    guest: Guest, *, address: Address, software: bool, condition: str | None, cpu: int | None
) -> Report:
    """Set a temporary breakpoint."""
    return break_at(guest, address=address, temporary=True, software=software, condition=condition, cpu=cpu)


def placed(guest: Guest, one: SymbolBreakpoint) -> str:
    """Say where a breakpoint at a symbol is now, or what it waits for."""
    places = ", ".join(guest.place(place) for place in one.places)
    waits = symbol_breakpoints(guest).waits_until(one.address)
    if not waits:
        return f"at {places}"
    also = f"; until then at {places}" if places else ""
    return f"at {one.address.text}, pending until {waits}{also}"


def _list(guest: Guest) -> Report:
    found = listing.listed(guest)
    slots, notes = slots_of(guest)
    rows = [(str(one.number), Styled(_kind(one), _tone(one)), str(one.hits), what_of(one)) for one in found]
    table = Table(headings(">no.", "kind", ">hits", "where"), rows, empty="no breakpoints")
    breakpoints = [_breakpoint(one) for one in found if _stands(one)]
    watchpoints = [watchpoint_result(one) for one in found if not _stands(one)]
    return Report(ListResult(breakpoints, watchpoints, slots), (table, *notes))


def _stands(one: Listed) -> bool:
    return one.kind == "breakpoint" and one.address is not None


def _tone(one: Listed) -> Style:
    return "changed" if one.pending else "plain" if one.enabled else "dim"


def _kind(one: Listed) -> str:
    owner = "" if one.purpose is Purpose.USER else OWNERS[one.purpose]
    parts = (one.kind, "temporary" * one.temporary, "pending" * one.pending, "disabled" * (not one.enabled))
    return ", ".join(filter(None, (*parts, owner)))


def what_of(one: Listed) -> str:
    only = "" if one.cpu is None else f", cpu {one.cpu} only"
    return f"{escape(one.what)}{only}{_when(one)}"


def _when(one: Listed) -> str:
    clause = f", if {escape(one.condition)}" if one.condition else ""
    return clause + (f", ignoring the next {counted(one.ignore, 'hit')}" if one.ignore else "")


def _breakpoint(one: Listed) -> BreakpointResult:
    places = ABSENT if one.places is None else [VirtAddr(place) for place in one.places]
    address = VirtAddr(one.address or 0)
    return BreakpointResult(address=address, pending=one.pending or ABSENT, places=places, **_of_any(one))


def watchpoint_result(one: Listed) -> WatchpointResult:
    return WatchpointResult(address=ABSENT if one.address is None else VirtAddr(one.address), **_of_any(one))


def _of_any(one: Listed) -> dict[str, Any]:
    return {
        "id": one.number,
        "place": one.what,
        "kind": one.kind,
        "hits": one.hits,
        "ignore": one.ignore or ABSENT,
        "condition": one.condition or ABSENT,
        "enabled": one.enabled,
        "temporary": one.temporary,
        "cpu": ABSENT if one.cpu is None else one.cpu,
        "owner": ABSENT if one.purpose is Purpose.USER else OWNERS[one.purpose],
    }


def slots_of(guest: Guest) -> tuple[Mapping[str, int] | Absent, list[Note]]:
    """Return how many of the CPU's breakpoints are in use where they are few, and the same for people."""
    if guest.state != "stopped" or (used := guest.stopped.slots_used()) is None:
        return ABSENT, []
    return used.as_json(), [Note(str(used), "dim")]


NUMBERS = argument(
    "numbers",
    nargs="*",
    type=arguments.either("all", other=NUMBER),
    metavar="N",
    help="numbers of breakpoints and watchpoints, or: all",
)


@command(
    "delete",
    aliases=("d",),
    group="Run and stop",
    summary="Delete breakpoints and watchpoints",
    example="delete 1",
    arguments=(NUMBERS,),
    result=DeleteResult,
    needs=Needs.STOPPED,
)
def delete(ctx: Context, *, numbers: Sequence[int | str]) -> Report:
    """Delete breakpoints by number."""
    known = [one.number for one in listing.listed(ctx.guest)]
    if not numbers and not (known and ctx.confirm(f"delete all {counted(len(known), 'breakpoint')}?")):
        raise UserError("delete: which breakpoints?", "delete 1, or delete all; break lists them")
    wanted = _chosen(ctx.guest, numbers)
    for number in wanted:
        listing.delete(ctx.guest, number)
    return Report(DeleteResult(wanted), (Note(f"deleted {counted(len(wanted), 'breakpoint')}"),))


def _chosen(guest: Guest, numbers: Sequence[int | str]) -> list[int]:
    """Return the numbers, all where none is named. Raises UserError if one of them is nobody's."""
    if not numbers or "all" in numbers:
        return [one.number for one in listing.listed(guest)]
    wanted = list(dict.fromkeys(int(number) for number in numbers))
    for number in wanted:
        listing.need(guest, number)
    return wanted


def _enabled(guest: Guest, numbers: Sequence[int | str], on: bool) -> Report:
    wanted = _chosen(guest, numbers)
    for number in wanted:
        listing.enable(guest, number, on)
    what = f"{'enabled' if on else 'disabled'} {counted(len(wanted), 'breakpoint')}"
    return Report(EnabledResult(wanted, on), (Note(what),))


@command(
    "enable",
    group="Run and stop",
    summary="Have breakpoints and watchpoints stop the guest again",
    example="enable 1",
    arguments=(NUMBERS,),
    result=EnabledResult,
    needs=Needs.STOPPED,
    details="Without a number: all of them.",
)
def enable(guest: Guest, *, numbers: Sequence[int | str]) -> Report:
    """Enable breakpoints."""
    return _enabled(guest, numbers, True)


@command(
    "disable",
    group="Run and stop",
    summary="Keep breakpoints and watchpoints, but do not stop at them",
    example="disable 1",
    arguments=(NUMBERS,),
    result=EnabledResult,
    needs=Needs.STOPPED,
    details="Without a number: all of them.",
)
def disable(guest: Guest, *, numbers: Sequence[int | str]) -> Report:
    """Disable breakpoints."""
    return _enabled(guest, numbers, False)


@command(
    "condition",
    group="Run and stop",
    summary="Stop at a breakpoint or watchpoint only if a condition holds",
    example="condition 1 $x0 == 5",
    arguments=(
        argument("number", type=NUMBER, metavar="N", help="its number"),
        argument("condition", nargs="*", metavar="CONDITION", help="C as for print; none: always"),
    ),
    result=BreakpointResult | WatchpointResult,
    needs=Needs.STOPPED,
    raw=True,
)
def condition(guest: Guest, *, number: int, condition: Sequence[str]) -> Report:
    """Give a breakpoint a condition, or take it away."""
    listing.set_condition(guest, number, " ".join(condition))
    return _altered(guest, number)


@command(
    "ignore",
    group="Run and stop",
    summary="Let the guest pass a breakpoint or watchpoint some times before it stops",
    example="ignore 1 5",
    arguments=(
        argument("number", type=NUMBER, metavar="N", help="its number"),
        argument("count", type=COUNT, metavar="COUNT", help="hits that do not stop the guest; 0: none"),
    ),
    result=BreakpointResult | WatchpointResult,
    needs=Needs.STOPPED,
    details="Only hits at which its condition holds count. break ADDR --ignore COUNT sets one so.",
)
def ignore(guest: Guest, *, number: int, count: int) -> Report:
    """Have the next hits of a breakpoint pass."""
    listing.ignore(guest, number, count)
    return _altered(guest, number)


def _altered(guest: Guest, number: int) -> Report:
    one = listing.numbered(guest, number)
    result = _breakpoint(one) if _stands(one) else watchpoint_result(one)
    return Report(result, (Note(f"{one.kind} {number}: {what_of(one)}"),))
