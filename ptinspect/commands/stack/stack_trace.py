"""`stack trace`, `stack diff`: follow SP over a stretch of execution, and compare two such traces."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.trace_ways import Limits, Way
from ptinspect.errors import EXIT_CHECK, EXIT_OK, GuestError, OutOfSlots, PtinspectError
from ptinspect.guest import expression
from ptinspect.guest.kernel_stacks import open_stacks, task_of
from ptinspect.guest.names import GuestNames, cpu_state
from ptinspect.output.files import write_text
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Stack, Stacks

SECONDS = 10.0
STEPS = 20_000
MOST_STEPS = 1_000_000
EVERY = 0.05


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "where",
        nargs="*",
        type=expression.address,
        metavar="WHERE",
        help=f"end here; {expression.ADDRESS_HELP}",
    )
    add("--method", choices=("step", "ladder", "sample"), help="how to follow SP")
    add("--steps", type=argtypes.whole(1, MOST_STEPS), metavar="N", help=f"instructions at most ({STEPS})")
    add("--timeout", type=argtypes.seconds, metavar="SECONDS", help=f"for ladder and sample ({SECONDS:.0f})")
    add("--every", type=argtypes.seconds, default=EVERY, metavar="SECONDS", help=f"between samples ({EVERY})")
    add("--task", default="current", metavar="current|PID|any", help="whose stacks a ladder watches")
    add("-o", dest="output", type=Path, metavar="FILE", help="write the trace to a file, for stack diff")
    add_cpu_option(parser)


def _configure_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="file of the first trace")
    parser.add_argument("b", type=Path, metavar="B", help="file of the second")
    parser.add_argument(
        "--at-most", type=argtypes.whole(0, 1 << 20), metavar="BYTES", help="growth that is no failure"
    )


@command(
    "stack trace",
    group="Stack",
    summary="Follow SP over a stretch of execution: the deepest point, where, and who is on the stack",
    example="stack trace --steps 5000 -o boot.trace",
    needs=Needs.STOPPED,
    configure=_configure,
    details="Three ways. step: every instruction of one CPU, with what each function takes; thousands a "
    "second, so for short stretches, and no interrupt comes. ladder: watchpoints below the lowest SP so "
    "far, one stop for each new depth; exact for the stacks of --task and the CPUs' own, at nearly full "
    "speed. sample: SP of all CPUs at intervals. Without --method: step with --steps, else ladder. "
    "It ends at WHERE, after --steps, or after --timeout.",
)
def trace(ctx: Context, args: argparse.Namespace) -> Report:
    """Follow SP and say what was found."""
    from ptinspect.output.views.trace import trace_report
    from ptinspect.stack.trace_file import dumps

    cpu = cpu_state(ctx.guest, args.cpu).cpu
    method = args.method or ("step" if args.steps is not None else "")
    if ctx.stopped.slots.limited and method == "ladder":
        raise OutOfSlots("no ladder under KVM: its watchpoints are many, and of any size", "--method sample")
    method = method or ("sample" if ctx.stopped.slots.limited else "ladder")
    places = [address.value(GuestNames(ctx.guest, args.cpu)) for address in args.where]
    limits = Limits(cpu, places, args.steps or STEPS, args.timeout or SECONDS, args.every)
    stacks = open_stacks(ctx.guest)
    way = Way(ctx, stacks, limits, _wanted(ctx, stacks, args, everything=method != "ladder"))
    found = {"step": way.step, "ladder": way.ladder, "sample": way.sample}[method]()
    report = trace_report(found)
    if args.output is None:
        return report
    write_text(args.output, dumps(found))
    said = Note(f"written to {escape(str(args.output))}", "dim")
    return Report({**report.result, "file": str(args.output)}, (*report.body, said))


def _wanted(ctx: Context, stacks: Stacks, args: argparse.Namespace, *, everything: bool) -> list[Stack]:
    """Return the stacks to tell apart, or to watch."""
    session = ctx.stopped
    found = [stack for cpu in range(session.cpu_count) for stack in stacks.of_cpu(session.cpu_state(cpu))]
    if not everything:
        found = [stack for stack in found if stack.kind == "irq"]
    if everything or args.task == "any":
        try:
            tasks = list(stacks.tasks.all().tasks)
        except PtinspectError:
            tasks = []
    elif args.task == "current":
        task = stacks.tasks.current(cpu_state(ctx.guest, args.cpu))
        if task is None:
            raise GuestError("there is no current task yet", "--task any, or let the guest run further")
        tasks = [task]
    else:
        tasks = [task_of(stacks, argtypes.whole(0, 1 << 22)(args.task))]
    current = [stacks.tasks.current(session.cpu_state(cpu)) for cpu in range(session.cpu_count)]
    if everything:
        tasks += [task for task in current if task is not None]
    unique = {stack.base: stack for stack in (*found, *map(stacks.of_task, tasks))}
    return list(unique.values())


@command(
    "stack diff",
    group="Stack",
    summary="Compare two files of stack trace: what grew, and by which function",
    example="stack diff before.trace after.trace",
    configure=_configure_diff,
    details="With --at-most BYTES: exit code 1 if a stack that is in both grew by more.",
)
def diff(ctx: Context, args: argparse.Namespace) -> Report:
    """Compare two traces."""
    from ptinspect.output.views.trace import diff_report
    from ptinspect.stack.trace import compare
    from ptinspect.stack.trace_file import load

    a, b = load(args.a), load(args.b)
    report = diff_report(a, b, (str(args.a), str(args.b)), *compare(a, b))
    grown = report.result["deepest_grown"]
    bad = args.at_most is not None and grown > args.at_most
    note = (Note(f"a stack grew by {grown} bytes, more than {args.at_most}", "bad"),) if bad else ()
    return Report(report.result, (*report.body, *note), EXIT_CHECK if bad else EXIT_OK)
