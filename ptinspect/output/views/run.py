"""Memory, as a report."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.output.model import Column, Note, Report, Styled, Table


def memory(
    text: str, rows: Sequence[tuple[int, str, Sequence[str]]], data: bytes, physical: bool, missing: str
) -> Report:
    """Show memory: (address, note, cells) for each line; `missing` says what could not be read."""
    prefix = "pa:" if physical else ""
    columns = (Column("address"), Column("bytes"))
    lines = [(Styled(f"{prefix}{a:#x}{note}", "address"), " ".join(cells)) for a, note, cells in rows]
    result = {"address": text, "bytes": data.hex(), "physical": physical, "error": missing}
    body: list[Table | Note] = [Table(columns, lines)] if lines else []
    if missing:
        body.append(Note(missing, "bad"))
    return Report(result, body)
