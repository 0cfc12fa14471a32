"""Reports as text for people: aligned tables, and colours where the reader has them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType, ModuleType, SimpleNamespace

from ptinspect.dataclass import replace
from ptinspect.imports import standing_in
from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table
from ptinspect.typed import Any

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
_AT_ITS_BEGINNING = r"(?<=[\w.$])\+0x0(?![\w/])"
"""The offset of a function's first byte, which programs want to be told and people do not."""
_TOGETHER = r"\([^()]{1,24}\)"
"""What is not broken at a space: a few words in parentheses."""


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
        _table(_briefly(part), colour, width) if isinstance(part, Table) else _note(part, colour, width)
        for part in report.body
    ]
    return "".join(part + "\n" for part in parts)


def brief(text: str) -> str:
    """Leave out that an offset into a function is zero."""
    return re.sub(_AT_ITS_BEGINNING, "", text) if "+0x0" in text else text


def _briefly(table: Table) -> Table:
    def cell(cell: Cell) -> Cell:
        return replace(cell, text=brief(cell.text)) if isinstance(cell, Styled) else brief(cell)

    return replace(table, rows=[[cell(each) for each in row] for row in table.rows])


def _note(note: Note, colour: bool, width: int) -> str:
    if note.spans:
        return "".join(paint(brief(span.text), span.style, colour) for span in note.spans)
    lines = brief(note.text).split("\n")
    if width:
        lines = [line for text in lines for line in wrap(text, width)]
    return "\n".join(paint(line, note.style, colour) for line in lines)


def wrap(text: str, width: int) -> list[str]:
    """Break a line at spaces so that no part is longer than `width`, if its words allow that."""
    if len(text) <= width:
        return [text]
    return _pieces(text, width, text[: len(text) - len(text.lstrip())] + "  ")


