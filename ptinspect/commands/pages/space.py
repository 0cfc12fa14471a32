"""The whole address space by regions, as a page draws it: what is where, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptinspect.arch.levels import size_text
from ptinspect.arch.regime import Regime
from ptinspect.commands.pages.ptdump_text import ptdump_text
from ptinspect.commands.tables.diff import ChangeResult
from ptinspect.commands.tables.map import run_columns, run_row
from ptinspect.guest.regions import names_of
from ptinspect.output.model import Styled

if TYPE_CHECKING:
    from ptinspect.analysis.areas import Area, Share
    from ptinspect.snapshot.model import Snapshot

MAX_AREAS = 400
"""Regions that a page lists; a process can have thousands."""
MAX_RUNS = 50
"""Runs that it lists of each."""


def space(
    snapshot: Snapshot, before: Snapshot | None = None, changes: Sequence[ChangeResult] = ()
) -> dict[str, Any]:
    """Return the regions in which something is or was mapped, and which of the changes touch each.

    A stack belongs to the region around it; what a region holds is told in words.
    """
    from ptinspect.analysis.areas import areas
    from ptinspect.linux.layout.choice import region_namer
    from ptinspect.linux.layout.mapped_parts import STACK, Contents, in_words
    from ptinspect.linux.layout.regions import Layout

    known = names_of(snapshot, before)[1]
    layout = Layout(tuple(r for r in known.regions if not STACK.fullmatch(r.name)), known.source)
    regions = region_namer(layout, snapshot.regime)
    now, incomplete = areas(snapshot, regions, layout.edges)
    then, also = (now, ()) if before is None else areas(before, regions, layout.edges)
    pairs = [pair for pair in zip(then, now, strict=True) if pair[0].shares or pair[1].shares]
    contents = Contents(snapshot, ((area.va_start, area.va_end) for _, area in pairs[:MAX_AREAS]))
    return {
        "named_by": known.source,
        "unseen": list(dict.fromkeys((*incomplete, *also))),
        "left_out": max(len(pairs) - MAX_AREAS, 0),
        "ptdump": ptdump_text(snapshot, before),
        "heads": [column.title for column in run_columns(snapshot.regime, regions=False)],
        "areas": [
            {
                **_area(area, snapshot.regime),
                "before": None if before is None else _shares(old.shares),
                "holds": in_words(contents.of(area.va_start, area.va_end)),
                "changes": [
                    number
                    for number, change in enumerate(changes)
                    if change.va_start <= area.va_end and area.va_start <= change.va_end
                ],
            }
            for old, area in pairs[:MAX_AREAS]
        ],
    }


def _area(area: Area, regime: Regime) -> dict[str, Any]:
    rows = [run_row(run, regions=False, regime=regime) for run in area.runs[:MAX_RUNS]]
    return {
        "name": area.name,
        "va_start": f"{area.va_start:#018x}",
        "va_end": f"{area.va_end:#018x}",
        "width": area.size.bit_length() - regime.granule.bit_length() + 1,
        "size": size_text(area.size),
        "mapped": size_text(area.mapped) if area.shares else "nothing",
        "shares": _shares(area.shares),
        "runs": [[cell.text if isinstance(cell, Styled) else cell for cell in row] for row in rows],
        "runs_total": len(area.runs),
    }


def _shares(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """Return sizes by permissions, with the words for each."""
    return [
        {
            "may": share.el1 + share.el0,
            "ng": share.ng,
            "bytes": share.size,
            "text": f"{share.el1}{'' if share.el0 == '---' else f' EL0 {share.el0}'}"
            f"{' nG' if share.ng else ''} {size_text(share.size)}",
        }
        for share in shares
    ]
