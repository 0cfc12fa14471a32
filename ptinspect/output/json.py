"""Answers as JSON, one object per command and line; and the JSON Schemas of what is in them.

There is one schema for each command, `stack-tasks.json` for `stack tasks`. They describe `result` of a line
that `--json` prints, and the files that `-o FILE.json` writes. Within a version fields are added, never
renamed or removed, and none changes its meaning; so a schema allows fields that it does not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ptinspect.output.model import Report

SCHEMAS = Path(__file__).parent.parent / "formats"
"""The folder of the schemas."""


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


def schema_names() -> list[str]:
    """Return the commands that have a schema, in order."""
    return sorted(path.stem.replace("-", " ") for path in SCHEMAS.glob("*.json"))


def schema(command: str) -> dict[str, Any]:
    """Return the schema of a command's result. Raises FileNotFoundError if it has none."""
    found: dict[str, Any] = json.loads((SCHEMAS / f"{command.replace(' ', '-')}.json").read_text())
    return found
