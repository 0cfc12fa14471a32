"""`stack guard`: stop the guest before a kernel stack overflows, whatever the way down."""

from __future__ import annotations

import argparse
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack import guard_wires
from ptinspect.commands.stack.guard_wires import Armed
from ptinspect.errors import KernelFileError, PtinspectError, TargetTimeout, UserError
from ptinspect.guest.kernel_stacks import open_stacks, task_of
from ptinspect.output.model import Note, Report, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.link.session import StopInfo
    from ptinspect.linux.running.stacks import Stack, Stacks
    from ptinspect.linux.running.tasks import Task
    from ptinspect.stack.guard import Way

MARGIN = 2048
SECONDS = 60.0
FIRST_LOOK, LOOK = 0.5, 1.0
"""Seconds after which tasks that came later are looked for: the first time, and from then on."""
FULL_LOOKS = 8
"""Looks after which the whole list is walked: the short look does not see new threads of a process."""
LAST = "guard"
"""Name in Context.memo of what the last guard said, for `expect guard quiet`."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--margin", default=str(MARGIN), metavar="BYTES|%", help=f"room that must be left ({MARGIN})")
    add("--task", default="any", metavar="current|PID|any", help="whose stack (default any)")
    add("--timeout", type=argtypes.seconds, metavar="SECONDS", help=f"({SECONDS:.0f}; REPL: until Ctrl-C)")
    add("--entry", choices=("probe", "breakpoint"), help="how to guard the exception entry (default: probe)")


@dataclass
class Run:
    """One run under guard."""

    ctx: Context
    margin: int
    whose: str
    deadline: float
    armed: Armed = field(default_factory=Armed)
    looks: int = 0
    blind: str = ""
    """Why the last look found no tasks."""
    near: Stack | None = None
    """The stack whose margin was reached."""

    def tasks(self, stacks: Stacks) -> list[Task]:
        """Return the tasks to guard that are there now."""
        session = self.ctx.stopped
        if self.whose == "current":
            task = stacks.tasks.current(session.cpu_state(session.current_cpu))
            return [] if task is None else [task]
        if self.whose != "any":
            return [task_of(stacks, argtypes.whole(0, 1 << 22)(self.whose))]
        if session.slots.limited:
            return list(stacks.tasks.all().tasks)
        known = {stack.task.address for stack in self.armed.wires.stacks.values() if stack.task is not None}
        if self.looks % FULL_LOOKS and known:
            return stacks.tasks.newest(known)
        return list(stacks.tasks.all().tasks)

    def look(self) -> None:
        """Watch the stacks that are not watched yet; early in the boot there may be none."""
        if self.looks and self.whose != "any":
            return
        try:
            stacks = open_stacks(self.ctx.guest)
            found = guard_wires.stacks_of(stacks, self.tasks(stacks))
            guard_wires.watch_stacks(self.ctx, self.armed, found, self.margin)
            self.blind = ""
        except PtinspectError as error:
            later = not isinstance(error, UserError) or isinstance(error, KernelFileError)
            if self.whose != "any" or not later:
                raise
            self.blind = error.message
        self.looks += 1

    def run(self) -> tuple[Way, StopInfo]:
        """Run until a wire is tripped, something else stops the guest, or the time is over."""
        from ptinspect.stack.guard import Budget, judge
        from ptinspect.stack.verdict_facts import entry_ranges

        session, wires = self.ctx.stopped, self.armed.wires
        stacks = open_stacks(self.ctx.guest)
        entry = entry_ranges(stacks)
        budget = Budget()
        budget.refill()
        slice_ = FIRST_LOOK
        while True:
            stop, ours = self._slice(slice_)
            slice_ = LOOK
            if ours:
                if time.monotonic() >= self.deadline:
                    return "time", stop
                self.look()
                if self.armed.entry == "breakpoint" and budget.refill() >= budget.left >= 2:
                    guard_wires.arm_label(self.ctx, stacks, self.armed)
                continue
            way = judge(wires, stop.breakpoint, session.cpu_state(stop.cpu), self.margin, entry)
            if way is not None:
                self.near = wires.stacks.get(stop.breakpoint) if stop.breakpoint is not None else None
                return way, stop
            wires.false_hits += 1
            if stop.breakpoint in wires.stacks:
                guard_wires.give_up(self.ctx, self.armed, stop.breakpoint)
            elif stop.breakpoint in wires.entries and not budget.spend():
                guard_wires.rest_label(self.ctx, self.armed)

    def _slice(self, seconds: float) -> tuple[StopInfo, bool]:
        """Let the guest run for a while; return its stop, and whether it is ours."""
        session = self.ctx.stopped
        self.ctx.forget_stop()
        session.resume()
        try:
            return session.wait_stop(max(min(seconds, self.deadline - time.monotonic()), 0.05)), False
        except TargetTimeout:
            stop = session.interrupt(5.0)
            return stop, stop.signal == "SIGINT" and stop.breakpoint is None
        finally:
            self.ctx.forget_stop()


@command(
    "stack guard",
    group="Stack",
    summary="Let the guest run, and stop it before a kernel stack overflows",
    example="stack guard --margin 2048 --timeout 10",
    needs=Needs.STOPPED,
    configure=_configure,
    details="Three wires: the first access to the lowest --margin bytes of a task's stack by a task that "
    "has used all above; a fault of the exception "
    "entry itself (no store succeeds: the stack's mapping has gone); and the kernel's own overflow "
    "test. Exit code 1 if one was tripped. The entry is tested by ten instructions in the unused part "
    "of the vectors, which are taken out again; --entry breakpoint leaves the guest's code alone, at "
    "the cost of a stop for every fault in the kernel. Under KVM the entry has a breakpoint, and as many "
    "stacks are watched as the CPU has watchpoints, those of the running tasks first. Tasks that begin "
    "while it runs are found within a second. The time counts from when it is armed.",
)
def guard(ctx: Context, args: argparse.Namespace) -> Report:
    """Arm, run, and say what happened."""
    from ptinspect.stack.guard import margin_bytes

    seconds = args.timeout or (10 * 365 * 86400.0 if ctx.interactive else SECONDS)
    if not ctx.view().placed:
        from ptinspect.guest.rewrite import Runner

        Runner(ctx.guest, SECONDS).place_kernel()
    stacks = open_stacks(ctx.guest)
    margin = margin_bytes(args.margin, stacks.thread_size)
    run = Run(ctx, margin, args.task, time.monotonic() + seconds)
    started = time.monotonic()
    way: Way = "interrupted"
    place = ""
    try:
        guard_wires.always_inserted(ctx, True)
        guard_wires.arm_entry(ctx, stacks, run.armed, args.entry)
        run.look()
        with contextlib.suppress(KeyboardInterrupt):
            way, _ = run.run()
    finally:
        guard_wires.disarm(ctx, run.armed)
    place = ctx.place(ctx.stopped.cpu_state(ctx.stopped.current_cpu).pc)
    result = _result(run, way, time.monotonic() - started, place)
    ctx.memo[LAST] = result
    return _quiet(result, run, way) if result["quiet"] else _tripped(ctx, run, result)


def _result(run: Run, way: Way, seconds: float, place: str) -> dict[str, Any]:
    from ptinspect.stack.guard import ALARMS

    wires = run.armed.wires
    return {
        "way": way,
        "quiet": way not in ALARMS,
        "margin": run.margin,
        "entry": run.armed.entry,
        "stacks_watched": len(wires.stacks),
        "stacks_skipped": wires.skipped,
        "false_hits": wires.false_hits,
        "seconds": round(seconds, 2),
        "place": place,
    }


def _quiet(result: dict[str, Any], run: Run, way: Way) -> Report:
    why = {
        "time": "the time is over",
        "interrupted": "stopped by Ctrl-C",
        "other": f"the guest stopped for another reason, at {result['place']}",
    }[way]
    body = [Note(f"quiet: {why}; {result['stacks_watched']} stacks were watched", "good"), _cost(run)]
    return Report(result, body)


def _cost(run: Run) -> Note:
    entry = "a probe in the vectors" if run.armed.entry == "probe" else "a breakpoint"
    why = f" ({run.armed.why})" if run.armed.why else ""
    false = run.armed.wires.false_hits
    skipped = run.armed.wires.skipped
    more = f"; {skipped} stacks were too many to watch" if skipped else ""
    more += f"; tasks are not known: {escape(run.blind)}" if run.blind else ""
    return Note(f"the entry was guarded by {entry}{why}; {false} stop(s) that were no alarm{more}", "dim")


def _tripped(ctx: Context, run: Run, result: dict[str, Any]) -> Report:
    from ptinspect.commands.stack.why import verdict

    session = ctx.stopped
    cpu = session.current_cpu
    below = ctx.registry.run(ctx, f"stack --cpu {cpu}")
    told = verdict(ctx, cpu)
    alarm = ""
    if run.near is not None:
        left = session.cpu_state(cpu).sp - run.near.base
        room = f"{left} bytes are left" if left >= 0 else f"SP is {-left} bytes below the base"
        alarm = f"{room} on the stack of {run.near.owner}, and the margin is {run.margin}"
        if told.result["code"] in ("unknown", "not-a-stack-problem"):
            evidence = [Note(f"  - {line}") for line in told.result["evidence"]]
            text = f"no fault of the stack has happened: {alarm}"
            told = Report({**told.result, "text": text, "unknown": []}, evidence)
    result |= {"alarm": alarm} if alarm else {}
    result |= {"cpu": cpu, "pc": hex_address(session.cpu_state(cpu).pc), "why": dict(told.result)}
    result |= {"stack": dict(below.result)}
    head = [Note(f"stopped, way {result['way']}, cpu {cpu} at {result['place']}", "bad")]
    head += [Note(alarm, "bad")] if alarm else []
    return Report(result, (*head, *below.body, *told.body), 1)
