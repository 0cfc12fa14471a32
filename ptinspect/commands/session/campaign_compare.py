"""Runs that failed, held against those of their cells that passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.campaign import passing_runs
from ptinspect.campaign.attempt import read_answers
from ptinspect.campaign.child import ANSWERS
from ptinspect.campaign.passing_runs import first_difference
from ptinspect.campaign.plan import folder
from ptinspect.campaign.runner import RUNS
from ptinspect.campaign.statistics import Attempts, Merged
from ptinspect.errors import PtinspectError
from ptinspect.output.model import escape

if TYPE_CHECKING:
    from ptinspect.output.views.campaign import Compared

MOST = 12
"""Failed runs that are compared: the first of each way to fail."""
SNAPSHOTS = 4
"""Snapshots of one run that are compared."""


def compared(merged: Merged, directories: Sequence[Path]) -> list[Compared]:
    """Compare the first run of each way to fail with what passing runs of its cell have in common."""
    firsts: dict[tuple[str, ...], Attempts] = {}
    for item in merged.runs:
        if not item.passed and item.last.outcome != "error":
            firsts.setdefault(item.way, item)
    return [_compare(merged, item, directories) for item in list(firsts.values())[:MOST]]


def _compare(merged: Merged, item: Attempts, directories: Sequence[Path]) -> Compared:
    from ptinspect.output.views.campaign import Compared

    cell = merged.plan.cells.index(item.run.cell)
    name, number, outcome = item.run.cell.name, item.run.number, item.last.outcome
    path = item.directory / RUNS / folder(item.run, item.last.attempt)
    if not (path / ANSWERS).is_file():
        return Compared(name, number, outcome, None, "its answers are not here")
    places = [item.directory, *(each for each in directories if each != item.directory)]
    for place in places:
        good = passing_runs.load(place, cell)
        if good is None:
            continue
        found = first_difference(good, passing_runs.steps_of(read_answers(path / ANSWERS)))
        pairs = _snapshots(place / RUNS / good.reference, path)
        why = "" if found else "no value that passing runs share is another one"
        return Compared(name, number, outcome, found, why, tuple(pairs))
    passed = merged.rows[cell].count("pass", "retried")
    why = "what passing runs had in common is not here" if passed else "no run of this cell passed"
    return Compared(name, number, outcome, None, why)


def _snapshots(good: Path, bad: Path) -> list[Mapping[str, Any]]:
    """Compare snapshots that both runs saved under the same name."""
    try:
        names = sorted({file.name for file in good.glob("*.npz")} & {file.name for file in bad.glob("*.npz")})
    except OSError:
        return []
    return [_pair(name, good / name, bad / name) for name in names[:SNAPSHOTS]]


def _pair(name: str, good: Path, bad: Path) -> Mapping[str, Any]:
    from ptinspect.analysis.diff import diff
    from ptinspect.snapshot.store import load

    try:
        found = diff(load(good), load(bad), max_changes=1)
    except PtinspectError as error:
        return {"name": name, "error": escape(error.message)}
    first = ""
    for change in found.changes[:1]:
        before, after = (
            "unreadable" if value is None else f"{value:#x}" for value in (change.before, change.after)
        )
        kinds = ", ".join(change.kinds)
        first = f"{kinds} at {change.va_start:#x}, level {change.level}: {before} -> {after}"
    return {
        "name": name,
        "changes_total": found.changes_total,
        "only_bit11": found.only_bit11,
        "changed": found.changed,
        "first": first,
    }
