"""`stack`, `stack tasks`, `stack watch`: how deep kernel stacks are, that of one CPU with its frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU_OR_ALL, number_argument, switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state, need_registers
from ptinspect.guest.stacks.kernel_stacks import (
    FRAMES,
    TaskStack,
    depth,
    depth_of_sleeper,
    open_stacks,
    running_known,
    task_of,
    task_stacks,
)
from ptinspect.output.encode import ABSENT, Absent, filled
from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table, escape, headings

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Position, Stack
    from ptinspect.linux.running.tasks import Task
    from ptinspect.stack.depth import Depth
    from ptinspect.stack.kernel_code import KernelCode
    from ptinspect.stack.unwind import Frame


KINDS = {
    "task": "task stack",
    "irq": "IRQ stack",
    "overflow": "overflow stack",
    "sdei-normal": "SDEI stack, normal",
    "sdei-critical": "SDEI stack, critical",
    "idmap": "no known stack (identity map)",
    "user": "user code; kernel stack",
    "none": "no known stack",
}
WHAT = {"exception": "exception frame", "user": "entry from user mode", "end": "the last one, up to the top"}
LITTLE = 0.25
"""Part of a stack below which what is free is shown as bad."""
MAY_HAVE_RUN = "the file does not show whether the task ran: if it did, this is where it last slept"


@dataclass(frozen=True)
class TaskResult:
    """A task."""

    comm: str
    pid: int
    tgid: int
    address: VirtAddr


@dataclass(frozen=True)
class FrameResult:
    """One frame."""

    pc: VirtAddr
    symbol: str
    sp: VirtAddr
    size: int
    kind: str
    stack: str
    exact: bool
    count: int


@dataclass(frozen=True)
class BoundsResult:
    """A stack further up the chain."""

    kind: str
    base: VirtAddr
    top: VirtAddr


@dataclass(frozen=True)
class DepthResult:
    """The stack of one CPU, or of a task that sleeps."""

    cpu: int | None
    kind: str
    base: VirtAddr | None
    top: VirtAddr | None
    size: int | None
    sp: VirtAddr
    used: int | None
    free: int | None
    used_percent: float | None
    free_percent: float | None
    task: TaskResult | None
    end_magic_intact: bool | None
    mmu_on: bool
    identity_map: bool
    end_mark_doubt: str
    elsewhere: str
    how: str
    note: str
    frames: Sequence[FrameResult]
    frames_end: str
    frames_complete: bool
    other_stacks: Sequence[BoundsResult]


@dataclass(frozen=True)
class StackResult(DepthResult):
    """The stack that the command is about, and those of all CPUs that were asked for."""

    cpus: Sequence[DepthResult]
    doubt: str | Absent = ABSENT


@command(
    "stack",
    group="Stack",
    summary="Show which stack SP is on, how full it is, and its frames",
    example="stack --cpu all",
    arguments=(
        argument(
            "--cpu", type=CPU_OR_ALL, metavar="N|all", help="whose stack (default: the CPU that stopped)"
        ),
        argument(
            "of", nargs="?", metavar="TASK", type=arguments.task_word, help="PID or task:NAME: of a task"
        ),
        argument("--task", metavar="TASK", type=arguments.task, help="the same; NAME alone will do"),
        number_argument("-n", 1, 10_000, "at most N frames", dest="limit", default=FRAMES),
    ),
    result=StackResult,
    needs=Needs.STOPPED,
    details="Task, IRQ, overflow and SDEI stacks; comm, PID, base, top, SP, bytes used and free; each "
    "frame with its own size in bytes, through exception frames and changes of stack. Right with the "
    "MMU off too: the bytes are reached through the kernel's own tables. stack 79 and stack task:NAME show "
    "that of a task.",
    expectable=True,
)
def stack(
    guest: Guest,
    *,
    of: int | str | None = None,
    cpu: int | str | None = None,
    task: int | str | None = None,
    limit: int = FRAMES,
) -> Report:
    """Show the stack of one CPU, of all, or of a task."""
    from ptinspect.stack.kernel_code import KernelCode

    stacks = open_stacks(guest)
    code = KernelCode(stacks.view)
    which = of if task is None else task
    if which is not None:
        found = task_of(stacks, which)
        if found.cpu is None:
            doubt = "" if running_known(guest) else MAY_HAVE_RUN
            return depths([depth_of_sleeper(guest, found, limit)], code, doubt)
        cpu = found.cpu
    need_registers(guest)
    cpus = range(guest.stopped.cpu_count) if isinstance(cpu, str) else [cpu_state(guest, cpu).cpu]
    return depths([depth(guest, number, limit) for number in cpus], code)


def depths(found: Sequence[Depth], code: KernelCode, doubt: str = "") -> Report:
    """Show the stacks of one or more CPUs; the first is the one the command is about."""
    rows = [_result(depth, code) for depth in found]
    body = [part for depth in found for part in _body(depth, code)]
    if doubt:
        body.append(Note(doubt, "changed"))
    return Report(StackResult(**vars(rows[0]), cpus=rows, doubt=doubt or ABSENT), body)


def task_result(task: Task) -> TaskResult:
    """Return a task as results have it."""
    return filled(TaskResult, task, comm=escape(task.comm))


def _result(depth: Depth, code: KernelCode) -> DepthResult:
    position, unwound = depth.position, depth.unwound
    stack, task, used, free = position.stack, position.task, position.used, position.free
    return filled(
        DepthResult,
        position,
        cpu=position.cpu if position.cpu >= 0 else None,
        base=None if stack is None else VirtAddr(stack.base),
        top=None if stack is None else VirtAddr(stack.top),
        size=None if stack is None else stack.size,
        used_percent=_percent(used, stack),
        free_percent=_percent(free, stack),
        task=None if task is None else task_result(task),
        end_magic_intact=depth.end_magic_intact,
        identity_map=position.identity,
        end_mark_doubt=depth.doubt,
        elsewhere=depth.elsewhere,
        how="" if stack is None else stack.how,
        frames=[_frame(frame, code) for frame in unwound.frames],
        frames_end=unwound.ended,
        frames_complete=unwound.complete,
        other_stacks=[filled(BoundsResult, s) for s in depth.other_stacks],
    )


def _percent(part: int | None, stack: Stack | None) -> float | None:
    return None if stack is None or part is None or not stack.size else round(100 * part / stack.size, 1)


def _frame(frame: Frame, code: KernelCode) -> FrameResult:
    return filled(FrameResult, frame, symbol=code.symbol(frame.pc, returns=frame.returns))


def _body(depth: Depth, code: KernelCode) -> list[Note | Table]:
    """Show one stack to people: a headline, its bounds, its frames."""
    position = depth.position
    body: list[Note | Table] = [Note(_headline(depth), _style_of(position))]
    if position.stack is not None:
        stack = position.stack
        text = f"{stack.base:#x} to {stack.top:#x}, {stack.size} bytes; SP {position.sp:#x}"
        lost = f"; NO END MARK: {depth.doubt}" if depth.doubt else "; END MARK DESTROYED"
        magic = {True: "; end mark intact", False: lost, None: ""}[depth.end_magic_intact]
        body.append(Note(text + magic, "bad" if depth.end_magic_intact is False else "plain"))
        if depth.elsewhere:
            body.append(Note(f"THE MAPPING LEADS ELSEWHERE: {depth.elsewhere}; it is not the stack", "bad"))
        body.append(Note(f"known by {stack.how}", "dim"))
    mode = _mode(position)
    if mode:
        body.append(Note(mode, "changed"))
    if depth.unwound.frames:
        body.append(_frames_table(depth.unwound.frames, code))
        body.append(Note(f"the chain ends: {escape(depth.unwound.ended)}", "dim"))
    return body


def _headline(depth: Depth) -> str:
    """Say in one line whose stack it is and how full: `cpu 0: task stack of init (1): 800 of 16384 …`."""
    position = depth.position
    cpu = f"cpu {position.cpu}: " if position.cpu >= 0 else ""
    whose = f" of {position.task.label}" if position.task is not None and position.kind != "irq" else ""
    stack = position.stack
    if stack is None or position.used is None or position.free is None:
        return f"{cpu}{KINDS[position.kind]}{whose}: SP {position.sp:#x}; {position.note}"
    percent = 100 * position.used / stack.size
    return (
        f"{cpu}{KINDS[position.kind]}{whose}: {position.used} of {stack.size} bytes used "
        f"({percent:.1f} %), {position.free} free"
    )


def _style_of(position: Position) -> Style:
    """Choose the colour of a stack by what is free of it."""
    if position.stack is None or position.free is None:
        return "changed"
    return "bad" if position.free < LITTLE * position.stack.size else "title"


def _mode(position: Position) -> str:
    if position.identity:
        mmu = "on" if position.mmu_on else "off"
        return f"the CPU runs in the identity map, MMU {mmu}: SP is a virtual address all the same"
    return position.note if position.kind in ("user", "none") or position.note else ""


def _frames_table(frames: Sequence[Frame], code: KernelCode) -> Table:
    """List frames, each with its own size."""
    rows: list[tuple[Cell, ...]] = []
    for number, frame in enumerate(frames):
        what = WHAT.get(frame.kind, "")
        if frame.kind == "unwritten":
            what = f"{frame.count} exceptions of {frame.size // frame.count} bytes that could not be stored"
        size = str(frame.size) if frame.exact else f"{frame.size}?"
        symbol = code.symbol(frame.pc, returns=frame.returns)
        style: Style = "bad" if frame.kind == "unwritten" else "plain"
        rows.append(
            (str(number), Styled(f"{frame.sp:#x}", "address"), size, frame.stack, symbol, Styled(what, style))
        )
    return Table(headings(">#", "sp", ">bytes", "stack", "function", "what"), rows)


SHOWN = 20
"""Tasks shown to people unless --all."""


@dataclass(frozen=True)
class TaskStackResult(TaskResult):
    """The stack of one task."""

    cpu: int | None
    base: VirtAddr
    top: VirtAddr
    size: int
    sp: VirtAddr
    used: int
    free: int
    how: str
    end_magic_intact: bool | None
    deepest: int | None
    deepest_address: VirtAddr | None
    deepest_how: str
    least_free: int


@dataclass(frozen=True)
class TaskStacksResult:
    """The stacks of all tasks, least free space first."""

    tasks: Sequence[TaskStackResult]
    total: int
    incomplete: str
    least_free: int


@command(
    "stack tasks",
    group="Stack",
    summary="Show the stacks of all tasks, least free space first",
    example="stack tasks --all",
    arguments=(switch("--all", f"show all of them, not {SHOWN}", dest="everything"),),
    result=TaskStacksResult,
    needs=Needs.STOPPED,
    details="From the saved SP of tasks that sleep and the live SP of those that run; with the deepest "
    "point ever reached, where the unused part is still zero or painted.",
)
def tasks(ctx: Context, *, everything: bool) -> Report:
    """List the stacks of all tasks."""
    found = task_stacks(ctx.guest)
    rows = found.rows
    shown = rows if everything else rows[: ctx.rows(SHOWN)]
    sp, free = Column("sp", spare=True), Column("free", "right", spare=True)
    columns = headings(">pid", "task", sp, ">used", free, ">deepest", ">least free", "end mark", "how")
    body: list[Note | Table] = [Table(columns, [_cells(row) for row in shown])]
    if len(shown) < len(rows):
        body.append(Note(f"{len(rows) - len(shown)} more; --all shows them", "dim"))
    hows = dict.fromkeys(row.water.how for row in shown)
    body.append(Note(f"deepest: {'; '.join(hows)}", "dim"))
    if found.incomplete:
        body.append(Note(escape(found.incomplete), "bad"))
    result = TaskStacksResult(
        [_task_stack(row) for row in rows],
        len(rows),
        escape(found.incomplete),
        min(row.least for row in rows),
    )
    return Report(result, body)


def _task_stack(row: TaskStack) -> TaskStackResult:
    lowest = row.water.lowest
    return TaskStackResult(
        **vars(task_result(row.task)),
        cpu=row.task.cpu,
        base=VirtAddr(row.stack.base),
        top=VirtAddr(row.stack.top),
        size=row.stack.size,
        sp=VirtAddr(row.sp),
        used=row.stack.top - row.sp,
        free=row.free,
        how=row.how,
        end_magic_intact=row.magic,
        deepest=row.water.depth,
        deepest_address=None if lowest is None else VirtAddr(lowest),
        deepest_how=row.water.how,
        least_free=row.least,
    )


def _cells(row: TaskStack) -> tuple[Cell, ...]:
    marks: dict[bool | None, Cell] = {True: "intact", False: Styled("DESTROYED", "bad"), None: "?"}
    bad = row.least < LITTLE * row.stack.size
    return (
        str(row.task.pid),
        escape(row.task.comm),
        Styled(f"{row.sp:#x}", "address"),
        str(row.stack.top - row.sp),
        str(row.free),
        "?" if row.water.depth is None else str(row.water.depth),
        Styled(str(row.least), "bad" if bad else "plain"),
        marks[row.magic],
        row.how,
    )


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
