"""A campaign on a page: what came of it, each way to fail in words and with its tables, and its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.campaign.plan import folder
from ptinspect.campaign.runner import RUNS
from ptinspect.commands.session.campaign_view import (
    Compared,
    file_of,
    headline,
    oddities,
    pair_words,
    retries,
    run_numbers,
    short,
    sides,
)
from ptinspect.commands.tables.page_parts import add_snapshots
from ptinspect.errors import PtinspectError
from ptinspect.output.html import table_of
from ptinspect.output.model import Report, escape

if TYPE_CHECKING:
    from ptinspect.campaign.statistics import Attempts, Merged
    from ptinspect.output.html import Page

WAYS, ROWS = 200, 200
"""Ways to fail, and runs that took several attempts, that a page lists."""
DRAWN, SNAPSHOTS = 3, 4
"""Failed runs whose tables a page draws, and how many snapshots of each."""
MAX_BYTES = 600_000
"""Bytes of their files, which is about what they take on the page."""


def add(page: Page, title: str, made: Report, merged: Merged, compared: Sequence[Compared]) -> None:
    """Add a campaign: `made` is its report, `compared` what its failed runs were held against."""
    known = {each.run: each for each in compared}
    ways = []
    left, room = DRAWN, MAX_BYTES
    for alike in merged.ways()[:WAYS]:
        files = _snapshots(_kept(alike[0]))
        size = sum(file.stat().st_size for file in files)
        drawn = None
        if left and len(files) > 1 and size <= room:
            drawn = _draw(page, alike[0].run.number, files)
            left, room = left - 1, room - size
        words = _words(alike, known.get(alike[0].run.number))
        words += [] if drawn is None else [f"a click leads to the tables of run {alike[0].run.number}"]
        ways.append({"words": "\n".join(words), "diff": drawn})
    retried = [item for item in merged.runs if item.retried]
    page.campaigns.append(
        {
            "title": title,
            "verdict": headline(merged),
            "good": made.exit_code == 0,
            "notes": oddities(merged),
            "ways": ways,
            "ways_total": len(merged.ways()),
            "cells": made.result["cells"],
            "tables": [table_of(retries(retried, ROWS))] if retried else [],
        }
    )


def _kept(item: Attempts) -> Path:
    """Return where the files of a run's last attempt are, if they were kept."""
    return item.directory / RUNS / folder(item.run, item.last.attempt)


def _words(alike: Sequence[Attempts], compared: Compared | None) -> list[str]:
    """Return a way to fail, a line for each fact; the first names the outcome, the cell and the runs."""
    first = alike[0]
    last, several = first.last, len(alike) > 1
    runs = f"run{'s' if several else ''} {run_numbers(item.run.number for item in alike)}"
    said = [f"{last.outcome}: {escape(first.run.cell.name)}, {runs}"]
    said += [f"{escape(file_of(last.where))}: {short(last.message)}" if last.where else short(last.message)]
    said += [f"console: {short(last.panic)}"] if last.panic else []
    said += [f"verdict: {short(last.verdict)}"] if last.verdict not in ("", "unknown") else []
    said += _compared(compared) if compared else []
    kept = _kept(first)
    said += [f"kept in {escape(str(kept))}"] if kept.is_dir() else []
    return [line for line in said if line]


def _compared(item: Compared) -> list[str]:
    said = []
    if item.difference is not None:
        what, good, bad = sides(item.difference)
        said = [f"run {item.run} first differs at {what}", f"  where runs passed: {good}", f"  here: {bad}"]
    pairs: Sequence[Mapping[str, Any]] = item.snapshots
    said += [
        f"{escape(str(pair['name']))} against that of a passing run: {pair_words(pair)}"
        for pair in pairs
        if pair.get("changed") or pair.get("error")
    ]
    return said or [f"no difference to show: {escape(item.reason)}"]


def _snapshots(kept: Path) -> list[Path]:
    """Return a run's snapshots in the order in which they were saved."""
    try:
        files = sorted(kept.glob("*.npz"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    except OSError:
        return []
    return files[-SNAPSHOTS:]


def _draw(page: Page, number: int, files: Sequence[Path]) -> int | None:
    """Draw a run's snapshots, one against the other; return the number of its first pair on the page."""
    from ptinspect.snapshot.store import load

    first = len(page.diffs)
    try:
        add_snapshots(page, [load(file) for file in files], lambda snapshot: f"{snapshot.name}, run {number}")
    except PtinspectError:
        return None  # of other tables, or damaged: what was said of it is all that there is
    return first
