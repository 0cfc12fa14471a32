"""Reports as text for people: aligned tables, and colours where the reader has them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

from ptinspect.dataclass import replace
from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table

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

FOLDED = 24
"""Columns that the last column of a table must have left to be folded; else it goes below its row."""

_ESCAPES = r"\x1b\[[0-9;]*m"


def wants_colour(environment: Mapping[str, str], terminal: bool, choice: bool | None = None) -> bool:
    """Decide about colours: the user's choice, then NO_COLOR (no-color.org), then the stream."""
    if choice is not None:
        return choice
    return terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def terminal_size(fallback: int = 80) -> os.terminal_size:
    """Return the columns and lines of the terminal, or `fallback` columns where there is none."""
    import shutil

    return shutil.get_terminal_size((fallback, 24))


def paint(text: str, style: Style, colour: bool) -> str:
    """Return `text` in the colours of `style`, or as it is."""
    code = SGR[style]
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code and text else text


def plain(text: str) -> str:
    """Remove colours from a text."""
    return re.sub(_ESCAPES, "", text)


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
    import textwrap

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
    title = [paint(line, "title", colour) for line in _titles(table.title, width)]
    if not table.rows:
        return "\n".join([*title, paint(table.empty or "nothing to show", "dim", colour)])
    if width and _total(_widths(table)) > width:
        table = _without_spare(table)
    widths = _widths(table)
    fits = len(widths)
    if width and _total(widths) > width:
        room = width - _total(widths[:-1]) - 2
        if room >= min(FOLDED, widths[-1]):
            return "\n".join([*title, *_folded(table, colour, width, room)])
        while fits > 1 and _total(widths[:fits]) > width:
            fits -= 1
    return "\n".join([*title, *_stacked(table, fits, colour, width)])


def _total(widths: Sequence[int]) -> int:
    """Return the width of a line of such columns."""
    return sum(widths) + 2 * (len(widths) - 1)


def _without_spare(table: Table) -> Table:
    keep = [i for i, column in enumerate(table.columns) if not column.spare]
    rows = [[row[i] for i in keep] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in keep], rows=rows)


def _titles(title: str, width: int) -> list[str]:
    return [] if not title else wrap(title, width) if width else [title]


def _widths(table: Table) -> list[int]:
    """Return the width of each column."""
    return [
        max(len(column.title), *(len(str(row[i])) for row in table.rows))
        for i, column in enumerate(table.columns)
    ]


def _grid(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], colour: bool) -> list[str]:
    """Return the lines of a table; the first is its head, if a column has a title."""
    heads = [[Styled(column.title, "dim") for column in columns]] if any(c.title for c in columns) else []
    cells = [[_cell(cell, colour) for cell in row] for row in (*heads, *rows)]
    tabulate = _tabulate(wide=any(_is_wide(text) for row in cells for text in row))
    by_column = dict(enumerate(zip(*cells, strict=True)))  # of rows it would ask for their data class
    body: str = tabulate.tabulate(  # heads are a row: tabulate would pad them by two columns
        by_column, colalign=[column.align for column in columns], tablefmt="plain", disable_numparse=True
    )
    return [line.rstrip() for line in body.split("\n")]


def _cell(cell: Cell, colour: bool) -> str:
    return paint(cell.text, cell.style, colour) if isinstance(cell, Styled) else cell


class _Later(ModuleType):
    """A stand-in for a module, which is imported when a function of it is called."""

    def __getattr__(self, name: str) -> Any:
        def called(*values: object) -> Any:
            return getattr(import_module(self.__name__), name)(*values)

        return called


def _tabulate(*, wide: bool) -> Any:
    """Return the module tabulate; `wide`: one that knows letters of two columns.

    What it imports for other uses is nine tenths of the time that it takes, and more than the rest of many
    a command: its own version, all of wcwidth, the standard library's data classes and HTML.
    """
    unused: dict[str, Any] = {name: _Later(name) for name in ("dataclasses", "html")}
    unused["importlib.metadata"] = SimpleNamespace(version=str, PackageNotFoundError=ImportError)
    unused["wcwidth"] = None
    early = {} if "tabulate" in sys.modules else {n: m for n, m in unused.items() if n not in sys.modules}
    sys.modules.update(early)
    try:
        import tabulate
    finally:
        for name in early:
            del sys.modules[name]
    found: Any = tabulate
    if wide and not found.WIDE_CHARS_MODE:
        import wcwidth

        found.wcwidth, found.WIDE_CHARS_MODE = wcwidth, True
    return found


def _is_wide(text: str) -> bool:
    """Tell whether a letter of a text takes another number of columns than one."""
    if text.isascii():
        return False
    from unicodedata import combining, east_asian_width

    return any(east_asian_width(letter) in "WF" or combining(letter) for letter in text)


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if not _is_wide(text):
        return len(text)
    from wcwidth import wcswidth

    return max(int(wcswidth(text)), 0)


def _style(cell: Cell) -> Style:
    return cell.style if isinstance(cell, Styled) else "plain"


def _folded(table: Table, colour: bool, width: int, room: int) -> list[str]:
    """Break the last column's cells where a line would pass `width`; long words go below their row."""
    import textwrap

    rows: list[Sequence[Cell]] = []
    below: dict[int, list[str]] = {}
    for row in table.rows:
        last = row[-1]
        text = str(last)
        if max((len(word) for word in text.split()), default=0) > room:
            below[len(rows)] = [
                f"    {paint(piece, _style(last), colour)}" for piece in wrap(text, width - 4)
            ]
            rows.append([*row[:-1], ""])
            continue
        pieces = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        rows.append([*row[:-1], Styled(pieces[0], _style(last))])
        rows.extend([*("" for _ in row[:-1]), Styled(piece, _style(last))] for piece in pieces[1:])
    return _with_below(_grid(table.columns, rows, colour), len(rows), below)


def _stacked(table: Table, fits: int, colour: bool, width: int) -> list[str]:
    """Put the columns from number `fits` on on lines of their own below each row, each with its title."""
    first = _grid(table.columns[:fits], [row[:fits] for row in table.rows], colour)
    below = {
        number: _below(table.columns[fits:], row[fits:], colour, width)
        for number, row in enumerate(table.rows)
        if fits < len(table.columns)
    }
    return _with_below(first, len(table.rows), below)


def _with_below(grid: list[str], rows: int, below: Mapping[int, list[str]]) -> list[str]:
    """Put lines below rows of a grid, whose first line may be its head."""
    head = len(grid) - rows
    lines = grid[:head]
    for number, line in enumerate(grid[head:]):
        lines.extend((line, *below.get(number, ())))
    return lines


def _below(columns: Sequence[Column], cells: Sequence[Cell], colour: bool, width: int) -> list[str]:
    lines: list[str] = []
    left = 0
    for column, cell in zip(columns, cells, strict=True):
        if not str(cell):
            continue
        text = f"{column.title} {cell}" if column.title else str(cell)
        for piece in wrap(text, width - 4):
            painted = paint(piece, _style(cell), colour)
            if left >= len(piece) + 2:
                lines[-1] += f"  {painted}"
                left -= len(piece) + 2
            else:
                lines.append(f"    {painted}")
                left = width - 4 - len(piece)
    return lines
