"""Stacks, their frames, and the stacks of all tasks, as reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Position, Stack
    from ptinspect.linux.running.tasks import Task
    from ptinspect.stack.depth import Depth
    from ptinspect.stack.highwater import HighWater
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


def task_json(task: Task | None) -> dict[str, Any] | None:
    """Name a task."""
    if task is None:
        return None
    return {
        "comm": escape(task.comm),
        "pid": task.pid,
        "tgid": task.tgid,
        "address": hex_address(task.address),
    }


def depth_json(depth: Depth, code: KernelCode) -> dict[str, Any]:
    """Write the depth of one CPU's stack, or of a sleeping task's."""
    position = depth.position
    stack = position.stack
    size = None if stack is None else stack.size
    used, free = position.used, position.free
    return {
        "cpu": position.cpu if position.cpu >= 0 else None,
        "kind": position.kind,
        "base": None if stack is None else hex_address(stack.base),
        "top": None if stack is None else hex_address(stack.top),
        "size": size,
        "sp": hex_address(position.sp),
        "used": used,
        "free": free,
        "used_percent": None if not size or used is None else round(100 * used / size, 1),
        "free_percent": None if not size or free is None else round(100 * free / size, 1),
        "task": task_json(position.task),
        "end_magic_intact": depth.end_magic_intact,
        "mmu_on": position.mmu_on,
        "identity_map": position.identity,
        "end_mark_doubt": depth.doubt,
        "elsewhere": depth.elsewhere,
        "how": "" if stack is None else stack.how,
        "note": position.note,
        "frames": [frame_json(frame, code) for frame in depth.unwound.frames],
        "frames_end": depth.unwound.ended,
        "frames_complete": depth.unwound.complete,
        "other_stacks": [
            {"kind": s.kind, "base": hex_address(s.base), "top": hex_address(s.top)}
            for s in depth.other_stacks
        ],
    }


def frame_json(frame: Frame, code: KernelCode) -> dict[str, Any]:
    """Write one frame."""
    return {
        "pc": hex_address(frame.pc),
        "symbol": code.symbol(frame.pc, returns=frame.returns),
        "sp": hex_address(frame.sp),
        "size": frame.size,
        "kind": frame.kind,
        "stack": frame.stack,
        "exact": frame.exact,
        "count": frame.count,
    }


def depths(found: Sequence[Depth], code: KernelCode) -> Report:
    """Show the stacks of one or more CPUs; the first is the one the command is about."""
    rows = [depth_json(depth, code) for depth in found]
    body: list[Note | Table] = []
    for depth in found:
        body.extend(depth_body(depth, code))
    return Report({**rows[0], "cpus": rows}, body)


def depth_body(depth: Depth, code: KernelCode) -> list[Note | Table]:
    """Show one stack to people: a headline, its bounds, its frames."""
    position = depth.position
    body: list[Note | Table] = [Note(headline(depth), style_of(position))]
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
        body.append(frames_table(depth.unwound.frames, code))
        body.append(Note(f"the chain ends: {escape(depth.unwound.ended)}", "dim"))
    return body


def headline(depth: Depth) -> str:
    """Say in one line whose stack it is and how full: `cpu 0: task stack of init (1): 800 of 16384 …`."""
    position = depth.position
    cpu = f"cpu {position.cpu}: " if position.cpu >= 0 else ""
    whose = f" of {named(position.task)}" if position.task is not None and position.kind != "irq" else ""
    stack = position.stack
    if stack is None or position.used is None or position.free is None:
        return f"{cpu}{KINDS[position.kind]}{whose}: SP {position.sp:#x}; {position.note}"
    percent = 100 * position.used / stack.size
    return (
        f"{cpu}{KINDS[position.kind]}{whose}: {position.used} of {stack.size} bytes used "
        f"({percent:.1f} %), {position.free} free"
    )


def named(task: Task | None) -> str:
    """Name a task for people: `migration/0 (12)`."""
    return "nobody known" if task is None else f"{escape(task.comm)} ({task.pid})"


def style_of(position: Position) -> Style:
    """Choose the colour of a stack by what is free of it."""
    if position.stack is None or position.free is None:
        return "changed"
    return "bad" if position.free < LITTLE * position.stack.size else "title"


def _mode(position: Position) -> str:
    if position.identity:
        mmu = "on" if position.mmu_on else "off"
        return f"the CPU runs in the identity map, MMU {mmu}: SP is a virtual address all the same"
    return position.note if position.kind in ("user", "none") or position.note else ""


def frames_table(frames: Sequence[Frame], code: KernelCode) -> Table:
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
    columns = (
        Column("#", "right"),
        Column("sp"),
        Column("bytes", "right"),
        Column("stack"),
        Column("function"),
        Column("what"),
    )
    return Table(columns, rows)


@dataclass(frozen=True)
class TaskRow:
    """What `stack tasks` says of one task."""

    task: Task
    """The task."""
    stack: Stack
    """Its stack."""
    sp: int
    """The live SP if it runs on its stack, else the saved one."""
    how: str
    """`live, cpu 0` or `saved`."""
    magic: bool | None
    """Whether the end mark is intact."""
    water: HighWater
    """The deepest point."""

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


def tasks(rows: Sequence[TaskRow], incomplete: str, limit: int | None) -> Report:
    """List tasks, those with the least free space first."""
    shown = rows if limit is None else rows[:limit]
    result = {
        "tasks": [_task_json(row) for row in rows],
        "total": len(rows),
        "incomplete": escape(incomplete),
        "least_free": min((row.least for row in rows), default=None),
    }
    cells: list[tuple[Cell, ...]] = [_task_cells(row) for row in shown]
    columns = (
        Column("pid", "right"),
        Column("task"),
        Column("sp", spare=True),
        Column("used", "right"),
        Column("free", "right"),
        Column("deepest", "right"),
        Column("least free", "right"),
        Column("end mark"),
        Column("how"),
    )
    body: list[Note | Table] = [Table(columns, cells, empty="no task was found")]
    if len(shown) < len(rows):
        body.append(Note(f"{len(rows) - len(shown)} more; --all shows them", "dim"))
    hows = dict.fromkeys(row.water.how for row in shown)
    body.append(Note(f"deepest: {'; '.join(hows)}", "dim"))
    if incomplete:
        body.append(Note(escape(incomplete), "bad"))
    return Report(result, body)


def _task_json(row: TaskRow) -> dict[str, Any]:
    found = task_json(row.task)
    assert found is not None
    return {
        **found,
        "cpu": row.task.cpu,
        "base": hex_address(row.stack.base),
        "top": hex_address(row.stack.top),
        "size": row.stack.size,
        "sp": hex_address(row.sp),
        "used": row.stack.top - row.sp,
        "free": row.free,
        "how": row.how,
        "end_magic_intact": row.magic,
        "deepest": row.water.depth,
        "deepest_address": None if row.water.lowest is None else hex_address(row.water.lowest),
        "deepest_how": row.water.how,
        "least_free": row.least,
    }


def _task_cells(row: TaskRow) -> tuple[Cell, ...]:
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
