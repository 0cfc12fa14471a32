"""The benchmark runs, as one command, and compares with what it measured itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from session import need_guest

BENCH = Path(__file__).parents[1] / "bench" / "bench.py"
DUMP = """
import gdb
class Dump(gdb.Command):
    def __init__(self):
        super().__init__("pt", gdb.COMMAND_USER)
    def invoke(self, argument, from_tty):
        open({seen!r}, "a").write(gdb.execute("monitor info version", to_string=True))
        print("0xffff000000000000\\n" * 10)  # no list of mappings, but long enough for one
Dump()
"""


def test_the_benchmark_prints_medians_and_ratios(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    script, seen = tmp_path / "pt.py", tmp_path / "seen"
    script.write_text(DUMP.format(seen=str(seen)))
    words = [sys.executable, str(BENCH), "--memory", "512", "--rounds", "1", "--boots", "1", "--json"]
    words += ["--debug-guest", "none", "--gdb-pt-dump", str(script), "--processes", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=True)
    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    for lane in ("host", "pmemsave", "gdbstub"):
        capture = rows[f"512 MiB, {lane}: capture"]
        assert capture["ratio"] == pytest.approx(capture["ms"] / capture["baseline_ms"], abs=0.05)
    assert rows["512 MiB: boot with kpti run"]["against"] == "the boot alone"
    assert rows["the same by gdb-pt-dump"]["against"] == "ptinspect --gdb SOCKET map"
    assert rows["launch until the prompt"]["ms"] > rows["prompt of the REPL"]["ms"] / 10
    assert seen.read_text().count(".") >= 2, "it was connected to the guest each time"
