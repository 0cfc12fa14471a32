"""Reports as text for people: aligned tables, and colours where the reader has them."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from ptinspect.output.model import Cell, Note, Report, Style, Styled, Table

SGR: Mapping[Style, str] = {
    "plain": "",
    "title": "1",
    "dim": "2",
    "good": "32",
    "changed": "33",
    "bad": "31;1",
    "level": "36",
    "address": "34",
}
"""ECMA-48 Select Graphic Rendition parameters of each style."""

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def wants_colour(environment: Mapping[str, str], terminal: bool, choice: bool | None = None) -> bool:
    """Decide about colours: the user's choice, then NO_COLOR (no-color.org), then the stream."""
    if choice is not None:
        return choice
    return terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def terminal_width(fallback: int = 80) -> int:
    """Return the columns of the terminal, or `fallback` where there is none."""
    return shutil.get_terminal_size((fallback, 24)).columns


def paint(text: str, style: Style, colour: bool) -> str:
    """Return `text` in the colours of `style`, or as it is."""
    code = SGR[style]
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code and text else text


def plain(text: str) -> str:
    """Remove colours from a text."""
    return _ESCAPES.sub("", text)


def render(report: Report, *, colour: bool = False, width: int = 0) -> str:
    """Return the report's body as text that ends in a newline, or nothing if the body is empty.

    `width` wraps paragraphs and the last column of tables; 0 leaves lines as long as they are.
    """
    parts = [
        _table(part, colour, width) if isinstance(part, Table) else _note(part, colour, width)
        for part in report.body
    ]
    return "".join(part + "\n" for part in parts)


def _note(note: Note, colour: bool, width: int) -> str:
    if note.spans:
        return "".join(paint(span.text, span.style, colour) for span in note.spans)
    lines = note.text.split("\n")
    if width:
        lines = [line for text in lines for line in wrap(text, width)]
    return "\n".join(paint(line, note.style, colour) for line in lines)


def wrap(text: str, width: int) -> list[str]:
    """Break a line at spaces so that no part is longer than `width`, if its words allow that."""
    if len(text) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text,
        width,
        initial_indent="",
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _table(table: Table, colour: bool, width: int) -> str:
    title = [paint(table.title, "title", colour)] if table.title else []
    if not table.rows:
        return "\n".join([*title, paint(table.empty or "nothing to show", "dim", colour)])
    from tabulate import tabulate

    rows = _fold(table, width) if width else table.rows
    headers = [[paint(column.title, "dim", colour) for column in table.columns]]
    body = tabulate(  # headers are a row: tabulate would pad them by two columns
        (headers if any(column.title for column in table.columns) else [])
        + [[_cell(cell, colour) for cell in row] for row in rows],
        colalign=[column.align for column in table.columns],
        tablefmt="plain",
        disable_numparse=True,
    )
    return "\n".join([*title, *(line.rstrip() for line in body.split("\n"))])


def _cell(cell: Cell, colour: bool) -> str:
    return paint(cell.text, cell.style, colour) if isinstance(cell, Styled) else cell


def _fold(table: Table, width: int) -> Sequence[Sequence[Cell]]:
    """Break the last column's cells where a line would pass `width`, if enough room is left for it."""
    widths = [
        max(len(column.title), *(len(str(row[i])) for row in table.rows))
        for i, column in enumerate(table.columns)
    ]
    room = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    if room < 10 or widths[-1] <= room:
        return table.rows
    folded: list[Sequence[Cell]] = []
    for row in table.rows:
        last = row[-1]
        style: Style = last.style if isinstance(last, Styled) else "plain"
        pieces = textwrap.wrap(str(last), room, break_long_words=False, break_on_hyphens=False) or [""]
        folded.append([*row[:-1], Styled(pieces[0], style)])
        folded.extend([*("" for _ in row[:-1]), Styled(piece, style)] for piece in pieces[1:])
    return folded
