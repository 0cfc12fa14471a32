"""`timeline`, `timeline goto`, `reverse-…`: a recorded boot, and the way back in it."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.commands.framework.arguments import number_argument, timeout_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.run.run import StopResult, stopped
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings import timeline
from ptinspect.link.session import StopInfo
from ptinspect.output.model import Note, Report, Table, escape, headings

SECONDS = 300.0
TIMEOUT = timeout_argument(f"limit ({SECONDS:.0f})", SECONDS)
NAMES = ("start", "end", timeline.KPTI_ENTRY, timeline.KPTI_END)


def position(text: str) -> int | str:
    """Read a position: a number of instructions, also with commas, or a name. Raises UserError."""
    if text in NAMES:
        return text
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal():
        raise UserError(f"{text!r} is no position", f"a number of instructions, or {', '.join(NAMES)}")
    return int(digits)


@dataclass(frozen=True, kw_only=True)
class MovedResult(StopResult):
    """Where a recorded guest stands after a move."""

    position: int
    """Instructions executed since the start."""


@dataclass(frozen=True)
class TimelineResult:
    """Where the guest stands in a recorded run."""

    mode: str
    directory: str
    position: int
    end: int | None
    events: Mapping[str, int]
    """Positions by name."""
    states: list[int]
    """Positions of saved states."""
    nanoseconds: int | None = None
    """How long an instruction takes by the guest's clock; null in a recording of somebody else's."""


def moved(ctx: Context, stop: StopInfo) -> Report:
    """Say where the guest stands after a move."""
    at = timeline.replay_of(ctx.guest).position
    return stopped(ctx, stop, Note(f"position {at:,}", "dim"), kind=MovedResult, position=at)


@command(
    "timeline",
    group="Timeline",
    summary="Say where the guest stands in a recorded boot, and which positions are known",
    example="timeline",
    result=TimelineResult,
    needs=Needs.STOPPED,
    details="A position is a number of executed instructions; CPU time is what they took by the guest's "
    "clock, which goes on while the guest waits. launch --timeline DIR records a boot, "
    "timeline open DIR replays it.",
    expectable=True,
)
def show(guest: Guest) -> Report:
    """Say where the guest stands."""
    found = timeline.positions(guest)
    here = found.here
    named = {"start": 0, **found.events, **({} if here.end is None else {"end": here.end})}
    rows = [(at, name) for name, at in named.items()] + [(at, "saved state") for at in found.states if at]
    rows.append((here.position, "here"))
    result = TimelineResult(
        here.mode,
        here.directory,
        here.position,
        here.end,
        dict(found.events),
        list(found.states),
        found.period,
    )
    if here.mode == "record":
        return Report(result, (Note(f"recorded into {escape(here.directory)}: {here.position:,} so far"),))
    times = ["" if found.period is None else f"{at * found.period / 1e9:.6f} s" for at, _ in sorted(rows)]
    table = Table(
        headings(">position", ">CPU time", ""),
        [(f"{at:,}", took, name) for (at, name), took in zip(sorted(rows), times, strict=True)],
    )
    return Report(result, (Note(f"replay of {escape(here.directory)}"), table))


@command(
    "timeline goto",
    group="Timeline",
    summary="Go to a position of a recorded boot",
    example="timeline goto kpti-entry",
    arguments=(
        argument(
            "position",
            type=position,
            metavar="POSITION",
            help="a number of instructions, start, end, kpti-entry, kpti-end",
        ),
        TIMEOUT,
    ),
    result=MovedResult,
    needs=Needs.STOPPED,
    details="Breakpoints do not stop it on the way. kpti-entry is the first instruction of the rewrite "
    "of the tables, kpti-end its return. States are saved on the way, so that later moves are short.",
)
def goto(ctx: Context, *, position: int | str, timeout: float) -> Report:
    """Go to a position."""
    return moved(ctx, timeline.go_to(ctx.guest, position, timeout))


@command(
    "reverse-continue",
    aliases=("rc",),
    group="Timeline",
    summary="Run backwards to the last breakpoint or watchpoint before",
    example="reverse-continue",
    arguments=(TIMEOUT,),
    result=MovedResult,
    needs=Needs.STOPPED,
    details="Where there is none, to the start of the recording. At a watchpoint the guest stands right "
    "after the access, and so it does at the last write to what watch table watches.",
    repeats=True,
)
def reverse_continue(ctx: Context, *, timeout: float) -> Report:
    """Run backwards."""
    from ptinspect.guest.recordings.way_back import back

    return moved(ctx, back(ctx.guest, timeout))


@command(
    "reverse-stepi",
    aliases=("rsi",),
    group="Timeline",
    summary="Step back one instruction, or N",
    example="reverse-stepi 4",
    arguments=(number_argument("count", 1, 1 << 62, "instructions (1)", nargs="?", default=1),),
    result=MovedResult,
    needs=Needs.STOPPED,
    repeats=True,
)
def reverse_stepi(ctx: Context, *, count: int) -> Report:
    """Step back."""
    return moved(ctx, timeline.step_back(ctx.guest, count))


@command(
    "reverse-finish",
    group="Timeline",
    summary="Run backwards to the call of the current function",
    example="reverse-finish",
    arguments=(TIMEOUT,),
    result=MovedResult,
    needs=Needs.STOPPED,
    repeats=True,
)
def reverse_finish(ctx: Context, *, timeout: float) -> Report:
    """Run backwards to the instruction that called."""
    return moved(ctx, timeline.back_to_call(ctx.guest, timeout))
