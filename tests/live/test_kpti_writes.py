"""The stores of the rewrite on real kernels: every one seen, and what becomes of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from session import NEWER, launched

CASES = [
    ("5.10-cloud", "--memory 512 --smp 4"),
    ("6.1-cloud", "--memory 512 --smp 2"),
    ("6.12-cloud", "--memory 512 --smp 2 --cpu cortex-a72"),
    ("6.12-cloud", "--memory 512 --cpu max"),
    ("7.3-cloud", f"--memory 512 --smp 2 --cpu max {NEWER}"),
]


@pytest.mark.parametrize("guest, options", CASES, ids=lambda v: v)
def test_every_descriptor_above_the_pages_is_stored_once(guest: str, options: str, tmp_path: Path) -> None:
    with launched(guest, options) as live:
        file = tmp_path / "writes.csv"
        found = live(f"kpti writes -o {file}")
        assert found["whole"] and found["unread"] == 0
        summary = {v["level"]: v for v in live("summary")["levels"]}
        for level in found["levels"]:
            assert level["stores"] == level["changed"] == level["bit11_only"]
            assert level["stores"] == summary[level["level"]]["entries_valid"]
            assert level["tables"] == summary[level["level"]]["table_descriptors_marked"]
        with file.open(newline="") as rows:
            listed = list(csv.DictReader(rows))
        assert len(listed) == found["stores"] == len({row["descriptor"] for row in listed})
        for row in listed[:: len(listed) // 20]:
            steps = live(f"walk {row['va']}")["steps"]
            step = next(s for s in steps if s["level"] == int(row["level"]))
            assert (step["descriptor_pa"], step["raw"]) == (row["descriptor"], row["stored"])
        verdict = live("kpti verdict")
        assert verdict["code"] == "normal", verdict
        assert verdict["recorded_stores"] > 100
        assert "is off" in live("gdb show breakpoint always-inserted")["lines"][0]
        assert '"step"' in live("gdb show scheduler-locking")["lines"][0]
        assert live("until driver_init")["reason"]  # the CPUs that waited run on
