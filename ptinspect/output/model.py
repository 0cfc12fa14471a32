"""What a command answers: one JSON object, and the same facts as notes and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from ptinspect.dataclass import dataclass, field, replace
from ptinspect.output.encode import encode
from ptinspect.text import escape as escape  # noqa: PLC0414 - all that prints takes it from here
from ptinspect.typed import Any, Literal, cast

Style = Literal["plain", "title", "dim", "good", "changed", "bad", "level", "address"]
"""What a piece of text means; the printer chooses colours from it, or none."""


@dataclass(frozen=True)
class Styled:
    """Text with a meaning."""

    text: str
    style: Style = "plain"

    def __str__(self) -> str:
        """Return the bare text."""
        return self.text


Cell = str | Styled


@dataclass(frozen=True)
class Column:
    """Head a column."""

    title: str
    align: Literal["left", "right"] = "left"
    spare: bool = False
    """True if it is left out where the terminal is too narrow for all, the first such column first."""
    heading: bool = False
    """True if it stands above the rows that have it in common where the terminal is too narrow for all."""
    apart: bool = False
    """True if it is a table of its own, with the first column, unless the terminal is wide enough for all."""


def headings(*titles: str | Column) -> tuple[Column, ...]:
    """Return columns by their titles; `>` in front of one has its cells end at the right."""
    made = (
        Column(t.removeprefix(">"), "right" if t[:1] == ">" else "left") if isinstance(t, str) else t
        for t in titles
    )
    return tuple(made)


@dataclass(frozen=True)
class Table:
    """Rows under columns; cells are formatted already."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    empty: str = ""
    """What to say instead when there are no rows."""
    across: int = 1
    """So many rows stand side by side, or as many as the terminal is wide enough for: the first ones below
    each other."""


def facts(rows: Iterable[tuple[Cell, Cell]]) -> Table:
    """Return a table of names and what is known of each, without those of which nothing is."""
    return Table(headings("", ""), [row for row in rows if str(row[1]).strip()])


@dataclass(frozen=True)
class Note:
    """A line or paragraph of text."""

    text: str
    style: Style = "plain"
    spans: tuple[Styled, ...] = ()
    """The text in pieces with styles of their own; it is one line, and never wrapped."""


def more(count: int, what: str = "", hint: str = "--limit N shows more") -> list[Note]:
    """Return a note that a list goes on, if it does: `… and 3 more runs (--limit N shows more)`."""
    names = f" {what}" if what else ""
    return [Note(f"… and {count} more{names} ({hint})", "dim")] if count > 0 else []


def spanned(spans: Sequence[Styled]) -> Note:
    """Return a line made of pieces with styles of their own."""
    return Note("".join(span.text for span in spans), "plain", tuple(spans))


@dataclass(frozen=True)
class Report:
    """The answer of one command: its result, and the same for people."""

    value: object
    """The result, or what makes it: most answers are only read. Its fields are what `--json` prints."""
    body: Sequence[Table | Note] = field(default_factory=tuple)
    """The same facts as notes and tables."""
    exit_code: int = 0
    """1 when a check that the command was asked to make did not hold."""

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """What `--json` prints: addresses and raw descriptors are hex strings, counts and sizes numbers,
        levels numbers -1 to 3."""
        return cast("Mapping[str, Any]", encode(self.value() if callable(self.value) else self.value))

    def __post_init__(self) -> None:
        """Escape what no terminal should get: names come from guests, files and snapshots."""
        object.__setattr__(self, "body", tuple(_printable(part) for part in self.body))


def _printable(part: Table | Note) -> Table | Note:
    if isinstance(part, Note):
        if part.text.isprintable():
            return part
        spans = tuple(replace(span, text=escape(span.text)) for span in part.spans)
        return replace(part, text="\n".join(map(_line, part.text.split("\n"))), spans=spans)
    if part.title.isprintable() and all(str(cell).isprintable() for row in part.rows for cell in row):
        return part
    return replace(part, title=escape(part.title), rows=[[_cell(cell) for cell in row] for row in part.rows])


def _line(text: str) -> str:
    return "\t".join(map(escape, text.split("\t")))


def _cell(cell: Cell) -> Cell:
    return escape(cell) if isinstance(cell, str) else replace(cell, text=escape(cell.text))


def hex_address(value: int) -> str:
    """Write an address or raw descriptor the way all output does: `0x` and lower-case digits."""
    return f"{value:#x}"
