"""`stack`, `stack tasks`: how deep kernel stacks are, and how deep they have been."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError
from ptinspect.guest.kernel_stacks import open_stacks, task_of
from ptinspect.guest.names import cpu_state, need_registers
from ptinspect.output.model import Note, Report
from ptinspect.output.views import stack as views

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Stacks
    from ptinspect.stack.depth import Depth

SHOWN = 20
"""Tasks shown to people unless --all."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_cpu_option(parser, "whose stack (default: the CPU that stopped)", every=True)
    add("--task", metavar="PID", type=argtypes.whole(0, 1 << 22), help="the stack of this task instead")
    add("-n", dest="limit", type=argtypes.whole(1, 10_000), default=256, metavar="N", help="at most N frames")


def _configure_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help=f"show all of them, not {SHOWN}")


@command(
    "stack",
    group="Stack",
    summary="Show which stack SP is on, how full it is, and its frames",
    example="stack --cpu all",
    needs=Needs.STOPPED,
    configure=_configure,
    details="Task, IRQ, overflow and SDEI stacks; comm, PID, base, top, SP, bytes used and free; each "
    "frame with its own size in bytes, through exception frames and changes of stack. Right with the "
    "MMU off too: the bytes are reached through the kernel's own tables.",
    expectable=True,
)
def stack(ctx: Context, args: argparse.Namespace) -> Report:
    """Show the stack of one CPU, of all, or of a task."""
    from ptinspect.stack.depth import depth_of_cpu, depth_of_task
    from ptinspect.stack.kernel_code import KernelCode

    session = ctx.stopped
    found = open_stacks(ctx.guest)
    code = KernelCode(found.view)
    if args.task is not None:
        task = task_of(found, args.task)
        if task.cpu is None:
            depth = _compared(ctx, found, depth_of_task(found, task, args.limit))
            return _doubted(ctx, views.depths([depth], code))
        args.cpu = task.cpu
    need_registers(ctx.guest)
    if args.cpu == "all":
        cpus = range(session.cpu_count)
    else:
        cpu = cpu_state(ctx.guest, args.cpu).cpu
        cpus = range(cpu, cpu + 1)
    depths = [depth_of_cpu(found, session.cpu_state(cpu), args.limit) for cpu in cpus]
    return views.depths([_compared(ctx, found, depth) for depth in depths], code)


def _compared(ctx: Context, found: Stacks, depth: Depth) -> Depth:
    """Say of a stack without its end mark whether snapshots show that it led to other memory."""
    from ptinspect.stack.verdict_facts import leads_elsewhere

    stack = depth.position.stack
    if depth.end_magic_intact is not False or stack is None:
        return depth
    newest = sorted(ctx.snapshots.values(), key=lambda s: s.meta.created, reverse=True)
    text = leads_elsewhere(found, stack, newest)
    return replace(depth, end_magic_intact=None, doubt="", elsewhere=text) if text else depth


UNSURE = "saved, unless it ran"
"""How the stack pointer of a task is known where nothing tells which tasks the CPUs ran."""


def _sure(ctx: Context) -> bool:
    """Tell whether it is known which tasks the CPUs run: not in a file, which has no SP_EL0 of theirs."""
    session = ctx.stopped
    states = [session.cpu_state(cpu) for cpu in range(session.cpu_count)]
    return ctx.guest.imported is None or all("SP_EL0" in s.system for s in states)


def _doubted(ctx: Context, report: Report) -> Report:
    """Say of a task in a file that it may have been running."""
    if _sure(ctx):
        return report
    note = "the file does not tell whether the task ran: if it did, this is where it last slept"
    return Report({**report.result, "doubt": note}, (*report.body, Note(note, "changed")), report.exit_code)


@command(
    "stack tasks",
    group="Stack",
    summary="Show the stacks of all tasks, least free space first",
    example="stack tasks --all",
    needs=Needs.STOPPED,
    configure=_configure_tasks,
    details="From the saved SP of tasks that sleep and the live SP of those that run; with the deepest "
    "point ever reached, where the unused part is still zero or painted.",
)
def tasks(ctx: Context, args: argparse.Namespace) -> Report:
    """List the stacks of all tasks."""
    from ptinspect.stack.depth import with_true_sp
    from ptinspect.stack.highwater import high_water, read_stacks

    found = open_stacks(ctx.guest)
    listed = found.tasks.all()
    live = {}
    for state in found.view.states:
        position = found.locate(with_true_sp(found, state))
        if position.stack is not None and position.stack.kind == "task":
            live[position.stack.base] = position
    stacks = [found.of_task(task) for task in listed.tasks]
    words = read_stacks(found.view, stacks)
    rows = []
    saved = "saved" if _sure(ctx) else UNSURE
    for task, own in zip(listed.tasks, stacks, strict=True):
        here = live.get(own.base)
        sp = task.saved_sp if here is None else here.sp
        how = saved if here is None else f"live, cpu {here.cpu}"
        if here is None and task.cpu is not None:
            how = f"on another stack, cpu {task.cpu}"
        content = words.get(own.base)
        magic = None if content is None else int(content[0]) == _magic() or found.end_magic(own)
        rows.append(views.TaskRow(task, own, sp, how, magic, high_water(own, content)))
    rows.sort(key=lambda row: (row.least, row.task.pid))
    if not rows:
        raise GuestError("no task was found")
    return views.tasks(rows, listed.incomplete, None if args.all else ctx.rows(SHOWN))


def _magic() -> int:
    from ptinspect.linux.running.member_offsets import STACK_END_MAGIC

    return STACK_END_MAGIC
