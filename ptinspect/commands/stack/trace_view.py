"""The depth of stacks over time, in characters and as the HTML page draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptinspect.output.model import Note, escape

if TYPE_CHECKING:
    from ptinspect.stack.trace import Deepest, Trace, TracedStack

WIDTH, HEIGHT = 64, 8
"""Columns and lines of the chart."""


def chart(trace: Trace, deepest: Deepest) -> list[Note]:
    """Draw the depth of one stack over time; a column shows the deepest point of its interval."""
    from ptinspect.stack.trace import LADDER, UNITS

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


def picture(trace: Trace, title: str) -> dict[str, Any]:
    """Return a trace as the HTML page draws it."""
    from ptinspect.stack.trace import HOW, UNITS

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
            f"method {trace.method}: {HOW[trace.method]}",
            trace.kernel,
        ],
        "series": series,
        "limits": limits,
        "table": {"heads": heads, "rows": rows, "numeric": [1, 2, 3]},
    }
