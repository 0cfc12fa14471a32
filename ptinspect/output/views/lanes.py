"""The ways to guest memory as a report."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.output.model import Column, Note, Report, Styled, Table, escape
from ptinspect.target.lanes import LaneFacts


def lanes(mode: str, facts: Sequence[LaneFacts], notices: Sequence[str]) -> Report:
    """Show every lane: in use, usable with what speed, or why not."""
    result = {
        "mode": mode,
        "lanes": [
            {
                "name": lane.name,
                "label": lane.label,
                "available": not lane.why_not,
                "why_not": lane.why_not,
                "chosen": lane.chosen,
                "bytes_per_second": None if lane.bytes_per_second is None else round(lane.bytes_per_second),
            }
            for lane in facts
        ],
        "notices": list(notices),
    }
    rows = [
        (
            Styled(lane.name, "good") if lane.chosen else lane.name,
            "in use" if lane.chosen else "",
            "" if lane.bytes_per_second is None else f"{lane.bytes_per_second / 1e6:.0f} MB/s",
            escape(f"not usable: {lane.why_not}" if lane.why_not else lane.label),
        )
        for lane in facts
    ]
    columns = (Column("lane"), Column(""), Column("speed", "right"), Column("memory by"))
    notes = [Note(escape(text), "changed") for text in notices]
    return Report(result, (Table(columns, rows), Note(f"chosen by: {mode}", "dim"), *notes))
