"""Medians, rows of the table, and whole processes timed from outside."""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


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


def process_ms(words: Sequence[str], rounds: int) -> tuple[float, float]:
    """Return the medians of wall and processor time of a whole process."""

    def once() -> tuple[float, float]:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    once()
    found = [once() for _ in range(rounds)]
    return 1000 * statistics.median(w for w, _ in found), 1000 * statistics.median(c for _, c in found)


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
