"""`campaign report`: what came of a campaign, in the terminal, in files, and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.commands.framework.arguments import output_argument
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.pages.page_parts import add_snapshots
from ptinspect.commands.session.campaign import SHOWN, compared
from ptinspect.commands.session.campaign_view import (
    Compared,
    campaign_report,
    file_of,
    headline,
    oddities,
    pair_words,
    recordings,
    retries,
    run_numbers,
    short,
    sides,
)
from ptinspect.errors import PtinspectError
from ptinspect.output.files import form_of, write, write_text
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.campaign.statistics import Attempts, Merged
    from ptinspect.output.html import Page

IN_FILES = 10_000
"""Ways to fail that files list."""
WAYS, ROWS = 200, 200
"""Ways to fail, and runs that took several attempts, that a page lists."""
DRAWN, SNAPSHOTS = 3, 4
"""Failed runs whose tables a page draws, and how many snapshots of each."""
MAX_BYTES = 600_000
"""Bytes of their files, which is about what they take on the page."""
RECORDINGS = 3
"""Recordings that each way to fail names."""


@command(
    "campaign report",
    group="Session",
    summary="Show what came of a campaign, or of its shards on several machines",
    example="campaign report out -o campaign.html",
    arguments=(
        argument("directories", nargs="+", type=Path, metavar="DIR", help="directories of campaigns"),
        output_argument("write a file: .html .txt .json .csv .md"),
        argument("--title", metavar="TEXT", help="title of the page"),
    ),
    details="The directories must be of one campaign: the same script, matrix and number of runs. Runs "
    "that stand in two of them count once, and are named; runs that are in none are counted. "
    "-o writes text, JSON, CSV or Markdown by the suffix of FILE, or an HTML page: each way to fail in "
    "words, with the tables of its first run entry by entry where snapshots were kept, and cells with their "
    "outcomes, stacks and times.",
    not_in_gdb="use ptinspect without GDB: it starts guests of its own",
)
def report(ctx: Context, *, directories: list[Path], output: Path | None, title: str | None) -> Report:
    """Report one or several directories."""
    page = output is not None and output.suffix.lower() in (".html", ".htm")
    if output is not None and not page:
        form_of(output)
    made, merged, _ = _joined(directories, ctx.rows(SHOWN))
    if output is None:
        return made
    if page:
        from ptinspect.output.html import Page

        title = title or f"campaign of {Path(merged.plan.script).name}"
        shown = Page(title)
        add_to(shown, directories, title)
        write_text(output, shown.text())
    else:
        write(_joined(directories, IN_FILES)[0], output)
    note = Note(f"written to {escape(str(output))}", "dim")
    return Report({**made.result, "file": str(output)}, (*made.body, note), made.exit_code)


def add_to(page: Page, directories: Sequence[Path], title: str) -> None:
    """Put a campaign on a page. Raises UserError if the directories hold none."""
    _add(page, title, *_joined(directories, IN_FILES))


def _joined(directories: Sequence[Path], rows: int) -> tuple[Report, Merged, list[Compared]]:
    from ptinspect.campaign import results
    from ptinspect.campaign.statistics import merge

    merged = merge([results.load(directory) for directory in directories])
    found = compared(merged, directories)
    return campaign_report(merged, found, rows=rows), merged, found


def _add(page: Page, title: str, made: Report, merged: Merged, found: Sequence[Compared]) -> None:
    """Add a campaign: `made` is its report, `found` what its failed runs were held against."""
    from ptinspect.output.html import table_of

    known = {each.run: each for each in found}
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
    from ptinspect.campaign.plan import folder
    from ptinspect.campaign.runner import RUNS

    return item.directory / RUNS / folder(item.run, item.last.attempt)


def _words(alike: Sequence[Attempts], found: Compared | None) -> list[str]:
    """Return a way to fail, a line for each fact; the first names the outcome, the cell and the runs."""
    first = alike[0]
    last, several = first.last, len(alike) > 1
    runs = f"run{'s' if several else ''} {run_numbers(item.run.number for item in alike)}"
    said = [f"{last.outcome}: {escape(first.run.cell.name)}, {runs}"]
    said += [f"{escape(file_of(last.where))}: {short(last.message)}" if last.where else short(last.message)]
    said += [f"console: {short(last.panic)}"] if last.panic else []
    said += [f"verdict: {short(last.verdict)}"] if last.verdict not in ("", "unknown") else []
    said += _compared(found) if found else []
    kept = _kept(first)
    said += [f"kept in {escape(str(kept))}"] if kept.is_dir() else []
    said += [note.text for note in recordings(alike, RECORDINGS)]
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
