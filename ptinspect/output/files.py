"""Reports in files: text, JSON, CSV or Markdown by the suffix of the name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ptinspect.errors import UserError
from ptinspect.files import replacing
from ptinspect.output.model import Cell, Report, Table
from ptinspect.output.text import render
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write(report: Report, path: Path) -> None:
    """Write the report to `path` in the form that its suffix names, in one step or not at all.

    Raises UserError if the suffix names no form, or the file cannot be written.
    """
    write_text(path, form_of(path)(report))


def write_text(path: Path, data: str) -> None:
    """Write a text to `path` in one step or not at all. Raises UserError if it cannot be written."""
    with replacing(path) as file:
        file.write(data.encode())


def form_of(path: Path) -> Callable[[Report], str]:
    """Return the writer for the suffix of `path`. Raises UserError for an unknown one."""
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}", f"use one of: {', '.join(FORMS)}")
    return form


def text(report: Report) -> str:
    """Return the report as plain text."""
    return render(report)


def to_csv(report: Report) -> str:
    """Return the report's tables as CSV (RFC 4180), an empty line between two tables."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out)
    for number, table in enumerate(_tables(report)):
        if number:
            out.write("\r\n")
        writer.writerow([column.title for column in table.columns])
        writer.writerows([[str(cell) for cell in row] for row in table.rows])
    return out.getvalue()


def to_markdown(report: Report) -> str:
    """Return the report as Markdown: notes as paragraphs, tables as pipe tables."""
    parts: list[str] = []
    for part in report.body:
        if not isinstance(part, Table):
            parts.append(f"## {_escaped(part.text)}" if part.style == "title" else _escaped(part.text))
            continue
        lines = [f"### {_escaped(part.title)}\n"] if part.title else []
        if part.rows:
            lines.append(_line([column.title for column in part.columns]))
            lines.append(_line(["---:" if c.align == "right" else "---" for c in part.columns]))
            lines.extend(_line(list(row)) for row in part.rows)
        else:
            lines.append(_escaped(part.empty or "nothing to show"))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """Return the report's result as JSON."""
    from ptinspect.output.json import document

    return document(report)


def _tables(report: Report) -> list[Table]:
    return [part for part in report.body if isinstance(part, Table)]


def _line(cells: list[Cell] | list[str]) -> str:
    return "| " + " | ".join(_escaped(str(cell)) for cell in cells) + " |"


def _escaped(value: str) -> str:
    for character in "\\`*_|<":
        value = value.replace(character, "\\" + character)
    return value


FORMS: Mapping[str, Callable[[Report], str]] = {
    ".txt": text,
    ".json": to_json,
    ".csv": to_csv,
    ".md": to_markdown,
}
"""Suffix of a file name -> the writer of its form."""
