from __future__ import annotations

import xml.etree.ElementTree as ET

from ptinspect.script.outcome import Outcome, junit


def test_a_junit_report() -> None:
    text = junit(
        "s.pti",
        [
            Outcome("launch", "launch", "s.pti:1", 0, "", 1.5),
            Outcome("expect", "expect a <= 3", "s.pti:2", 1, 'a is "4" & \x1b[2J', 0.25),
            Outcome("", "nonsense", "", 2, "no command", 0.0),
        ],
    )
    root = ET.fromstring(text)
    suite = root[0]
    assert suite.attrib | {"time": ""} == {
        "name": "s.pti",
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
        "time": "",
    }
    assert [case.get("name") for case in suite] == [
        "s.pti:1 launch",
        "s.pti:2 expect a <= 3",
        "line 3 nonsense",
    ]
    failure, error = suite[1][0], suite[2][0]
    assert (failure.tag, error.tag) == ("failure", "error")
    assert failure.get("message") == 's.pti:2: a is "4" & \N{REPLACEMENT CHARACTER}[2J'
