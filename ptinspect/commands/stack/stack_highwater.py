"""`stack highwater`, `stack watch`: how deep stacks get while the guest runs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError, TargetTimeout, UserError
from ptinspect.guest import expression
from ptinspect.guest.kernel_stacks import open_stacks, task_of
from ptinspect.guest.names import GuestNames
from ptinspect.link.journal import PAINT, Change
from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Stack, Stacks
    from ptinspect.stack.highwater import HighWater

SECONDS = 10.0
SHOWN = 20


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "where",
        nargs="*",
        type=expression.address,
        metavar="WHERE",
        help=f"end here; {expression.ADDRESS_HELP}",
    )
    add("--task", default="any", metavar="PID|any", help="whose stack (default any)")
    add("--paint", action="store_true", help="fill the free part with a pattern first")
    add("--yes", "-y", action="store_true", help="do not ask before painting")
    add("--timeout", type=argtypes.seconds, default=SECONDS, metavar="SECONDS", help=f"({SECONDS:.0f})")


@dataclass(frozen=True)
class Mark:
    """The high water of one stack, before and after."""

    stack: Stack
    before: HighWater
    after: HighWater
    painted: bool

    @property
    def grown(self) -> int:
        """Bytes that it got deeper than it was known to have been; 0 where it is not known."""
        if self.after.depth is None:
            return 0
        return max(self.after.depth - (self.before.depth or 0), 0)


@command(
    "stack highwater",
    group="Stack",
    summary="Let the guest run, and say which stacks got deeper than ever before",
    example="stack highwater --timeout 5",
    needs=Needs.STOPPED,
    configure=_configure,
    details="The free part of each stack is scanned before and after: what is not zero any more was "
    "written. --paint fills it with a pattern first (asks, unless --yes) and takes that out again, so "
    "that zeros that are stored are seen too, and only what happens from now on counts. Full speed; it "
    "tells the depth, not who was there: stack trace does. Ends at WHERE or after --timeout.",
)
def highwater(ctx: Context, args: argparse.Namespace) -> Report:
    """Scan or paint, run, and scan again."""
    stacks = open_stacks(ctx.guest)
    wanted = _wanted(stacks, args.task)
    places = [address.value(GuestNames(ctx.guest)) for address in args.where]
    if args.paint and not args.yes and not ctx.confirm(f"paint the free part of {len(wanted)} stacks?"):
        raise UserError("nothing was painted", "--yes where nobody can be asked")
    with _paint(ctx, stacks, wanted, args.paint) as painted:
        before = _scan(ctx, wanted)
        if args.paint:
            before = _used_now(stacks, wanted, painted, before)
        ended = _run(ctx, places, args.timeout)
        after = _scan(ctx, wanted)
        marks = [
            Mark(stack, before[stack.base], after[stack.base], stack.base in painted)
            for stack in wanted
            if stack.base in before and stack.base in after
        ]
    marks.sort(key=lambda mark: (-mark.grown, -(mark.after.depth or 0)))
    return _report(ctx, marks, ended, len(wanted))


def _wanted(stacks: Stacks, task: str) -> list[Stack]:
    if task != "any":
        return [stacks.of_task(task_of(stacks, argtypes.whole(0, 1 << 22)(task)))]
    found = [stack for state in stacks.view.states for stack in stacks.of_cpu(state) if stack.kind == "irq"]
    return found + [stacks.of_task(each) for each in stacks.tasks.all().tasks]


def _scan(ctx: Context, wanted: list[Stack]) -> dict[int, HighWater]:
    from ptinspect.stack.highwater import high_water, read_stacks

    words = read_stacks(ctx.view(), wanted)
    return {stack.base: high_water(stack, words.get(stack.base)) for stack in wanted}


@contextlib.contextmanager
def _paint(ctx: Context, stacks: Stacks, wanted: list[Stack], paint: bool) -> Iterator[set[int]]:
    """Paint the free part of stacks, and take what is left of the paint out again at the end."""
    from ptinspect.stack.highwater import PAINT as VALUE
    from ptinspect.stack.highwater import free_words

    painted: set[int] = set()
    changes: list[Change] = []
    for stack in wanted if paint else ():
        sp = _lowest_sp(stacks, stack)
        words = [] if sp is None else free_words(stacks.view, stack, sp)
        changes += [Change(pa, 0, VALUE, count=count, what=PAINT) for pa, count in words]
        painted |= {stack.base} if words else set()
    try:
        ctx.stopped.changes.make(changes)
        ctx.forget_stop()
        yield painted
    finally:
        if changes and ctx.state == "stopped":
            with contextlib.suppress(PtinspectError):
                ctx.stopped.changes.undo(changes)
            ctx.forget_stop()


def _lowest_sp(stacks: Stacks, stack: Stack) -> int | None:
    """Return the SP below which a stack is free; None where nobody can tell."""
    for state in stacks.view.states:
        if state.el != 0 and stack.holds_sp(state.sp):
            return state.sp
    if stack.kind == "irq":
        return stack.top
    task = stack.task
    if task is None or task.cpu is not None:  # it runs, but on another stack: its own SP is saved somewhere
        return None
    return task.saved_sp if stack.holds_sp(task.saved_sp) else None


def _used_now(
    stacks: Stacks, wanted: list[Stack], painted: set[int], before: dict[int, HighWater]
) -> dict[int, HighWater]:
    """Return what painted stacks use now: what was there before does not count."""
    from ptinspect.stack.highwater import HighWater

    found = dict(before)
    for stack in wanted:
        sp = _lowest_sp(stacks, stack)
        if stack.base in painted and sp is not None:
            found[stack.base] = HighWater(sp, stack.top - sp, "SP when it was painted")
    return found


def _run(ctx: Context, places: list[int], seconds: float) -> str:
    session = ctx.stopped
    ctx.forget_stop()
    try:
        if places:
            stop = session.run_until(places, seconds)
            return "reached" if stop.pc in places else f"stopped: {stop.reason}"
        session.resume()
        stop = session.wait_stop(seconds)
        return f"stopped: {stop.reason}"
    except TargetTimeout:
        if ctx.state == "running":
            session.interrupt(5.0)
        return "the time is over"
    except KeyboardInterrupt:
        if ctx.state == "running":
            session.interrupt(5.0)
        return "interrupted"
    finally:
        ctx.forget_stop()


def _report(ctx: Context, marks: list[Mark], ended: str, wanted: int) -> Report:
    state = ctx.stopped.cpu_state(ctx.stopped.current_cpu)
    where = f"cpu {state.cpu} at {ctx.place(state.pc)}"
    rows = [_row(mark) for mark in marks if mark.after.depth is not None]
    grown = sum(mark.grown > 0 for mark in marks)
    columns = (
        Column("stack"),
        Column("of"),
        Column("before", "right"),
        Column("after", "right"),
        Column("deeper by", "right"),
        Column("free", "right"),
        Column("known by"),
    )
    body: list[Note | Table] = [
        Note(f"{ended}, {where}", "dim"),
        Table(columns, rows[:SHOWN], empty="no stack could be read"),
        Note(f"{grown} of {len(marks)} stacks got deeper than they were known to have been"),
    ]
    if len(marks) < wanted:
        body.append(Note(f"{wanted - len(marks)} stacks could not be read", "changed"))
    known = [mark for mark in marks if mark.after.depth is not None]
    result = {
        "ended": ended,
        "place": where,
        "deepest": max((mark.after.depth or 0 for mark in known), default=None),
        "least_free": min((mark.stack.size - (mark.after.depth or 0) for mark in known), default=None),
        "unread": wanted - len(known),
        "stacks": [_json(mark) for mark in marks],
    }
    return Report(result, body)


def _owner(stack: Stack) -> str:
    task = stack.task
    return f"cpu {stack.cpu}" if task is None else f"{escape(task.comm)} ({task.pid})"


def _row(mark: Mark) -> tuple[Cell, ...]:
    def size(depth: int | None) -> str:
        return "-" if depth is None else str(depth)

    after = mark.after.depth or 0
    return (
        mark.stack.kind,
        _owner(mark.stack),
        size(mark.before.depth),
        size(mark.after.depth),
        Styled(f"{mark.grown:+}" if mark.grown else "0", "changed" if mark.grown else "dim"),
        str(mark.stack.size - after),
        "paint" if mark.painted else "zeros",
    )


def _json(mark: Mark) -> dict[str, Any]:
    lowest = mark.after.lowest
    return {
        "kind": mark.stack.kind,
        "owner": _owner(mark.stack),
        "base": hex_address(mark.stack.base),
        "top": hex_address(mark.stack.top),
        "before": mark.before.depth,
        "after": mark.after.depth,
        "grown": mark.grown,
        "free": None if mark.after.depth is None else mark.stack.size - mark.after.depth,
        "lowest": None if lowest is None else hex_address(lowest),
        "how": mark.after.how,
        "painted": mark.painted,
    }
