"""`stack trace`, `stack diff`: follow SP over a stretch of execution, and compare two such traces."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames, cpu_state
from ptinspect.output.files import write_text
from ptinspect.output.model import Cell, Note, Report, Styled, Table, escape, headings

if TYPE_CHECKING:
    from ptinspect.guest.stacks.stack_trace import Method, Whose
    from ptinspect.stack.trace import Compared, Deepest, Part, Trace

SECONDS = 10.0
STEPS = 20_000
MOST_STEPS = 1_000_000
EVERY = 0.05
FUNCTIONS = 12
"""Functions that are listed."""
TIGHT = 0.125
"""Part of a stack that is free when its depth is shown as bad."""
COUNTED = {"step": "instructions", "ladder": "stops at a new depth", "sample": "samples"}
"""What Trace.steps counts."""


@dataclass(frozen=True)
class ComparedResult:
    """What one stack or function has in two traces."""

    name: str
    before: int | None
    after: int | None
    grown: int


@dataclass(frozen=True)
class StackDiffResult:
    """Two traces compared, what grew most first."""

    a: str
    b: str
    stacks: Sequence[ComparedResult]
    functions: Sequence[ComparedResult]
    deepest_grown: int


@command(
    "stack trace",
    group="Stack",
    summary="Follow SP over a stretch of execution: the deepest point, where, and who is on the stack",
    example="stack trace --steps 5000 -o boot.trace",
    arguments=(
        arguments.WHERE,
        argument("--method", choices=("step", "ladder", "sample"), help="how to follow SP"),
        arguments.number_argument("--steps", 1, MOST_STEPS, f"instructions at most ({STEPS})"),
        arguments.timeout_argument(f"time at most ({SECONDS:.0f}; step: none)"),
        argument(
            "--every",
            type=arguments.seconds,
            default=EVERY,
            metavar="SECONDS",
            help=f"between samples ({EVERY})",
        ),
        argument(
            "--task",
            type=arguments.either("current", "any", other=arguments.task),
            default="current",
            metavar="current|PID|task:NAME|any",
            help="whose stacks a ladder watches",
        ),
        arguments.output_argument("write the trace to a file, for stack diff"),
        arguments.CPU,
    ),
    needs=Needs.STOPPED,
    details="Three ways. step: every instruction of one CPU, with what each function takes; thousands a "
    "second, so for short stretches, and no interrupt comes. ladder: watchpoints below the lowest SP so "
    "far, one stop for each new depth; exact for the stacks of --task and the CPUs' own, at nearly full "
    "speed. sample: SP of all CPUs at intervals. Without --method: step with --steps, else ladder. "
    "It ends at WHERE, after --steps, or after --timeout.",
)
def trace(
    guest: Guest,
    *,
    where: Sequence[Address],
    method: Method | None,
    steps: int | None,
    timeout: float | None,
    every: float,
    task: Whose,
    output: Path | None,
    cpu: int | None,
) -> Report:
    """Follow SP and say what was found; the result is what a file of the trace holds."""
    from ptinspect.guest.stacks.stack_trace import Limits, follow
    from ptinspect.stack.trace_file import dumps

    number = cpu_state(guest, cpu).cpu
    places = [address.value(GuestNames(guest, cpu)) for address in where]
    method = method or (None if steps is None else "step")
    limits = Limits(number, places, steps or STEPS, timeout or (inf if method == "step" else SECONDS), every)
    found = follow(guest, limits, method, task)
    report = trace_report(found)
    if output is None:
        return report
    write_text(output, dumps(found))
    written = Note(f"written to {escape(str(output))}", "dim")
    return Report({**report.result, "file": str(output)}, (*report.body, written))


def trace_report(trace: Trace) -> Report:
    """Show a trace."""
    from ptinspect.commands.stack.trace_view import chart
    from ptinspect.stack.trace import HOW
    from ptinspect.stack.trace_file import to_json

    body: list[Note | Table] = [
        Note(f"from {escape(trace.began)} until {escape(trace.ended)}", "dim"),
        Note(f"method {trace.method}: {HOW[trace.method]}", "dim"),
        Note(f"{trace.steps} {COUNTED[trace.method]} in {trace.seconds:.1f} s", "dim"),
        _stacks(trace),
    ]
    if trace.deepest:
        deepest = trace.deepest[0]
        body += chart(trace, deepest)
        if deepest.chain:
            body.append(_chain(deepest))
    if trace.functions:
        body.append(_functions(trace.functions))
    return Report(to_json(trace), body)


def _stacks(trace: Trace) -> Table:
    rows: list[Sequence[Cell]] = []
    for found in trace.deepest:
        stack = trace.stacks[found.stack]
        free = stack.size - found.used
        style = "bad" if free < stack.size * TIGHT else "plain"
        used = f"{100 * found.used / max(stack.size, 1):.1f} %"
        rows.append(
            (
                stack.kind,
                escape(stack.owner),
                str(found.used),
                Styled(f"{used}", style),  # type: ignore[arg-type]
                str(free),
                f"{found.at}",
                escape(found.place),
            )
        )
    at = f">at ({'step' if trace.method == 'step' else 'ms'})"
    columns = headings("stack", "of", ">deepest", ">used", ">free", at, "where")
    return Table(columns, rows, empty="SP was on no stack that is known")


def _chain(deepest: Deepest) -> Table:
    rows, total = [], 0
    for part in deepest.chain:
        total += part.size
        rows.append((escape(part.function), str(part.size), str(total)))
    columns = headings("function, innermost first", ">own bytes", ">sum")
    return Table(columns, rows, title="on the stack at the deepest point:")


def _functions(parts: Sequence[Part]) -> Table:
    rows = [(escape(part.function), str(part.size)) for part in parts[:FUNCTIONS]]
    return Table(headings("function", ">most own bytes"), rows, title="who takes most:")


@command(
    "stack diff",
    group="Stack",
    summary="Compare two files of stack trace: what grew, and by which function",
    example="stack diff before.trace after.trace",
    arguments=(
        argument("a", type=Path, metavar="A", help="file of the first trace"),
        argument("b", type=Path, metavar="B", help="file of the second"),
        argument(
            "--at-most", type=arguments.whole(0, 1 << 20), metavar="BYTES", help="growth that is no failure"
        ),
    ),
    result=StackDiffResult,
    details="With --at-most BYTES: exit code 1 if a stack that is in both grew by more.",
)
def diff(guest: Guest, *, a: Path, b: Path, at_most: int | None) -> Report:
    """Compare two traces."""
    from ptinspect.stack.trace import compare
    from ptinspect.stack.trace_file import load

    first, second = load(a), load(b)
    return diff_report(first, second, (str(a), str(b)), *compare(first, second), at_most=at_most)


def diff_report(
    a: Trace,
    b: Trace,
    names: tuple[str, str],
    stacks: Sequence[Compared],
    functions: Sequence[Compared],
    *,
    at_most: int | None = None,
) -> Report:
    """Compare two traces."""
    body: list[Note | Table] = [
        Note(f"{name}: {t.method}, {t.steps} {COUNTED[t.method]}, {escape(t.kernel)[:60]}", "dim")
        for name, t in zip(names, (a, b), strict=True)
    ]
    if a.method != b.method:
        text = "the methods differ: a ladder is exact, samples are not, steps hold interrupts back"
        body.append(Note(text, "changed"))
    changed = [row for row in functions if row.grown]
    body += [_compared("stack", stacks), _compared("function", changed[: 2 * FUNCTIONS])]
    grown = max((row.grown for row in stacks if row.before is not None), default=0)
    bad = at_most is not None and grown > at_most
    if bad:
        body.append(Note(f"a stack grew by {grown} bytes, more than {at_most}", "bad"))
    result = StackDiffResult(*names, list(map(_row, stacks)), list(map(_row, changed)), grown)
    return Report(result, body, EXIT_CHECK if bad else EXIT_OK)


def _row(row: Compared) -> ComparedResult:
    return ComparedResult(row.name, row.before, row.after, row.grown)


def _compared(what: str, rows: Sequence[Compared]) -> Table:
    def size(value: int | None) -> str:
        return "-" if value is None else str(value)

    cells: list[Sequence[Cell]] = [
        (
            escape(row.name),
            size(row.before),
            size(row.after),
            Styled(f"{row.grown:+}", "bad" if row.grown > 0 else "good" if row.grown < 0 else "dim"),
        )
        for row in rows
    ]
    return Table(headings(what, ">before", ">after", ">grown"), cells, empty=f"no {what} differs")
