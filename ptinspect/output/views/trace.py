"""Stack traces as reports: the deepest points, who contributed, and depth over time in characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptinspect.output.model import Cell, Column, Note, Report, Styled, Table, escape
from ptinspect.stack.trace import LADDER, UNITS, Compared, Deepest, Part, Trace, TracedStack
from ptinspect.stack.trace_file import to_json

WIDTH, HEIGHT = 64, 8
"""Columns and lines of the chart."""
FUNCTIONS = 12
"""Functions that are listed."""
TIGHT = 0.125
"""Part of a stack that is free when its depth is shown as bad."""


def trace_report(trace: Trace, shown: int = FUNCTIONS) -> Report:
    """Show a trace."""
    cost = f"{trace.steps} {_counted(trace)} in {trace.seconds:.1f} s"
    body: list[Note | Table] = [
        Note(f"from {escape(trace.began)} until {escape(trace.ended)}", "dim"),
        Note(f"method {trace.method}: {_how(trace)}", "dim"),
        Note(cost, "dim"),
        _stacks(trace),
    ]
    if trace.deepest:
        deepest = trace.deepest[0]
        body += chart(trace, deepest)
        if deepest.chain:
            body.append(_chain(deepest))
    if trace.functions:
        body.append(_functions(trace.functions, shown))
    return Report(to_json(trace), body)


def _counted(trace: Trace) -> str:
    return {"step": "instructions", "ladder": "stops at a new depth", "sample": "samples"}[trace.method]


def _how(trace: Trace) -> str:
    return {
        "step": "every instruction of one CPU, interrupts held back",
        "ladder": "a watchpoint below the lowest SP so far",
        "sample": "SP at intervals; what lies between is not seen",
    }[trace.method]


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
    columns = (
        Column("stack"),
        Column("of"),
        Column("deepest", "right"),
        Column("used", "right"),
        Column("free", "right"),
        Column(f"at ({'step' if trace.method == 'step' else 'ms'})", "right"),
        Column("where"),
    )
    return Table(columns, rows, empty="SP was on no stack that is known")


def chart(trace: Trace, deepest: Deepest) -> list[Note]:
    """Draw the depth of one stack over time; a column shows the deepest point of its interval."""
    stack = trace.stacks[deepest.stack]
    points = trace.points
    if len(points) < 2 or points[-1].at == points[0].at:
        return []
    first, span = points[0].at, points[-1].at - points[0].at + 1
    columns: list[int | None] = [None] * WIDTH
    for number, point in enumerate(points):
        if point.stack != deepest.stack:
            continue
        ahead = points[number + 1].at if number + 1 < len(points) else point.at + 1
        until = points[-1].at + 1 if trace.method == LADDER else ahead  # a new depth stays the deepest
        last = max(((until - first) * WIDTH - 1) // span, (point.at - first) * WIDTH // span)
        for column in range((point.at - first) * WIDTH // span, min(last, WIDTH - 1) + 1):
            columns[column] = max(columns[column] or 0, stack.top - point.sp)
    scale = max(deepest.used, 1)
    lines = [
        Note(f"bytes used on the {stack.kind} stack of {escape(stack.owner)}, of {stack.size}:", "title")
    ]
    for line in range(HEIGHT, 0, -1):
        edge = scale * (line - 1) / HEIGHT
        bar = "".join(" " if used is None else "#" if used > edge else " " for used in columns)
        lines.append(Note(f"{round(scale * line / HEIGHT):>7} |{bar.rstrip()}"))
    lines.append(Note(f"{'':>7} +{'-' * WIDTH}", "dim"))
    lines.append(Note(f"{'':>7}  {first} to {points[-1].at} {UNITS[trace.method]}", "dim"))
    return lines


def _chain(deepest: Deepest) -> Table:
    rows, total = [], 0
    for part in deepest.chain:
        total += part.size
        rows.append((escape(part.function), str(part.size), str(total)))
    columns = (Column("function, innermost first"), Column("own bytes", "right"), Column("sum", "right"))
    return Table(columns, rows, title="on the stack at the deepest point:")


def _functions(parts: Sequence[Part], shown: int) -> Table:
    rows = [(escape(part.function), str(part.size)) for part in parts[:shown]]
    return Table((Column("function"), Column("most own bytes", "right")), rows, title="who takes most:")


def diff_report(
    a: Trace, b: Trace, names: tuple[str, str], stacks: Sequence[Compared], functions: Sequence[Compared]
) -> Report:
    """Compare two traces."""
    body: list[Note | Table] = [
        *(
            Note(f"{name}: {t.method}, {t.steps} {_counted(t)}, {escape(t.kernel)[:60]}", "dim")
            for name, t in zip(names, (a, b), strict=True)
        ),
    ]
    if a.method != b.method:
        body.append(
            Note(
                "the methods differ: a ladder is exact, samples are not, steps hold interrupts back",
                "changed",
            )
        )
    body.append(_compared("stack", stacks))
    changed = [row for row in functions if row.grown]
    body.append(_compared("function", changed[: 2 * FUNCTIONS]))
    result = {
        "a": names[0],
        "b": names[1],
        "stacks": [_row(row) for row in stacks],
        "functions": [_row(row) for row in changed],
        "deepest_grown": max((row.grown for row in stacks if row.before is not None), default=0),
    }
    return Report(result, body)


def _row(row: Compared) -> dict[str, Any]:
    return {"name": row.name, "before": row.before, "after": row.after, "grown": row.grown}


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
    columns = (Column(what), Column("before", "right"), Column("after", "right"), Column("grown", "right"))
    return Table(columns, cells, empty=f"no {what} differs")


def picture(trace: Trace, title: str) -> dict[str, Any]:
    """Return a trace as the HTML page draws it."""

    def name(stack: TracedStack) -> str:
        return f"{stack.kind} stack of {stack.owner}"

    series = []
    for number, stack in enumerate(trace.stacks):
        mine = [point for point in trace.points if point.stack == number]
        series.append(
            {
                "name": name(stack),
                "x": [point.at for point in mine],
                "y": [stack.top - point.sp for point in mine],
                "text": [f"pc {point.pc:#x}" for point in mine],
            }
        )
    limits = [
        {"y": size, "name": f"{size} bytes: the end", "bad": True} for size in {s.size for s in trace.stacks}
    ]
    rows = [
        [
            name(trace.stacks[d.stack]),
            str(d.used),
            str(trace.stacks[d.stack].size - d.used),
            str(d.at),
            d.place,
        ]
        for d in trace.deepest
    ]
    heads = ["stack", "deepest, bytes", "free", UNITS[trace.method], "where"]
    return {
        "title": title,
        "x": UNITS[trace.method],
        "facts": [
            f"from {trace.began} until {trace.ended}",
            f"method {trace.method}: {_how(trace)}",
            trace.kernel,
        ],
        "series": series,
        "limits": limits,
        "table": {"heads": heads, "rows": rows, "numeric": [1, 2, 3]},
    }
