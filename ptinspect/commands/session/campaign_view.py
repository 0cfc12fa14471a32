"""A campaign as text: its cells, the ways to fail, and where failed runs first differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ptinspect.dataclass import dataclass
from ptinspect.output.model import Cell, Note, Report, Style, Styled, Table, escape, headings

if TYPE_CHECKING:
    from ptinspect.campaign.passing_runs import Difference
    from ptinspect.campaign.statistics import Attempts, CellRow, Merged

RUNS_NAMED = 6
"""Numbers of runs in one line; the rest is counted."""
TEXT = 160
STYLES: Mapping[str, Style] = {"pass": "good", "retried": "changed", "missing": "dim"}
OUTCOME_COLUMNS = ("pass", "retried", "fail", "crash", "hang", "error", "bug", "missing")


@dataclass(frozen=True)
class Compared:
    """What a failed run was held against, and what came of it."""

    cell: str
    run: int
    outcome: str
    difference: Difference | None
    reason: str = ""
    """Why there is none."""
    snapshots: tuple[Mapping[str, Any], ...] = ()
    """Snapshots of equal names, compared: name, changes_total, only_bit11, first."""


def campaign_report(
    merged: Merged, compared: Sequence[Compared], *, rows: int = 20, facts: Mapping[str, Any] | None = None
) -> Report:
    """Return the report of a campaign; its exit code is 1 unless all runs passed."""
    failed = [item for item in merged.runs if not item.passed]
    retried = [item for item in merged.runs if item.retried]
    result = {
        "script": merged.plan.script,
        "digest": merged.plan.digest,
        "runs": merged.plan.runs,
        "done": len(merged.runs),
        "missing": len(merged.missing),
        "missing_runs": [run.number for run in merged.missing[:1000]],
        "passed": merged.count("pass"),
        "retried": merged.count("retried"),
        "failed": merged.failed,
        "shards": [f"{index}/{count}" for index, count in merged.shards],
        "duplicates": list(merged.duplicates),
        "cut": [str(path) for path in merged.cut],
        "unknown": merged.unknown,
        "cells": [_cell(row) for row in merged.rows],
        "failures": [_failure(item) for item in failed],
        "retries": [_failure(item) for item in retried],
        "differences": [_compared(item) for item in compared],
        **(facts or {}),
    }
    body: list[Table | Note] = [Note(headline(merged), "good" if merged.failed == 0 else "bad")]
    body += [Note(text, "changed") for text in oddities(merged)]
    body.append(_cells(merged.rows))
    if failed:
        body.append(_failures(merged.ways(), rows))
    if retried:
        body.append(retries(retried, rows))
    body += recordings([*failed, *retried], rows)
    body += _differences(compared)
    return Report(result, body, 0 if not merged.failed and not merged.missing else 1)


def headline(merged: Merged) -> str:
    """Return how many runs ended in which way."""
    parts = [f"{merged.count('pass', 'retried')} passed"]
    parts += [f"{merged.count(name)} {name}" for name in OUTCOME_COLUMNS[2:-1] if merged.count(name)]
    if merged.missing:
        parts.append(f"{len(merged.missing)} not run")
    total = len(merged.runs) + len(merged.missing)
    return f"{total} runs of {escape(merged.plan.script)}: {', '.join(parts)}"


def oddities(merged: Merged) -> list[str]:
    """Return what is odd about the directories, in sentences."""
    said = []
    if merged.duplicates:
        said.append(f"in more than one place, the first counts: runs {run_numbers(merged.duplicates)}")
    if merged.missing and any(count > 1 for _, count in merged.shards):
        there = ", ".join(f"{index}/{count}" for index, count in merged.shards)
        said.append(f"shards that are here: {there}")
    for path in merged.cut:
        said.append(f"{escape(str(path))}: the last line was half written and is left out")
    if merged.unknown:
        said.append(f"{merged.unknown} results are of runs that the plan does not have")
    return said


def run_numbers(numbers: Iterable[int]) -> str:
    """Return the first numbers of runs, and how many more there are."""
    known = list(numbers)
    more = f" (+{len(known) - RUNS_NAMED})" if len(known) > RUNS_NAMED else ""
    return ", ".join(map(str, known[:RUNS_NAMED])) + more


def _cells(rows: Sequence[CellRow]) -> Table:
    shown = [name for name in OUTCOME_COLUMNS if name == "pass" or any(r.count(name) for r in rows)]
    depth = any(row.deepest is not None for row in rows)
    lost = any(row.lost is not None for row in rows)
    heads = [">runs", *(f">{name}" for name in shown), *[">used/free"] * depth, *[">lost"] * lost, ">seconds"]
    cells: list[Sequence[Cell]] = []
    for row in rows:
        line: list[Cell] = [escape(row.cell.name), str(row.planned)]
        line += [_count(row.count(name), name) for name in shown]
        line += [f"{_number(row.deepest)}/{_number(row.least_free)}"] * depth
        line += [Styled(_number(row.lost), "bad" if row.lost else "plain")] * lost
        line.append("-" if row.seconds is None else "/".join(f"{s:.1f}" for s in row.seconds))
        cells.append(line)
    title = "cells (deepest stack: bytes used/free; seconds: shortest/median/longest)"
    return Table(headings("cell", *heads), cells, title)


def _count(value: int, name: str) -> Cell:
    return Styled(str(value), STYLES.get(name, "bad")) if value else "-"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _failures(ways: Sequence[Sequence[Attempts]], rows: int) -> Table:
    """Runs that failed alike share a line."""
    lines: list[Sequence[Cell]] = []
    for alike in ways:
        cell, outcome, where, what = alike[0].way
        numbers = run_numbers(item.run.number for item in alike)
        lines.append((numbers, escape(cell), Styled(outcome, "bad"), escape(file_of(where)), short(what)))
    title = "what did not pass"
    if len(lines) > rows:
        title += f" ({rows} of {len(lines)} ways)"
    return Table(headings("runs", "cell", "outcome", "where", "what"), lines[:rows], title)


def file_of(place: str) -> str:
    """Return `file:line` without the directory."""
    return place.rpartition("/")[2]


def short(text: str) -> str:
    """Return a text as one line of at most TEXT characters."""
    line = escape(" ".join(text.split()))
    return line if len(line) <= TEXT else line[: TEXT - 1] + "…"


def retries(retried: Sequence[Attempts], rows: int) -> Table:
    """Return the runs that took more than one attempt, and what came of the first."""
    lines: list[Sequence[Cell]] = [
        (
            str(item.run.number),
            escape(item.run.cell.name),
            Styled(", ".join(record.outcome for record in item.records), "changed"),
            short(item.records[0].panic or item.records[0].message),
        )
        for item in retried
    ]
    title = "passed at a later attempt only"
    if len(lines) > rows:
        title += f" ({rows} of {len(lines)})"
    return Table(headings("run", "cell", "attempts", "at first"), lines[:rows], title)


def recordings(items: Sequence[Attempts], rows: int) -> list[Note]:
    """Tell how the recordings that were kept are opened."""
    kept = [(item.run.number, path) for item in items for path in item.recordings]
    lines = [f"timeline open {escape(shlex.quote(str(path)))}" for _, path in kept[:rows]]
    notes = [Note(f"run {number}, recorded: {line}") for (number, _), line in zip(kept, lines, strict=False)]
    return notes + [Note(f"{len(kept) - rows} more are recorded", "dim")] * (len(kept) > rows)


def _differences(compared: Sequence[Compared]) -> list[Table | Note]:
    """Show first differences in a table; runs that could be compared with nothing share a line."""
    lines: list[Sequence[Cell]] = []
    alone: dict[str, list[int]] = {}
    for item in compared:
        found = item.difference
        if found is None:
            alone.setdefault(item.reason, []).append(item.run)
        else:
            what, good, bad = sides(found)
            lines.append((str(item.run), what, good, Styled(bad, "changed")))
        for pair in item.snapshots:
            if pair.get("changed") or pair.get("error"):
                lines.append((str(item.run), escape(str(pair["name"])), "", pair_words(pair)))
    columns = headings("run", "at", "where runs passed (how many)", "here")
    parts: list[Table | Note] = [Table(columns, lines, "first differences")] if lines else []
    parts += [
        Note(f"no difference to show: {escape(reason)}: runs {run_numbers(runs)}", "dim")
        for reason, runs in alone.items()
    ]
    return parts


def sides(found: Difference) -> tuple[str, str, str]:
    """Return where a run first differs, what passing runs have there (and how many), and what it has."""
    place = f" ({escape(file_of(found.place))})" if found.place else ""
    value = f": {escape(found.path)}" if found.path else ""
    what = f"{short(found.line)}{place}{value}"
    return what, f"{_value(found.good)} ({found.runs})", _value(found.bad)


def pair_words(pair: Mapping[str, Any]) -> str:
    """Return how a snapshot of a failed run differs from that of a passing one."""
    if pair.get("error"):
        return str(pair["error"])
    if pair["only_bit11"]:
        return f"{pair['changed']} descriptors differ, in bit 11 only"
    more = f", the first: {escape(str(pair['first']))}" if pair["first"] else ""
    return f"{pair['changes_total']} differences of more than bit 11{more}"


def _value(value: object) -> str:
    return short(value) if isinstance(value, str) else repr(value)


def _cell(row: CellRow) -> dict[str, Any]:
    low, middle, high = row.seconds or (None, None, None)
    return {
        "cell": dict(row.cell.values),
        "name": row.cell.name,
        "runs": row.planned,
        "outcomes": row.outcomes,
        "deepest": row.deepest,
        "least_free": row.least_free,
        "lost": row.lost,
        "seconds": {"min": low, "median": middle, "max": high},
    }


def _failure(item: Attempts) -> dict[str, Any]:
    last = item.last
    return {
        "run": item.run.number,
        "cell": item.run.cell.name,
        "directory": str(item.directory),
        "outcome": last.outcome,
        "attempts": [record.outcome for record in item.records],
        "where": last.where,
        "message": last.message,
        "panic": last.panic,
        "verdict": last.verdict,
        "seconds": last.seconds,
        "recordings": [str(path) for path in item.recordings],
    }


def _compared(item: Compared) -> dict[str, Any]:
    difference = None if item.difference is None else asdict(item.difference)
    return {
        "cell": item.cell,
        "run": item.run,
        "outcome": item.outcome,
        "difference": difference,
        "reason": item.reason,
        "snapshots": [dict(pair) for pair in item.snapshots],
    }
