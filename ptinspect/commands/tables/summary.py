"""`summary`: count what the tables hold, level by level."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ptinspect.analysis.counts import LevelDiff, LevelSummary
from ptinspect.arch.levels import size_text
from ptinspect.commands.framework.arguments import TABLES
from ptinspect.commands.framework.command import Needs, command
from ptinspect.dataclass import dataclass
from ptinspect.guest.capturing import snapshot_of
from ptinspect.guest.guest import Guest
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import filled
from ptinspect.output.model import Cell, Note, Report, Style, Styled, Table, headings
from ptinspect.output.table_heads import (
    RegimeResult,
    RootResult,
    geometry_text,
    heads,
    regime_result,
    root_result,
)

Counts = tuple[tuple[str, str, Style], ...]
COUNTS: Counts = (
    ("tables", "tables", "plain"),
    ("entries_valid", "valid", "plain"),
    ("table_descriptors", "to tables", "plain"),
    ("table_descriptors_marked", "marked", "changed"),
    ("leaves", "leaves", "plain"),
    ("leaves_ng", "nG", "changed"),
    ("leaf_size", "leaf size", "plain"),
    ("leaves_contiguous", "cont", "plain"),
    ("reserved", "reserved", "bad"),
    ("invalid_nonzero", "invalid≠0", "changed"),
    ("unreadable", "unreadable", "bad"),
)
"""Field of LevelSummary, head of its column, and the style of a number that is not zero."""
OPTIONAL = {"leaves_contiguous", "reserved", "invalid_nonzero", "unreadable"}
"""Columns that are shown only if they count something."""


@dataclass(frozen=True)
class SummaryResult:
    """The counts of all levels."""

    root: RootResult
    regime: RegimeResult
    levels: Sequence[LevelSummary]
    truncated: str
    complete: bool
    unseen: Sequence[str]
    snapshot: str
    tables: int
    """Of all levels, as the counts below."""
    table_descriptors: int
    table_descriptors_marked: int
    leaves: int
    leaves_ng: int


@command(
    "summary",
    group="Tables",
    summary="Count tables, marks, leaves and nG, level by level",
    example="summary",
    arguments=TABLES,
    result=SummaryResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    expectable=True,
)
def summary(guest: Guest, *, tables: Tables) -> Report:
    """Count what the tables hold."""
    from ptinspect.analysis.summary import summarize
    from ptinspect.snapshot.coverage import unseen

    snapshot = snapshot_of(guest, tables)
    found, missing = summarize(snapshot), unseen(snapshot)
    result = filled(
        SummaryResult,
        found,
        root=root_result(snapshot.root),
        regime=regime_result(snapshot.regime),
        truncated=snapshot.truncated,
        complete=not missing,
        unseen=missing,
        snapshot=snapshot.name,
    )
    said = (
        f"{found.table_descriptors_marked} of {found.table_descriptors} table descriptors are marked, "
        f"{found.leaves_ng} of {found.leaves} leaves are nG"
    )
    said += ", of those that were captured" if missing else ""
    head = Note(geometry_text(snapshot.regime), "dim")
    return Report(result, (*heads(snapshot), head, counts_table(result.levels, COUNTS, OPTIONAL), Note(said)))


def counts_table(levels: Sequence[LevelSummary | LevelDiff], counts: Counts, optional: Set[str]) -> Table:
    """Return a table of counts, a row for each level; columns that are `optional` only if they count."""
    used = [c for c in counts if c[0] not in optional or any(getattr(level, c[0]) for level in levels)]
    rows = [[Styled(f"{x.name} {x.level}", "level"), *(_count(x, c) for c in used)] for x in levels]
    return Table(headings("level", *(f">{title}" for _, title, _ in used)), rows)


def _count(level: LevelSummary | LevelDiff, column: tuple[str, str, Style]) -> Cell:
    field, _, style = column
    value = getattr(level, field)
    if field == "leaf_size":
        return size_text(value) if value else Styled("-", "dim")
    return Styled(str(value), style if value else "dim")
