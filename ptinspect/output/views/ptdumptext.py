"""The kernel's text of its page tables, and how it differs from another one, as reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptinspect.linux.ptdump.kernel_text import UNKNOWN, Text, TextDifference, TextRun
from ptinspect.output.model import Column, Note, Report, Styled, Table, escape, hex_address
from ptinspect.output.views.tables import size_text


def text_report(file: str, text: Text, shown: int) -> Report:
    """List what is mapped; `shown` limits the rows, not the result."""
    mapped = [run for run in text.runs if run.mapped]
    result = {"file": file, "runs": [_run(run) for run in mapped], "skipped": text.skipped}
    rows = [
        (
            Styled(f"{r.start:#018x}", "address"),
            size_text(r.end - r.start),
            r.level,
            " ".join(r.words),
            escape(r.marker),
        )
        for r in mapped[:shown]
    ]
    columns = (
        Column("from"),
        Column("size", "right"),
        Column("level"),
        Column("attributes"),
        Column("behind"),
    )
    body: list[Note | Table] = [
        Note(f"{file}: {len(mapped)} runs", "title"),
        Table(columns, rows, empty="nothing is mapped"),
    ]
    if len(mapped) > shown:
        body.append(Note(f"… and {len(mapped) - shown} more runs", "dim"))
    if text.skipped:
        body.append(Note(f"{text.skipped} lines of the file are none of the kernel's", "changed"))
    return Report(result, body)


def differences_report(
    names: tuple[str, str], found: Sequence[TextDifference], shown: int, skipped: int
) -> Report:
    """List the ranges in which two texts differ."""
    result = {
        "a": names[0],
        "b": names[1],
        "identical": not found,
        "differences": [
            {
                "va_start": hex_address(d.start),
                "va_end": hex_address(d.end - 1),
                "size": d.end - d.start,
                "a": _what(d.a),
                "b": _what(d.b),
            }
            for d in found
        ],
        "skipped": skipped,
        "not_compared": UNKNOWN,
    }
    rows = [
        (Styled(f"{d.start:#018x}", "address"), size_text(d.end - d.start), _words(d.a), _words(d.b))
        for d in found[:shown]
    ]
    columns = (Column("from"), Column("size", "right"), Column(escape(names[0])), Column(escape(names[1])))
    count = len(found)
    said = "the same is mapped in both" if not count else f"{count} ranges differ"
    body: list[Note | Table] = [Note(said, "good" if not count else "changed")]
    if count:
        body.append(Table(columns, rows))
    if count > shown:
        body.append(Note(f"… and {count - shown} more", "dim"))
    if skipped:
        body.append(Note(f"{skipped} lines are none of the kernel's", "changed"))
    body.append(Note(UNKNOWN, "dim"))
    return Report(result, body)


def _run(run: TextRun) -> dict[str, Any]:
    return {
        "va_start": hex_address(run.start),
        "va_end": hex_address(run.end - 1),
        "size": run.end - run.start,
        "level": run.level,
        "attributes": list(run.words),
        "marker": run.marker,
    }


def _what(run: TextRun | None) -> dict[str, Any] | None:
    return None if run is None else {"level": run.level, "attributes": list(run.words)}


def _words(run: TextRun | None) -> str:
    return "not mapped" if run is None else " ".join((run.level, *run.words))
