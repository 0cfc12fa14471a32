"""The kernel stacks of the guest at this stop: whose they are, and how deep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Position, Stack, Stacks
    from ptinspect.linux.running.tasks import Task
    from ptinspect.snapshot.model import Snapshot
    from ptinspect.stack.depth import Depth
    from ptinspect.stack.highwater import HighWater

FRAMES = 256
"""Frames of a stack at most, where nobody chooses."""
UNSURE = "saved, unless it ran"
"""How the stack pointer of a task is known where it is not known which tasks the CPUs ran."""


@dataclass(frozen=True)
class TaskStack:
    """The stack of a task, with its deepest point so far."""

    task: Task
    stack: Stack
    sp: int
    """The live SP if it runs on its stack, else the saved one."""
    how: str
    """`live, cpu 0` or `saved`."""
    magic: bool | None
    """Whether the end mark is intact; None where it cannot be read."""
    water: HighWater

    @property
    def free(self) -> int:
        """Bytes that are free now; negative if SP is not on the stack."""
        return self.sp - self.stack.base

    @property
    def least(self) -> int:
        """Bytes that were free at the deepest point that is known, or are now."""
        if self.water.depth is None:
            return self.free
        return min(self.free, self.stack.size - self.water.depth)


@dataclass(frozen=True)
class TaskStacks:
    """The stacks of all tasks."""

    rows: Sequence[TaskStack]
    """Those with the least free space first."""
    incomplete: str
    """Why there may be more; empty if the kernel's list was walked to its end."""


def open_stacks(guest: Guest) -> Stacks:
    """Return what finds stacks at this stop. Raises UserError without a kernel file, GuestError."""
    from ptinspect.linux.running.stacks import Stacks

    if guest.kernel is None:
        raise UserError("stacks are found by the kernel file", "kernel FILE, or --kernel FILE")
    return guest.once(("stacks", guest.stopped.current_cpu), lambda: Stacks(guest.view))


def task_of(stacks: Stacks, which: int | str) -> Task:
    """Return the task with a PID or a name. Raises UserError."""
    return stacks.tasks.named(which)


def lowest_sp(stacks: Stacks, stack: Stack) -> int | None:
    """Return the SP below which a stack is free; None where that is not known."""
    for state in stacks.view.states:
        if state.el != 0 and stack.holds_sp(state.sp):
            return state.sp
    if stack.kind == "irq":
        return stack.top
    task = stack.task
    if task is None or task.cpu is not None:  # it runs, but on another stack: its own SP is saved somewhere
        return None
    return task.saved_sp if stack.holds_sp(task.saved_sp) else None


def newest_first(guest: Guest) -> Sequence[Snapshot]:
    """Return the snapshots in memory, the newest first."""
    return sorted(guest.snapshots.values(), key=lambda s: s.meta.created, reverse=True)


def depth(guest: Guest, cpu: int | None = None, limit: int = FRAMES) -> Depth:
    """Examine the stack that a CPU is on (default: the one that stopped): bounds, use, frames.

    Raises UserError, GuestError, KernelFileError.
    """
    from ptinspect.stack.depth import depth_of_cpu

    stacks = open_stacks(guest)
    return _compared(guest, stacks, depth_of_cpu(stacks, cpu_state(guest, cpu), limit))


def depth_of_sleeper(guest: Guest, task: Task, limit: int = FRAMES) -> Depth:
    """Examine the stack of a task that runs on no CPU."""
    from ptinspect.stack.depth import depth_of_task

    stacks = open_stacks(guest)
    return _compared(guest, stacks, depth_of_task(stacks, task, limit))


def _compared(guest: Guest, stacks: Stacks, found: Depth) -> Depth:
    """Say of a stack without its end mark whether snapshots show that it led to other memory."""
    from ptinspect.stack.verdict_facts import leads_elsewhere

    stack = found.position.stack
    if found.end_magic_intact is not False or stack is None:
        return found
    text = leads_elsewhere(stacks, stack, newest_first(guest))
    return replace(found, end_magic_intact=None, doubt="", elsewhere=text) if text else found


def running_known(guest: Guest) -> bool:
    """Tell whether it is known which tasks the CPUs run: not in a file, which has no SP_EL0 of theirs."""
    session = guest.stopped
    states = [session.cpu_state(cpu) for cpu in range(session.cpu_count)]
    return guest.imported is None or all("SP_EL0" in state.system for state in states)


def task_stacks(guest: Guest) -> TaskStacks:
    """Return the stacks of all tasks. Raises GuestError if no task is found, and as `open_stacks` does."""
    from ptinspect.linux.running.member_offsets import STACK_END_MAGIC
    from ptinspect.stack.depth import with_true_sp
    from ptinspect.stack.highwater import high_water, read_stacks

    stacks = open_stacks(guest)
    listed = stacks.tasks.all()
    if not listed.tasks:
        raise GuestError("no task was found")
    live: dict[int, Position] = {}
    for state in stacks.view.states:
        position = stacks.locate(with_true_sp(stacks, state))
        if position.stack is not None and position.stack.kind == "task":
            live[position.stack.base] = position
    owned = [stacks.of_task(task) for task in listed.tasks]
    words = read_stacks(stacks.view, owned)
    saved = "saved" if running_known(guest) else UNSURE
    rows = []
    for task, own in zip(listed.tasks, owned, strict=True):
        here, content = live.get(own.base), words.get(own.base)
        how = saved if task.cpu is None else f"on another stack, cpu {task.cpu}"
        how = how if here is None else f"live, cpu {here.cpu}"
        sp = task.saved_sp if here is None else here.sp
        magic = None if content is None else int(content[0]) == STACK_END_MAGIC or stacks.end_magic(own)
        rows.append(TaskStack(task, own, sp, how, magic, high_water(own, content)))
    rows.sort(key=lambda row: (row.least, row.task.pid))
    return TaskStacks(rows, listed.incomplete)
