"""What came of the lines of a script, and a JUnit report of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK

AFTERWARDS = "on-failure"
"""The place of commands that run after a failure, where others have `file:line`."""
_NO_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


@dataclass(frozen=True)
class Outcome:
    """Hold what came of one command."""

    name: str
    """Full name of the command, or its first word if there is no such command."""
    line: str
    """The line that ran, its variables replaced."""
    place: str = ""
    code: int = EXIT_OK
    message: str = ""
    seconds: float = 0.0
    """How long it took."""


def junit(name: str, outcomes: Sequence[Outcome]) -> str:
    """Return a JUnit report (XML) with a test case for each command.

    What did not hold (exit code 1) is a failure, everything else that went wrong an error.
    """
    import xml.etree.ElementTree as ET

    failures = sum(o.code == EXIT_CHECK for o in outcomes)
    errors = sum(o.code not in (EXIT_OK, EXIT_CHECK) for o in outcomes)
    totals = {
        "name": _clean(name),
        "tests": str(len(outcomes)),
        "failures": str(failures),
        "errors": str(errors),
        "skipped": "0",
        "time": f"{sum(o.seconds for o in outcomes):.3f}",
    }
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", totals)
    for number, outcome in enumerate(outcomes, 1):
        where = outcome.place or f"line {number}"
        case = ET.SubElement(
            suite,
            "testcase",
            {
                "classname": _clean(outcome.name or "command"),
                "name": _clean(f"{where} {outcome.line}".rstrip()),
                "time": f"{outcome.seconds:.3f}",
            },
        )
        if outcome.code != EXIT_OK:
            kind = "failure" if outcome.code == EXIT_CHECK else "error"
            problem = _clean(f"{where}: {outcome.message}")
            what = {"message": problem, "type": f"exit code {outcome.code}"}
            ET.SubElement(case, kind, what).text = problem
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Replace what XML cannot hold."""
    return re.sub(_NO_XML, "\N{REPLACEMENT CHARACTER}", text)
