"""The depth of stacks over time, in characters and as the HTML page draws it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ptinspect.output.model import Note, Report, Table, escape

if TYPE_CHECKING:
    from ptinspect.stack.trace import Deepest, Trace

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


def picture(trace: Trace, report: Report, title: str) -> dict[str, Any]:
    """Return a trace as the HTML page draws it; `report` is what the terminal shows of it."""
    from ptinspect.output.html import packed, table_of
    from ptinspect.stack.trace import UNITS

    places: dict[str, int] = {}
    points = [
        (p.at, p.stack, trace.stacks[p.stack].top - p.sp, places.setdefault(f"{p.pc:#x}", len(places)))
        for p in trace.points
        if p.stack >= 0
    ]
    said = [part.text for part in report.body if isinstance(part, Note) and part.style == "dim"]
    return {
        "title": title,
        "unit": UNITS[trace.method],
        "facts": [*said[:3], trace.kernel],
        "stacks": [{"name": f"{s.kind} stack of {s.owner}", "size": s.size} for s in trace.stacks],
        "points": packed(json.dumps(points, separators=(",", ":")).encode()),
        "places": list(places),
        "deepest": [{"stack": d.stack, "used": d.used, "at": d.at, "place": d.place} for d in trace.deepest],
        "tables": [table_of(part) for part in report.body if isinstance(part, Table) and part.rows],
    }
