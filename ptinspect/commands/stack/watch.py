"""`stack watch`: the depth of the stack in the toolbar and at each stop."""

from __future__ import annotations

from dataclasses import dataclass

from ptinspect.commands.framework.command import argument, command
from ptinspect.errors import PtinspectError
from ptinspect.guest.guest import Guest
from ptinspect.guest.stacks.kernel_stacks import open_stacks
from ptinspect.output.model import Note, Report, escape

WATCH = "stack watch"
"""Name in Guest.kept of whether `stack watch` is on."""


@dataclass(frozen=True)
class WatchResult:
    """Whether the depth is shown."""

    watch: str
    stack: str
    """The line for the CPU that stopped; empty where there is none."""


@command(
    "stack watch",
    group="Stack",
    summary="Show the depth of the stack in the toolbar and at each stop",
    example="stack watch on",
    arguments=(argument("state", nargs="?", choices=("on", "off"), default="on", help="(on)"),),
    result=WatchResult,
)
def watch(guest: Guest, *, state: str) -> Report:
    """Switch the display on or off."""
    guest.kept[WATCH] = state == "on"
    line = watched(guest)
    return Report(WatchResult(state, line), (Note(line or f"stack watch is {state}"),))


def watched(guest: Guest) -> str:
    """Return the line of `stack watch` for the CPU that stopped; empty if it is off, or nothing is known."""
    if not guest.kept.get(WATCH) or guest.state != "stopped":
        return ""
    cpu = guest.stopped.current_cpu
    return guest.once(("stack watch", cpu), lambda: _line(guest, cpu))


def _line(guest: Guest, cpu: int) -> str:
    try:
        found = open_stacks(guest).locate(guest.stopped.cpu_state(cpu))
    except PtinspectError as error:
        return f"stack: {error.message}"
    whose = f" of {escape(found.task.comm)}" if found.task is not None and found.kind == "task" else ""
    if found.stack is None or found.used is None:
        return f"stack: {found.note or found.kind}"
    return f"{found.kind} stack{whose}: {found.used} of {found.stack.size} used, {found.free} free"