def _pieces(text: str, width: int, indent: str = "") -> list[str]:
    """Break a line as `wrap` does, with this much in front of each part but the first."""
    import textwrap

    text = re.sub(_TOGETHER, lambda found: found[0].replace(" ", "\xa0"), text)
    pieces = textwrap.wrap(
        text, max(width, 1), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [piece.replace("\xa0", " ") for piece in pieces]


def _table(table: Table, colour: bool, width: int) -> str:
    title = [paint(line, "title", colour) for line in _titles(table.title, width)]
    if not table.rows:
        return "\n".join([*title, paint(table.empty or "nothing to show", "dim", colour)])
    if any(column.apart for column in table.columns):
        table = _without(table, [c.apart and not any(map(str, cells)) for c, *cells in _columns(table)])
        if not 0 < _total(_widths(table)) <= width:
            return "\n".join(_table(part, colour, width) for part in _parted(table))
    table = _beside(table, width)
    if not all(column.title for column in table.columns):
        table = _without(table, [not c.title and not any(map(str, cells)) for c, *cells in _columns(table)])
    while 0 < width < _total(_widths(table)) and any(spare := [column.spare for column in table.columns]):
        table = _without(table, [number == spare.index(True) for number in range(len(spare))])
    return "\n".join([*title, *_lines(table, colour, width)])


def _lines(table: Table, colour: bool, width: int) -> list[str]:
    """Return the lines of a table: as it is if that fits, else broken in the way that suits it."""
    widths = _widths(table)
    if not width or _total(widths) <= width:
        return _stacked(table, colour, 0)
    if len(widths) == 1:
        title = [Styled(table.columns[0].title, "dim")] if table.columns[0].title else []
        cells = [*title, *(row[0] for row in table.rows)]
        return [paint(line, _style(cell), colour) for cell in cells for line in wrap(str(cell), width)]
    headings = [column.heading for column in table.columns]
    if any(headings):
        return _headed(table, headings.index(True), colour, width)
    lead = _lead(table, width)
    room = width - lead - 2
    if room >= min(FOLDED, widths[-1]):
        return _folded(table, colour, width, lead)
    return _said_once(table, colour, width) or _stacked(table, colour, width)


def _said_once(table: Table, colour: bool, width: int) -> list[str]:
    """Say below a table what all its rows have in common, if the rest fits then; nothing if it does not."""
    (_, *others) = _columns(table)
    same = [len(set(cells)) == 1 < len(cells) and _style(cells[0]) != "bad" for _, *cells in others]
    rest = _without(table, [False, *same])
    if _total(_widths(rest)) > width:
        return []
    common = [(column, cells[0]) for (column, *cells), each in zip(others, same, strict=True) if each]
    said = ", ".join(_named(column, cell) for column, cell in common if str(cell))
    lines = wrap(f"in all rows: {said}", width) if said else []
    return [*_stacked(rest, colour, 0), *(paint(line, "dim", colour) for line in lines)]


def _lead(table: Table, width: int) -> int:
    """Return the width of all columns but the last; of two columns, without what is long in the first."""
    widths = _widths(table)
    if len(widths) != 2 or widths[0] <= width // 3:
        return _total(widths[:-1])
    short = [len(str(row[0])) for row in table.rows if len(str(row[0])) <= width // 3]
    return max(len(table.columns[0].title), *short) if short else widths[0]


def _parted(table: Table) -> Iterator[Table]:
    """Yield a table without the columns that make one of their own, and those."""
    apart = [column.apart for column in table.columns]
    yield _without(table, apart)
    (first, *names), *others = _columns(table)
    for column, *cells in (each for each in others if each[0].apart):
        rows = [(name, cell) for name, cell in zip(names, cells, strict=True) if str(cell)]
        yield Table((first, replace(column, apart=False)), rows)


def _named(column: Column, cell: Cell) -> str:
    """Return a cell with the title of its column, unless it says that itself."""
    return str(cell) if column.title in ("", str(cell)) else f"{column.title} {cell}"


def _beside(table: Table, width: int) -> Table:
    """Return a table with as many of its rows side by side as it may have, and as there is room for."""
    for across in range(table.across, 1, -1):
        down = -(-len(table.rows) // across)
        found = [[cell for row in table.rows[line::down] for cell in row] for line in range(down)]
        columns = [*table.columns] * across
        made = Table(columns, [row + [""] * (len(columns) - len(row)) for row in found])
        if not width or _total(_widths(made)) <= width:
            return made
    return table


def _columns(table: Table) -> Iterator[tuple[Any, ...]]:
    """Yield each column with its cells."""
    return zip(table.columns, *table.rows, strict=True)


def _total(widths: Sequence[int]) -> int:
    """Return the width of a line of such columns."""
    return sum(widths) + 2 * (len(widths) - 1)


def _without(table: Table, drop: Sequence[bool]) -> Table:
    """Return a table without some of its columns."""
    keep = [i for i, dropped in enumerate(drop) if not dropped]
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
    if [column.align for column in columns] == ["left"]:
        return [row[0].strip() for row in cells]
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
    with standing_in({} if "tabulate" in sys.modules else unused):
        import tabulate
    found: Any = tabulate
    if wide and not found.WIDE_CHARS_MODE:
        import wcwidth

        found.wcwidth, found.WIDE_CHARS_MODE = wcwidth, True
    return found


def _is_wide(text: str) -> bool:
    """Tell whether a letter of a text takes another number of columns than one."""
    if text.replace("…", "").isascii():
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


def _folded(table: Table, colour: bool, width: int, lead: int) -> list[str]:
    """Break the last column's cells where a line would pass `width`; long words go below their row.

    What is longer than `lead` in front of them has a line of its own.
    """
    room = width - lead - 2
    rows: list[Sequence[Cell]] = []
    above: dict[int, list[str]] = {}
    below: dict[int, list[str]] = {}
    for row in table.rows:
        first, last = list(row[:-1]), row[-1]
        if len(first) == 1 and len(str(first[0])) > lead:
            above[len(rows)] = [_cell(first[0], colour)]
            first = [""]
        text = str(last)
        if max((len(word) for word in text.split()), default=0) > room:
            below[len(rows)] = [
                f"    {paint(piece, _style(last), colour)}" for piece in wrap(text, width - 4)
            ]
            rows.append([*first, ""])
            continue
        pieces = _pieces(text, room) or [""]
        rows.append([*first, Styled(pieces[0], _style(last))])
        rows.extend([*("" for _ in first), Styled(piece, _style(last))] for piece in pieces[1:])
    return _between(_grid(table.columns, rows, colour), len(rows), above, below)


def _headed(table: Table, number: int, colour: bool, width: int) -> list[str]:
    """Put a column above the rows that have it in common."""
    rest = _without(table, [i == number for i in range(len(table.columns))])
    cells = [row[number] for row in table.rows]
    above = {
        i: [f"{_cell(cell, colour) or '-'}:"]
        for i, cell in enumerate(cells)
        if i == 0 or str(cells[i - 1]) != str(cell)
    }
    return _stacked(rest, colour, width, above)


def _stacked(
    table: Table, colour: bool, width: int, above: Mapping[int, list[str]] = MappingProxyType({})
) -> list[str]:
    """Put the last columns, if not all fit, on lines of their own below each row, each with its title."""
    widths = _widths(table)
    fits = len(widths)
    while width and fits > 1 and _total(widths[:fits]) > width:
        fits -= 1
    first = _grid(table.columns[:fits], [row[:fits] for row in table.rows], colour)
    below = {
        number: _below(table.columns[fits:], row[fits:], colour, width)
        for number, row in enumerate(table.rows)
        if fits < len(table.columns)
    }
    return _between(first, len(table.rows), above, below)


def _between(
    grid: list[str], rows: int, above: Mapping[int, list[str]], below: Mapping[int, list[str]]
) -> list[str]:
    """Put lines above and below rows of a grid, whose first line may be its head."""
    head = len(grid) - rows
    lines = grid[:head]
    for number, line in enumerate(grid[head:]):
        lines.extend((*above.get(number, ()), line, *below.get(number, ())))
    return lines


def _below(columns: Sequence[Column], cells: Sequence[Cell], colour: bool, width: int) -> list[str]:
    lines: list[str] = []
    left = 0
    for column, cell in zip(columns, cells, strict=True):
        if not str(cell):
            continue
        for piece in wrap(_named(column, cell), width - 4):
            painted = paint(piece, _style(cell), colour)
            if left >= len(piece) + 2:
                lines[-1] += f"  {painted}"
                left -= len(piece) + 2
            else:
                lines.append(f"    {painted}")
                left = width - 4 - len(piece)
    return lines
