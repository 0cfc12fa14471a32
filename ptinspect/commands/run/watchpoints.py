"""`watch`, `rwatch`, `awatch`: stop when something in memory changes, is read, or is accessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.run.breakpoints import (
    CONDITION,
    WatchpointResult,
    slots_of,
    watchpoint_result,
    what_of,
)
from ptinspect.dataclass import dataclass
from ptinspect.guest.breakpoints import listing
from ptinspect.guest.breakpoints.watching import Access, watch
from ptinspect.guest.guest import Guest
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report


@dataclass(frozen=True, kw_only=True)
class WatchResult(WatchpointResult):
    """The watchpoint that was set."""

    type: str
    """Of what is watched."""
    slots: Mapping[str, int] | Absent = ABSENT
    """How many of the CPU's are in use, where they are few."""


WATCH = (
    argument(
        "expression", nargs="+", type=arguments.piece, metavar="EXPR", help="what is in memory: as for print"
    ),
    CONDITION,
    switch("--location", "as in GDB: the place is watched", "-l", "-location"),
)
WATCHES = (
    "By QEMU's watchpoints, on every CPU, at the address that the guest uses: it runs at full speed, but for "
    "accesses to that page. It may have 1, 2, 4 or 8 bytes; the stop is after the access. break lists "
    "watchpoints, delete deletes them."
)


def _watched(guest: Guest, expression: Sequence[str], access: Access, condition: str | None) -> Report:
    made = watch(guest, " ".join(expression), access, condition or "")
    one = listing.numbered(guest, made.number)
    slots, notes = slots_of(guest)
    result = WatchResult(**vars(watchpoint_result(one)), type=made.type.name, slots=slots)
    return Report(result, (Note(f"{one.kind} {one.number}: {what_of(one)}"), *notes))


@command(
    "watch",
    group="Run and stop",
    summary="Stop when what an expression names in memory changes",
    example="watch init_task.flags",
    arguments=WATCH,
    result=WatchResult,
    needs=Needs.STOPPED,
    details=f"{WATCHES} A store of the same value does not stop (awatch does).",
    raw=True,
    clause="--if",
)
def watch_changes(
    guest: Guest, *, expression: Sequence[str], condition: str | None, location: bool
) -> Report:
    """Watch for changes."""
    return _watched(guest, expression, "write", condition)


@command(
    "rwatch",
    group="Run and stop",
    summary="Stop when what an expression names in memory is read",
    example="rwatch init_task.flags",
    arguments=WATCH,
    result=WatchResult,
    needs=Needs.STOPPED,
    details=WATCHES,
    raw=True,
    clause="--if",
)
def watch_reads(guest: Guest, *, expression: Sequence[str], condition: str | None, location: bool) -> Report:
    """Watch for loads."""
    return _watched(guest, expression, "read", condition)


@command(
    "awatch",
    group="Run and stop",
    summary="Stop when what an expression names in memory is read or written",
    example="awatch init_task.flags",
    arguments=WATCH,
    result=WatchResult,
    needs=Needs.STOPPED,
    details=WATCHES,
    raw=True,
    clause="--if",
)
def watch_accesses(
    guest: Guest, *, expression: Sequence[str], condition: str | None, location: bool
) -> Report:
    """Watch for loads and stores."""
    return _watched(guest, expression, "access", condition)
