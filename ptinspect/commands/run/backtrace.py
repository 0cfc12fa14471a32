"""`bt`: the chain of callers, through exceptions and changes of stack as far as the kernel file allows."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework.arguments import CPU, number_argument
from ptinspect.commands.framework.command import Needs, command
from ptinspect.dataclass import dataclass
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state, need_registers
from ptinspect.output.model import Note, Report, Table, escape, headings

WHAT = {"exception": "exception", "user": "entry from user mode", "unwritten": "exceptions, not stored"}
"""What a frame is that is no function's."""


@dataclass(frozen=True)
class CallerResult:
    """One function of the chain."""

    pc: VirtAddr
    place: str
    record: VirtAddr | None
    """The frame record, or that of an exception, that `pc` was read from."""
    kind: str


@dataclass(frozen=True)
class BacktraceResult:
    """The chain of callers, the innermost first."""

    frames: Sequence[CallerResult]
    ended: str


@command(
    "bt",
    aliases=("backtrace", "where"),
    group="Look",
    summary="Show the chain of callers",
    example="bt -n 10",
    arguments=(
        number_argument("-n", 1, 10_000, "at most N frames (64)", dest="limit", default=64),
        CPU,
    ),
    result=BacktraceResult,
    needs=Needs.STOPPED,
    details="Frame records (x29) are read through the kernel's tables, so it works with the MMU off. "
    "stack shows the same frames with their sizes.",
)
def backtrace(guest: Guest, *, limit: int, cpu: int | None) -> Report:
    """Show the callers of the current function."""
    from ptinspect.stack.depth import start_of_cpu

    state = cpu_state(guest, cpu)
    need_registers(guest)
    found = start_of_cpu(guest.view, state).frames(limit)
    rows: list[CallerResult] = []
    record: int | None = None
    last = () if found.last is None else (found.last,)
    for frame in (*found.frames, *last):
        if frame.kind != "end" or frame is found.last:
            place = guest.place(frame.pc, returns=frame.returns, state=state)
            read = None if record is None else VirtAddr(record)
            kind = "function" if frame is found.last else frame.kind
            rows.append(CallerResult(VirtAddr(frame.pc), place, read, kind))
            record = frame.record
    table = Table(
        headings(">#", "pc", ""),
        [(str(number), row.place, WHAT.get(row.kind, "")) for number, row in enumerate(rows)],
    )
    ended = Note(f"the chain ends: {escape(found.ended)}", "dim")
    return Report(BacktraceResult(rows, found.ended), (table, ended))
