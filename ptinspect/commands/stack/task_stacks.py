"""`stack tasks`: how deep the stacks of all tasks are, and how deep they have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.stack import LITTLE, TaskResult, task_result
from ptinspect.guest.stacks.kernel_stacks import TaskStack, task_stacks
from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table, escape

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
    arguments=(
        argument("--all", dest="everything", action="store_true", help=f"show all of them, not {SHOWN}"),
    ),
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
    body: list[Note | Table] = [Table(columns, [_cells(row) for row in shown])]
    if len(shown) < len(rows):
        body.append(Note(f"{len(rows) - len(shown)} more; --all shows them", "dim"))
    hows = dict.fromkeys(row.water.how for row in shown)
    body.append(Note(f"deepest: {'; '.join(hows)}", "dim"))
    if found.incomplete:
        body.append(Note(escape(found.incomplete), "bad"))
    result = TaskStacksResult(
        [_result(row) for row in rows], len(rows), escape(found.incomplete), min(row.least for row in rows)
    )
    return Report(result, body)


def _result(row: TaskStack) -> TaskStackResult:
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
