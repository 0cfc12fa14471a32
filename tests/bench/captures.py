"""What works on two whole captures, of a guest or synthetic."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timing import Row, median_ms

from ptinspect.analysis.check import Pair, check, check_pair
from ptinspect.analysis.diff import diff
from ptinspect.analysis.map import runs
from ptinspect.analysis.summary import summarize
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.linux.kpti.verdict import judge
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.store import load, save

Indices = NDArray[np.intp]


def snapshots(before: Snapshot, after: Snapshot, label: str, rounds: int) -> list[Row]:
    """Measure what works on whole captures; all leaves of the one before are changed in the one after."""
    few = with_words(after, np.flatnonzero(after.tables.level == LEVEL_LAST)[[0, -2, -1]], 1 << 6)
    leaves = sum(one.leaves for one in summarize(after).levels)
    note = f"({len(after.tables)} tables, {leaves} leaves)"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "after.npz"
        works = {
            "summary": (lambda: summarize(after), "≤ 30 ms"),
            "map": (lambda: runs(after), "≤ 150 ms"),
            "diff, few changes": (lambda: diff(after, few), "≤ 50 ms"),
            "diff, all leaves changed": (lambda: diff(before, after), "≤ 500 ms"),
            "save": (lambda: save(after, path), "≤ 300 ms"),
            "load": (lambda: load(path), "≤ 100 ms"),
        }
        rows = [
            Row(f"{label}: {name}", median_ms(work, rounds), target=target)
            for name, (work, target) in works.items()
        ]
        size = f"(file of {path.stat().st_size >> 10} KiB)"
    judged: Mapping[str, tuple[Callable[[], object], str]] = {
        "check": (lambda: check(after), "≤ 5"),
        "check --against": (lambda: check_pair(Pair(before, after)), "≤ 10"),
        "kpti verdict": (lambda: judge(before, after), "≤ 10"),
    }
    base = next(row for row in rows if row.what.endswith("diff, few changes"))
    more = [
        Row(f"{label}: {name}", median_ms(work, rounds), "diff, few changes", base.ms, target)
        for name, (work, target) in judged.items()
    ]
    return [replace(rows[0], note=note), *rows[1:-1], replace(rows[-1], note=size), *more]


def with_words(
    snapshot: Snapshot, rows: NDArray[np.intp], bits: int, slots: NDArray[np.intp] | int = 7
) -> Snapshot:
    """Return a copy with some bits of some descriptors changed."""
    raw = snapshot.tables.raw.copy()
    raw[rows, slots] ^= np.uint64(bits)
    return replace(snapshot, tables=replace(snapshot.tables, raw=raw))
