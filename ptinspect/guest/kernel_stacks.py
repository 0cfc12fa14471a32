"""The kernel stacks of the guest at this stop: whose they are, and how deep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Stacks
    from ptinspect.linux.running.tasks import Task


def open_stacks(guest: Guest) -> Stacks:
    """Return what finds stacks at this stop. Raises UserError without a kernel file, GuestError."""
    from ptinspect.linux.running.stacks import Stacks

    if guest.kernel is None:
        raise UserError("stacks are found by the kernel file", "kernel FILE, or --kernel FILE")
    return guest.once("stacks", lambda: Stacks(guest.view))


def task_of(stacks: Stacks, pid: int) -> Task:
    """Return the task with a PID; the running one of several idle tasks. Raises UserError."""
    matching = [task for task in stacks.tasks.all().tasks if task.pid == pid]
    if not matching:
        raise UserError(f"no task has PID {pid}", "stack tasks --all lists them")
    return min(matching, key=lambda task: task.cpu is None)
