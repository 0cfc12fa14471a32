"""A campaign as the HTML page draws it: the tables of its report, and a bar of outcomes for each cell."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from ptinspect.output.model import Note, Report, Table

COLOURS: Mapping[str, str] = {
    "pass": "#17a05d",
    "retried": "#c9a227",
    "fail": "#d62728",
    "crash": "#8e44ad",
    "hang": "#e0883a",
    "error": "#e377c2",
    "bug": "#444444",
    "missing": "#c9c9cf",
}
"""Outcome -> its colour, in the order in which they lie on each other."""
NAME_LENGTH = 120
"""Longest name of a cell under its bar, characters."""


def picture(report: Report, title: str, outcomes: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return a campaign's report for `Page.campaigns`.

    `outcomes` has the number of runs by cell and outcome.
    """
    return {
        "title": title,
        "facts": [note.text for note in report.body if isinstance(note, Note) and note.text],
        "tables": [table_of(part) for part in report.body if isinstance(part, Table) and part.rows],
        "bars": bars(outcomes),
    }


def table_of(table: Table) -> dict[str, Any]:
    """Return a table as the page draws it."""
    return {
        "title": table.title,
        "heads": [column.title for column in table.columns],
        "rows": [[str(cell) for cell in row] for row in table.rows],
        "numeric": [n for n, column in enumerate(table.columns) if column.align == "right"],
    }


def bars(outcomes: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Return one series of bars for each outcome that occurs, in the order of COLOURS."""
    shown = [markup(cell) for cell in outcomes]
    if len(set(shown)) < len(shown):
        shown = [f"{number}: {name}" for number, name in enumerate(shown, 1)]
    seen = {outcome for counts in outcomes.values() for outcome, count in counts.items() if count}
    order = [name for name in COLOURS if name in seen] + sorted(seen - set(COLOURS))
    return [
        {
            "name": markup(name),
            "x": shown,
            "y": [counts.get(name, 0) for counts in outcomes.values()],
            "marker": {"color": COLOURS.get(name, "#9db7d5")},
        }
        for name in order
    ]


def markup(text: str) -> str:
    """Return a text for plotly.js, which takes some tags for markup wherever it draws a text."""
    shown = text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…"
    return html.escape(shown, quote=False)
