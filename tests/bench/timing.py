"""Medians, and the rows of the table that is printed."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One measured thing."""

    what: str
    ms: float
    """Median, milliseconds."""
    against: str = ""
    """What it is compared with, measured in the same run."""
    baseline_ms: float | None = None
    target: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the baseline it takes."""
        return round(self.ms / self.baseline_ms, 2) if self.baseline_ms else None

    def as_json(self) -> dict[str, Any]:
        """Return the fields, the ratio among them."""
        return {**asdict(self), "ms": round(self.ms, 3), "ratio": self.ratio}


def median_ms(work: Callable[[], object], rounds: int, *, keep: bool = False) -> float:
    """Return the median time of `work`; the first run does not count.

    `keep`: results stay in memory, so that each round needs fresh pages, as a user's does.
    """
    work()
    times, kept = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
        if keep:
            kept.append(result)
    return 1000 * statistics.median(times)


def show(rows: Sequence[Row], as_json: bool, **facts: object) -> None:
    """Print the rows, and what they were measured on."""
    facts |= {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processors": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
    }
    if as_json:
        sys.stdout.write(json.dumps({**facts, "rows": [row.as_json() for row in rows]}) + "\n")
        return
    sys.stdout.write(table(rows))
    sys.stdout.write(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    cells = [("what", "median", "against", "its median", "ratio", "target")]
    for row in rows:
        base = "" if row.baseline_ms is None else f"{row.baseline_ms:.2f} ms"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells.append((row.what, f"{row.ms:.2f} ms {row.note}".strip(), row.against, base, ratio, row.target))
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines) + "\n"
