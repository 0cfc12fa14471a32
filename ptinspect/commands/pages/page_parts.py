"""Snapshots and what lies between them, put on a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ptinspect.commands.pages.space import space
from ptinspect.commands.tables.diff import told
from ptinspect.output.model import Report

if TYPE_CHECKING:
    from ptinspect.analysis.diff import Change
    from ptinspect.guest.recordings.writers import Write
    from ptinspect.output.html import Page
    from ptinspect.snapshot.model import Snapshot

    Search = Callable[[Sequence[Change], Snapshot, Snapshot], Sequence[Write | None]]
    """Names the writers of the first changes between two snapshots."""

MAX_CHANGES = 500
"""Changes of a pair that a page lists."""


def add_snapshots(
    page: Page,
    snapshots: Iterable[Snapshot],
    name: Callable[[Snapshot], str] = lambda s: s.name,
    who: Search | None = None,
) -> None:
    """Add each snapshot, and each against the one before it; one alone with its address space."""
    from ptinspect.analysis.atlas import atlas, changes
    from ptinspect.analysis.diff import diff
    from ptinspect.dataclass import replace

    before, alone = None, True
    for given in snapshots:
        snapshot = replace(given, name=name(given))
        page.add_map(snapshot, atlas(snapshot), snapshot.name)
        if before is not None:
            found = diff(before, snapshot, max_changes=MAX_CHANGES)
            writes = None if who is None else dict(enumerate(who(found.changes, before, given)))
            result, verdict, words = told(found, before, snapshot, writes)
            page.add_diff(Report(result).result, verdict, words)
            title = f"{before.name} → {snapshot.name}"
            page.add_map(snapshot, changes(before, snapshot), title, diff=True)
            shown = space(snapshot, before, result.changes)
            page.spaces.append({"diff": len(page.diffs) - 1, "map": len(page.maps) - 1, **shown})
            alone = False
        before = snapshot
    if before is not None and alone:
        page.spaces.append({"diff": None, "map": len(page.maps) - 1, "title": before.name, **space(before)})
