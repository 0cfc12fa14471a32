"""Answers as JSON, one object per command and line."""

from __future__ import annotations

import json
from typing import Any

from ptinspect.output.model import Report


def answer(command: str, report: Report, line: str = "", place: str = "") -> str:
    """Return the line that `--json` prints for a command that ran.

    `ok` is false where a check that the command was asked to make did not hold; `place` is `file:line`
    of a script, and left out where there is none.
    """
    ok = report.exit_code == 0
    return json.dumps({"command": command, "ok": ok, "result": report.result, **_where(line, place)})


def failure(command: str, kind: str, message: str, hint: str = "", line: str = "", *, place: str = "") -> str:
    """Return the line that `--json` prints for a command that failed."""
    error = {"kind": kind, "message": message, "hint": hint}
    return json.dumps({"command": command, "ok": False, "error": error, **_where(line, place)})


def _where(line: str, place: str) -> dict[str, Any]:
    return {"line": line, "place": place} if place else {"line": line}


def document(report: Report) -> str:
    """Return the result alone, indented, as a file holds it."""
    return json.dumps(report.result, indent=2) + "\n"
