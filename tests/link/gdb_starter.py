"""Fake GDBs for the tests of this directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ptinspect.link.gdb.process import GdbProcess

HERE = Path(__file__).parent
Rules = list[tuple[str, str]]


def fake_gdbs(tmp_path: Path) -> Iterator[Callable[..., GdbProcess]]:
    """Give a function that starts fake GDBs that follow rules; they are ended after the test."""
    started: list[GdbProcess] = []

    def start(rules: Rules, **options: Any) -> GdbProcess:
        file = tmp_path / f"rules{len(started)}.json"
        file.write_text(json.dumps(rules))
        gdb = GdbProcess([sys.executable, str(HERE / "fake_gdb.py"), str(file)], **options)
        started.append(gdb)
        return gdb

    yield start
    for gdb in started:
        gdb.kill("the test is over")
