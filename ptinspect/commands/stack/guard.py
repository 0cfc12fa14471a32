"""`stack guard`: stop the guest before a kernel stack overflows, whatever the way down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import timeout_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.stack import KINDS, StackResult, stack
from ptinspect.commands.stack.why import WhyResult, reasons, why_result
from ptinspect.dataclass import dataclass, replace
from ptinspect.guest.guest import Guest
from ptinspect.output.encode import ABSENT, Absent, filled
from ptinspect.output.model import Note, Report, Table, escape
from ptinspect.text import counted

if TYPE_CHECKING:
    from ptinspect.guest.stacks.stack_guard import Entry, Guarded, Whose

MARGIN = 2048
SECONDS = 60.0
LAST = "guard"
"""Name in Guest.kept of the last result, for `expect guard quiet`."""


@dataclass(frozen=True)
class GuardResult:
    """How the run went; what follows `place` is there if a wire was tripped."""

    way: str
    quiet: bool
    margin: int
    entry: str
    stacks_watched: int
    stacks_skipped: int
    false_hits: int
    seconds: float
    place: str
    alarm: str | Absent = ABSENT
    """How much of the margin is left."""
    cpu: int | Absent = ABSENT
    pc: VirtAddr | Absent = ABSENT
    why: WhyResult | Absent = ABSENT
    stack: StackResult | Absent = ABSENT


@command(
    "stack guard",
    group="Stack",
    summary="Let the guest run, and stop it before a kernel stack overflows",
    example="stack guard --margin 2048 --timeout 10",
    arguments=(
        argument(
            "--margin", default=f"{MARGIN}", metavar="BYTES|%", help=f"room that must be left ({MARGIN})"
        ),
        argument(
            "--task",
            type=arguments.either("current", "any", other=arguments.task),
            default="any",
            metavar="current|PID|task:NAME|any",
            help="whose stack (default any)",
        ),
        timeout_argument(f"({SECONDS:.0f}; REPL: until Ctrl-C)"),
        argument(
            "--entry",
            choices=("probe", "breakpoint"),
            help="how to guard the exception entry (default: probe)",
        ),
    ),
    result=GuardResult,
    needs=Needs.STOPPED,
    details="Three wires: the first access to the lowest --margin bytes of a task's stack, or of a CPU's for "
    "interrupts, by one that has used all above; a fault of the exception "
    "entry itself (no store succeeds: the stack's mapping is lost); and the kernel's own overflow "
    "test. Exit code 1 if one was tripped. The entry is tested by ten instructions in the unused part "
    "of the vectors, which are taken out again; --entry breakpoint leaves the guest's code alone, at "
    "the cost of a stop for every fault in the kernel. Under KVM the entry has a breakpoint, and as many "
    "stacks are watched as the CPU has watchpoints, those of the running tasks first. Tasks that begin "
    "while it runs are found within a second, and watched if they are still there a third of a second "
    "later; where looking is slow it takes longer: it takes a fifth of the time at most. The time counts "
    "from when it is armed.",
)
def guard(
    ctx: Context,
    *,
    margin: str = f"{MARGIN}",
    task: Whose = "any",
    timeout: float | None = None,
    entry: Entry | None = None,
) -> Report:
    """Arm, run, and say what happened."""
    from ptinspect.guest.stacks.stack_guard import guard as run_guarded

    guest = ctx.guest
    found = run_guarded(
        guest, margin=margin, whose=task, entry=entry, seconds=ctx.time_limit(timeout or None, SECONDS)
    )
    session = guest.stopped
    result = filled(
        GuardResult,
        found,
        stacks_watched=found.watched,
        stacks_skipped=found.skipped,
        seconds=round(found.seconds, 2),
        place=guest.place(session.cpu_state(session.current_cpu).pc),
    )
    guest.kept[LAST] = Report(result).result  # what tripped it may be more than can be explained
    report = _quiet(result, found) if found.quiet else _tripped(guest, result, found)
    guest.kept[LAST] = report.result
    return report


def _quiet(result: GuardResult, found: Guarded) -> Report:
    reason = {
        "time": "the time is over",
        "interrupted": "stopped by Ctrl-C",
        "other": f"the guest stopped for another reason, at {result.place}",
    }[found.way]
    entry = "a probe in the vectors" if found.entry == "probe" else "a breakpoint"
    no_probe = f" ({found.no_probe})" if found.no_probe else ""
    more = f"; {counted(found.skipped, 'stack')} too many to watch" if found.skipped else ""
    more += f"; tasks are not known: {escape(found.blind)}" if found.blind else ""
    false = counted(found.false_hits, "stop was", "stops were")
    cost = f"the entry was guarded by {entry}{no_probe}; {false} no alarm{more}"
    body = (Note(f"quiet: {reason}; watched: {counted(found.watched, 'stack')}", "good"), Note(cost, "dim"))
    return Report(result, body)


def _tripped(guest: Guest, result: GuardResult, found: Guarded) -> Report:
    from ptinspect.guest.stacks.fault import judge_cpu, with_writer

    session = guest.stopped
    cpu = session.current_cpu
    state = session.cpu_state(cpu)
    below, verdict = stack(guest, cpu=cpu), why_result(with_writer(guest, judge_cpu(guest, cpu)))
    assert isinstance(below.value, StackResult)
    title = [Note(f"cpu {cpu}: {verdict.code}: {verdict.text}", "title")]
    head: list[Note | Table] = [Note(f"stopped, way {found.way}, cpu {cpu} at {result.place}", "bad")]
    if found.near is not None:
        left = state.sp - found.near.base
        room = f"{left} bytes are left" if left >= 0 else f"SP is {-left} bytes below the base"
        kind = "stack" if found.near.kind == "task" else KINDS[found.near.kind]
        alarm = f"{room} on the {kind} of {found.near.owner}, and the margin is {found.margin}"
        result = replace(result, alarm=alarm)
        head.append(Note(alarm, "bad"))
        if verdict.code in ("unknown", "not-a-stack-problem"):
            verdict = replace(verdict, text=f"no fault of the stack has happened: {alarm}", unknown=())
            title = []
    result = replace(result, cpu=cpu, pc=VirtAddr(state.pc), why=verdict, stack=below.value)
    return Report(result, (*head, *below.body, *title, *reasons(verdict)), 1)
