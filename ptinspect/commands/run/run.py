"""`continue`, `interrupt`, `stepi`, `nexti`, `finish`, `until`: make the guest run and stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptinspect.arch.bits import VirtAddr
from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import Argument, Needs, argument, command
from ptinspect.commands.framework.context import SCRIPT_SECONDS, Context
from ptinspect.commands.run.watch_table import SeenWriteResult, in_short, writes_seen
from ptinspect.commands.stack.stack import watched
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest import run_control
from ptinspect.guest.breakpoints.listing import hits_of
from ptinspect.guest.breakpoints.watching import change_at
from ptinspect.guest.expression import ADDRESS_HELP, Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.instructions import instructions, named
from ptinspect.guest.names import cpu_state
from ptinspect.link.session import StopInfo
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, escape, hex_address

TIMEOUT = arguments.timeout_argument(f"give up after that time (scripts: {SCRIPT_SECONDS:.0f})")
FUNCTION_CPU = arguments.cpu_argument("whose function (default: the CPU that stopped)")


def _count(most: int) -> Argument:
    return arguments.number_argument("count", 1, most, "instructions (1)", nargs="?", default=1)


@dataclass(frozen=True, kw_only=True)
class StopResult:
    """Where and why the guest stopped."""

    state: str
    reason: str
    cpu: int
    pc: VirtAddr
    """A physical address while the MMU is off."""
    place: str
    breakpoint: int | None
    signal: str
    stack: str | Absent = ABSENT
    """The line of `stack watch`, where that is on."""
    instruction: str | Absent = ABSENT
    """The instruction that is next, at the prompt."""
    watched: str | Absent = ABSENT
    """What a watchpoint watches that stopped the guest, as typed."""
    old: str | Absent = ABSENT
    new: str | Absent = ABSENT
    """Its value before and after."""
    returned: bool | Absent = ABSENT
    """Whether the call has returned."""
    reached: bool | Absent = ABSENT
    """False where it stopped before any of the addresses."""
    writes: Sequence[SeenWriteResult] | Absent = ABSENT
    """The writes to descriptors that `watch table` watches, if there were any."""


@dataclass(frozen=True, kw_only=True)
class StepResult(StopResult):
    """Where a step has led."""

    interrupts_held: bool
    """False where an interrupt may have come in between."""


@dataclass(frozen=True)
class RunningResult:
    """The guest runs on."""

    state: str


def stopped(
    ctx: Context,
    stop: StopInfo,
    *notes: Note,
    kind: type[StopResult] = StopResult,
    words: str = "",
    **more: Any,
) -> Report:
    """Say where the guest stopped, why (in `words`, else the stop's own), and what is next."""
    guest = ctx.guest
    writes, shown_writes = writes_seen(guest)
    narrow = _in_aarch32(guest, stop.cpu)
    stop = stop if narrow is None else replace(stop, pc=narrow.pc)
    place, line = guest.place(stop.pc), watched(guest)
    following = _next(guest, stop) if ctx.interactive and narrow is None else ""
    change = change_at(guest, stop)
    seen = "" if change is None else f", {change.words}"
    result = kind(
        state="stopped",
        reason=str(stop.reason),
        cpu=stop.cpu,
        pc=VirtAddr(stop.pc),
        place=place,
        breakpoint=stop.breakpoint,
        signal=stop.signal,
        stack=line or ABSENT,
        instruction=following or ABSENT,
        writes=writes or ABSENT,
        watched=ABSENT if change is None else change.text,
        old=ABSENT if change is None else change.old,
        new=ABSENT if change is None else change.new,
        **more,
    )
    why = words or f"{stop.words}{seen}{_hits(guest, stop) if ctx.interactive else ''}"
    if writes and stop.breakpoint == writes[0].watch:
        why = in_short(writes[0])
    loud = stop.breakpoint is not None
    head = Note(f"stopped: cpu {stop.cpu} at {place}: {escape(why)}", "good" if loud else "plain")
    shown = [Note(f"=> {following}")] if following else []
    return Report(result, (head, *shown, *((Note(line, "dim"),) if line else ()), *notes, *shown_writes))


def _in_aarch32(guest: Guest, cpu: int) -> CpuState | None:
    """Return the registers of a CPU that runs a 32-bit process, of which GDB does not know; else None."""
    try:
        state = guest.stopped.cpu_state(cpu)
    except PtinspectError:
        return None
    return state if state.aarch32 else None


def _hits(guest: Guest, stop: StopInfo) -> str:
    """Say how often a breakpoint was hit, from the second time on."""
    if stop.breakpoint is None:
        return ""
    hits = hits_of(guest, stop.breakpoint)
    return f", hit {hits} times" if hits > 1 else ""


def _next(guest: Guest, stop: StopInfo) -> str:
    """Return the instruction that is next, nothing if it cannot be read."""
    try:
        (line, *_), _ = instructions(guest, stop.pc, 1, physical=guest.is_flat(stop.pc))
    except PtinspectError:
        return ""
    return named(guest, escape(line.partition(":")[2].strip()), physical=guest.is_flat(stop.pc))


@command(
    "continue",
    aliases=("c",),
    group="Run and stop",
    summary="Let the guest run until it stops",
    example="continue --timeout 30",
    arguments=(
        TIMEOUT,
        arguments.switch("--background", "do not wait until it stops", "-b"),
    ),
    result=StopResult | RunningResult,
    needs=Needs.TARGET,
    details="Ctrl-C stops it. --background returns at once; interrupt stops it then, and continue waits "
    "for it as if it had been started here.",
    repeats=True,
    runs=True,
)
def resume(ctx: Context, *, timeout: float | None, background: bool) -> Report:
    """Let the guest run, and wait until it stops unless that is not wanted."""
    stop = run_control.go_on(ctx.guest, None if background else ctx.time_limit(timeout))
    if stop is None:
        return Report(RunningResult("running"), (Note("running; interrupt stops it", "changed"),))
    return stopped(ctx, stop)


@command(
    "interrupt",
    group="Run and stop",
    summary="Stop the running guest",
    example="interrupt",
    result=StopResult,
    needs=Needs.TARGET,
    runs=True,
    not_in_gdb="Ctrl-C stops the guest",
)
def interrupt(ctx: Context) -> Report:
    """Stop the guest."""
    guest = ctx.guest
    if guest.state == "stopped":
        raise UserError("the guest is stopped already")
    return stopped(ctx, guest.target.interrupt())


@command(
    "stepi",
    aliases=("si", "s"),
    group="Run and stop",
    summary="Step one instruction, or N",
    example="stepi 4",
    arguments=(_count(1_000_000), TIMEOUT, arguments.CPU),
    result=StepResult,
    needs=Needs.STOPPED,
    details="There are no source lines here: s is the same.",
    repeats=True,
)
def stepi(ctx: Context, *, count: int, timeout: float | None, cpu: int | None) -> Report:
    """Step instructions on one CPU."""
    guest = ctx.guest
    stop = run_control.step(guest, count, cpu_state(guest, cpu).cpu, ctx.time_limit(timeout))
    held = guest.stopped.holds_interrupts
    notes = () if held else (Note("interrupts are taken while stepping: the stub holds none back", "dim"),)
    return stopped(ctx, stop, *notes, kind=StepResult, interrupts_held=held)


@command(
    "nexti",
    aliases=("ni", "n", "next"),
    group="Run and stop",
    summary="Step one instruction, or N, over calls",
    example="nexti",
    arguments=(_count(10_000), TIMEOUT, FUNCTION_CPU),
    result=StopResult,
    needs=Needs.STOPPED,
    details="A bl or blr runs until it has returned to this task and frame, whatever else comes there "
    "meanwhile: a breakpoint stops first. There are no source lines here: n is the same.",
    repeats=True,
)
def nexti(ctx: Context, *, count: int, timeout: float | None, cpu: int | None) -> Report:
    """Step instructions of one CPU; calls run until they have returned."""
    return _after_call(ctx, run_control.step_over(ctx.guest, count, cpu, ctx.time_limit(timeout)))


@command(
    "finish",
    aliases=("fin",),
    group="Run and stop",
    summary="Run until the current function has returned",
    example="finish",
    arguments=(TIMEOUT, FUNCTION_CPU),
    result=StopResult,
    needs=Needs.STOPPED,
    details="In the same task and frame, on whatever CPU: other tasks and deeper calls of the same "
    "function that return to the same place go on.",
    repeats=True,
    runs=True,
)
def finish(ctx: Context, *, timeout: float | None, cpu: int | None) -> Report:
    """Run until the function at the program counter has returned to its caller."""
    return _after_call(ctx, run_control.finish(ctx.guest, cpu, ctx.time_limit(timeout)))


def _after_call(ctx: Context, found: run_control.Return) -> Report:
    """Say where a call has returned to, or what stopped the guest before."""
    if found.returned is None:
        return stopped(ctx, found.stop)
    notes = () if found.returned else (Note("stopped before it returned", "changed"),)
    words = "returned" if found.returned else ""
    return stopped(ctx, found.stop, *notes, words=words, returned=found.returned)


@command(
    "until",
    aliases=("u", "advance"),
    group="Run and stop",
    summary="Run until an address is reached",
    example="until kpti_install_ng_mappings",
    arguments=(
        argument("addresses", nargs="+", type=arguments.location, metavar="ADDR", help=ADDRESS_HELP),
        TIMEOUT,
    ),
    result=StopResult,
    needs=Needs.STOPPED,
    runs=True,
)
def until(ctx: Context, *, addresses: Sequence[Address], timeout: float | None) -> Report:
    """Run until one of the addresses is reached."""
    guest = ctx.guest
    found = run_control.until(guest, addresses, ctx.time_limit(timeout))
    if found.reached:
        return stopped(ctx, found.stop, words="arrived")
    missed = Note(f"stopped before {', '.join(map(hex_address, found.addresses))}", "changed")
    return stopped(ctx, found.stop, missed, reached=False)
