"""Answers as JSON, one object per command and line."""

from __future__ import annotations

import json
from typing import Any

from ptinspect.output.model import Report


def answer(command: str, report: Report, line: str = "") -> str:
    """Return the line that `--json` prints for a command that ran.

    `ok` is false where a check that the command was asked to make did not hold.
    """
    return _dump(
        {"command": command, "ok": report.exit_code == 0, "result": dict(report.result), "line": line}
    )


def failure(command: str, kind: str, message: str, hint: str = "", line: str = "") -> str:
    """Return the line that `--json` prints for a command that failed."""
    error = {"kind": kind, "message": message, "hint": hint}
    return _dump({"command": command, "ok": False, "error": error, "line": line})


def document(report: Report) -> str:
    """Return the result alone, indented, as a file holds it."""
    return json.dumps(dict(report.result), indent=2, default=_plain) + "\n"


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """Turn numpy's scalars and arrays into Python's numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a result")
