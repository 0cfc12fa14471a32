"""Guard kernel stacks: let the guest run, and stop it before one overflows, whatever the way down."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Literal

from ptinspect.errors import KernelFileError, PtinspectError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite import Runner
from ptinspect.guest.run_control import run_for
from ptinspect.guest.stacks import guard_wires
from ptinspect.guest.stacks.guard_wires import Armed, Entry
from ptinspect.guest.stacks.kernel_stacks import open_stacks, task_of
from ptinspect.linux.running.stacks import Stack, Stacks
from ptinspect.linux.running.tasks import Task
from ptinspect.stack.guard import ALARMS, Budget, Way, judge, margin_bytes
from ptinspect.stack.verdict_facts import entry_ranges

Whose = int | Literal["any", "current"]
"""Whose stack is guarded: that of the task with a PID, of all, or of the one that runs now."""
PLACING = 60.0
"""Seconds that it may take until it is known where the kernel runs."""
FIRST_LOOK, LOOK = 0.5, 1.0
"""Seconds after which tasks that came later are looked for: the first time, and from then on."""
FULL_LOOKS = 8
"""Looks after which the whole list is walked: the short look does not see new threads of a process."""


@dataclass(frozen=True)
class Guarded:
    """How a run under guard went."""

    way: Way
    """The wire that was tripped, or why the run ended without that."""
    margin: int
    """Bytes that had to be left."""
    entry: Entry
    """How the exception entry was guarded."""
    no_probe: str
    """Why not by a probe."""
    watched: int
    """Stacks under watch at the end."""
    skipped: int
    """Stacks that were too many to watch."""
    false_hits: int
    """Stops that were no alarm."""
    blind: str
    """Why the last look found no tasks; empty if it found some."""
    near: Stack | None
    """The stack whose margin was reached."""
    seconds: float
    """How long it took."""

    @property
    def quiet(self) -> bool:
        """Whether no wire was tripped."""
        return self.way not in ALARMS


def guard(
    guest: Guest,
    *,
    margin: int | str,
    seconds: float,
    whose: Whose = "any",
    entry: Entry | None = None,
) -> Guarded:
    """Let the guest run until a wire is tripped, something else stops it, or the time is over.

    `margin`: bytes, or a part of a stack: `12%`. The time counts from when all is armed. Nothing is left
    behind. Raises UserError, GuestError, and TargetError if a probe is wanted and cannot be had.
    """
    if not guest.view.placed:
        Runner(guest, PLACING).place_kernel()
    stacks = open_stacks(guest)
    run = _Run(guest, margin_bytes(f"{margin}", stacks.thread_size), whose, time.monotonic() + seconds)
    started = time.monotonic()
    way: Way = "interrupted"
    try:
        guard_wires.always_inserted(guest, True)
        guard_wires.arm_entry(guest, stacks, run.armed, entry)
        run.look()
        with contextlib.suppress(KeyboardInterrupt):
            way = run.run(stacks)
    finally:
        guard_wires.disarm(guest, run.armed)
    armed, wires = run.armed, run.armed.wires
    return Guarded(
        way=way,
        margin=run.margin,
        entry=armed.entry,
        no_probe=armed.why,
        watched=len(wires.stacks),
        skipped=wires.skipped,
        false_hits=wires.false_hits,
        blind=run.blind,
        near=run.near,
        seconds=time.monotonic() - started,
    )


@dataclass
class _Run:
    """One run under guard."""

    guest: Guest
    margin: int
    whose: Whose
    deadline: float
    armed: Armed = field(default_factory=Armed)
    looks: int = 0
    blind: str = ""
    near: Stack | None = None

    def tasks(self, stacks: Stacks) -> list[Task]:
        """Return the tasks to guard that are there now."""
        session = self.guest.stopped
        if self.whose == "current":
            task = stacks.tasks.current(session.cpu_state(session.current_cpu))
            return [] if task is None else [task]
        if self.whose != "any":
            return [task_of(stacks, self.whose)]
        known = {stack.task.address for stack in self.armed.wires.stacks.values() if stack.task is not None}
        if self.looks % FULL_LOOKS and known and not session.slots.limited:
            return stacks.tasks.newest(known)
        return list(stacks.tasks.all().tasks)

    def look(self) -> None:
        """Watch the stacks that are not watched yet; early in the boot there may be none."""
        if self.looks and self.whose != "any":
            return
        try:
            stacks = open_stacks(self.guest)
            found = [stacks.of_task(task) for task in self.tasks(stacks)]
            guard_wires.watch_stacks(self.guest, self.armed, found, self.margin)
            self.blind = ""
        except PtinspectError as error:
            later = not isinstance(error, UserError) or isinstance(error, KernelFileError)
            if self.whose != "any" or not later:
                raise
            self.blind = error.message
        self.looks += 1

    def run(self, stacks: Stacks) -> Way:
        """Run until a wire is tripped, something else stops the guest, or the time is over."""
        guest, wires = self.guest, self.armed.wires
        entry = entry_ranges(stacks)
        budget = Budget()
        budget.refill()
        seconds = FIRST_LOOK
        while True:
            stop = run_for(guest, max(min(seconds, self.deadline - time.monotonic()), 0.05))
            seconds = LOOK
            if stop is None:
                if time.monotonic() >= self.deadline:
                    return "time"
                self.look()
                if self.armed.entry == "breakpoint" and budget.refill() >= budget.left >= 2:
                    guard_wires.arm_label(guest, stacks, self.armed)
                continue
            way = judge(wires, stop.breakpoint, guest.stopped.cpu_state(stop.cpu), self.margin, entry)
            if way is not None:
                self.near = wires.stacks.get(stop.breakpoint) if stop.breakpoint is not None else None
                return way
            wires.false_hits += 1
            if stop.breakpoint in wires.stacks:
                guard_wires.give_up(guest, self.armed, stop.breakpoint)
            elif stop.breakpoint in wires.entries and not budget.spend():
                guard_wires.rest_label(guest, self.armed)
