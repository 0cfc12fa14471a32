"""From statements back to the lines of a script."""

from __future__ import annotations

import shlex

from ptinspect.script.model import Line, OnFailure, OnStop, Repeat, Source, Statement, Var

INDENT = "    "


def lines_of(statement: Statement, indent: str = "") -> list[str]:
    """Return the lines that `parse` makes this statement of, its place aside."""
    match statement:
        case Line(text):
            return [indent + text]
        case Var(name, value):
            return [f"{indent}var {name} = {value}"]
        case Source(path):
            return [f"{indent}source {path}"]
        case Repeat(count, counter, body):
            head = f"{indent}repeat {count}{f' as {counter}' if counter else ''}:"
        case OnStop(where, body):
            head = f"{indent}on stop {where}:"
        case OnFailure(body):
            head = f"{indent}on failure:"
    if not body:
        return [f"{head} off"]
    return [head, *(line for inner in body for line in lines_of(inner, indent + INDENT))]


def definition_of(name: str, value: str) -> str:
    """Return the line that gives a variable this very value; `$` in it stands for itself."""
    return f"var {name} = {shlex.quote(value)}"
