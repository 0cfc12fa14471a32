"""Maps, summaries and searches of a snapshot, as reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptinspect.arch.descriptor import Attributes
from ptinspect.arch.levels import level_name, size_name
from ptinspect.arch.regime import Regime
from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table, escape, hex_address
from ptinspect.output.views.descriptor import attributes_json, permissions_json, regime_notes
from ptinspect.output.views.snapshot import regime_result, root_note, seen, source_of, warnings

if TYPE_CHECKING:
    from ptinspect.analysis.contiguous import MixedGroup
    from ptinspect.analysis.find import Hit
    from ptinspect.analysis.map import RegionNamer, Run
    from ptinspect.analysis.summary import LevelSummary, Summary
    from ptinspect.snapshot.model import Snapshot

COUNTS: tuple[tuple[str, str, Style], ...] = (
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


def _root(snapshot: Snapshot) -> dict[str, Any]:
    return {"pa": hex_address(snapshot.root.pa), "provenance": snapshot.root.provenance}


def _heads(snapshot: Snapshot, *, part: bool = True) -> list[Note]:
    """Say which root is looked at and why, and what is missing."""
    head = root_note(snapshot.root, source_of(snapshot), snapshot.regime)
    return [head, *(warnings(snapshot) if part else [])]


# -- summary ------------------------------------------------------------------------------------


def summary_report(snapshot: Snapshot, summary: Summary) -> Report:
    """Show the counts of every level."""
    result = {
        "root": _root(snapshot),
        "regime": vars(regime_result(snapshot.regime)),
        "levels": [
            {
                "level": level.level,
                "name": level.name,
                **{field: getattr(level, field) for field, _, _ in COUNTS},
            }
            for level in summary.levels
        ],
        "truncated": snapshot.truncated,
        **seen(snapshot),
        "snapshot": snapshot.name,
    }
    used = [c for c in COUNTS if c[0] not in OPTIONAL or any(getattr(x, c[0]) for x in summary.levels)]
    rows = [[Styled(f"{x.name} {x.level}", "level"), *(_count(x, c) for c in used)] for x in summary.levels]
    regime = snapshot.regime
    head = Note(f"{regime.granule >> 10}K granule, {regime.va_bits}-bit VA, {regime.pa_bits}-bit PA", "dim")
    table = Table((Column("level"), *(Column(title, "right") for _, title, _ in used)), rows)
    marked = sum(x.table_descriptors_marked for x in summary.levels)
    pointers = sum(x.table_descriptors for x in summary.levels)
    ng = sum(x.leaves_ng for x in summary.levels)
    said = f"{marked} of {pointers} table descriptors are marked, {ng} of {summary.leaves} leaves are nG"
    said += "" if result["complete"] else ", of those that were captured"
    return Report(result, (*_heads(snapshot), head, table, Note(said)))


def _count(level: LevelSummary, column: tuple[str, str, Style]) -> Cell:
    field, _, style = column
    value = getattr(level, field)
    if field == "leaf_size":
        return size_name(value) if value else Styled("-", "dim")
    return Styled(str(value), style if value else "dim")


# -- map ----------------------------------------------------------------------------------------


def map_report(snapshot: Snapshot, runs: Sequence[Run], truncated: str, shown: int) -> Report:
    """List runs; `shown` limits the rows, not the result."""
    result = {
        "root": _root(snapshot),
        "runs": [_run(run, snapshot.regime) for run in runs],
        "truncated": truncated,
        "complete": not truncated,
        "snapshot": snapshot.name,
    }
    regime = snapshot.regime
    regions = len({run.region for run in runs}) > 1
    columns = [
        Column("from"),
        Column("leads to pa", "right"),
        Column("size", "right"),
        Column("leaves", "right"),
        Column(regime.privileged),
        *([] if regime.name == "EL2" else [Column("EL0")]),
        Column("nG"),
        Column("attributes"),
        *([Column("region")] if regions else []),
    ]
    rows = [_row(run, regions, regime) for run in runs[:shown]]
    body: list[Note | Table] = [
        *_heads(snapshot, part=False),
        *regime_notes(regime),
        Table(columns, rows, empty="nothing is mapped there that passes the filters"),
    ]
    if len(runs) > shown:
        body.append(Note(f"… and {len(runs) - shown} more runs (--limit N shows more)", "dim"))
    if truncated:
        body.append(Note(f"incomplete: {truncated}", "bad"))
    return Report(result, body)


def groups_report(
    snapshot: Snapshot, groups: Sequence[MixedGroup], regions: RegionNamer, shown: int
) -> Report:
    """List contiguous groups whose entries differ; `shown` limits the rows, not the result."""
    result = {
        "root": _root(snapshot),
        "groups": [
            {
                "va_start": hex_address(group.va),
                "level": group.level,
                "leaf_size": group.size,
                "descriptor_pa": hex_address(group.descriptor_pa),
                "entries": len(group.accessed),
                "accessed": list(group.accessed),
                "dirty": list(group.dirty),
                "region": regions(group.va),
            }
            for group in groups
        ],
        **seen(snapshot),
        "snapshot": snapshot.name,
    }
    columns = (
        Column("from"),
        Column("level"),
        Column("region"),
        Column("AF", "right"),
        Column("dirty", "right"),
        Column("entries"),
    )
    rows = [
        (
            Styled(f"{group.va:#018x}", "address"),
            Styled(f"{level_name(group.level, snapshot.regime)} {group.level}", "level"),
            escape(regions(group.va)),
            f"{sum(group.accessed)} of {len(group.accessed)}",
            f"{sum(group.dirty)} of {len(group.dirty)}",
            entry_letters(group),
        )
        for group in groups[:shown]
    ]
    empty = "no contiguous group whose entries differ in AF or dirty"
    body: list[Note | Table] = [*_heads(snapshot), Table(columns, rows, empty=empty)]
    if rows:
        body.append(Note("entries: a accessed, d dirty, D both, . neither", "dim"))
    if len(groups) > shown:
        body.append(Note(f"… and {len(groups) - shown} more groups (--limit N shows more)", "dim"))
    return Report(result, body)


def entry_letters(group: MixedGroup) -> str:
    """Return a letter for each entry of a group."""
    both = zip(group.accessed, group.dirty, strict=True)
    return "".join(".adD"[accessed + 2 * dirty] for accessed, dirty in both)


def _run(run: Run, regime: Regime) -> dict[str, Any]:
    return {
        "va_start": hex_address(run.va_start),
        "va_end": hex_address(run.va_end),
        "pa_start": hex_address(run.pa_start),
        "level": run.level,
        "leaf_size": run.leaf_size,
        "count": run.count,
        "attributes": attributes_json(run.attributes),
        "permissions": permissions_json(run.permissions, regime),
        "region": run.region,
        "pa_contiguous": run.pa_contiguous,
        "repeated": run.repeated,
    }


def _row(run: Run, regions: bool, regime: Regime) -> list[Cell]:
    return [
        Styled(f"{run.va_start:#018x}", "address"),
        f"{run.pa_start:#x}" + ("" if run.pa_contiguous else " all" if run.repeated else "…"),
        size_text(run.size),
        f"{run.count}x{size_name(run.leaf_size)}",
        run.permissions.el1 + (" GCS" if run.permissions.el1_gcs else ""),
        *(
            []
            if regime.name == "EL2"
            else [run.permissions.el0 + (" GCS" if run.permissions.el0_gcs else "")]
        ),
        Styled("nG", "changed") if run.attributes.ng else "",
        short_words(run.attributes),
        *([escape(run.region)] if regions else []),
    ]


def short_words(attributes: Attributes) -> str:
    """Return what other columns do not say already: memory type, and what is unusual."""
    a = attributes
    flags: tuple[tuple[str, object], ...] = (
        (a.memory_type or "", True),
        ("AF-clear", not a.af),
        ("Cont", a.contiguous),
        ("GP", a.gp),
        *((name, True) for name in a.software),
    )
    return " ".join(word for word, shown in flags if shown)


def size_text(size: int) -> str:
    """Return a size as people write it: 4K, 2M, 1G; above 16M rounded to a tenth where it is no multiple."""
    for unit, shift in (("T", 40), ("G", 30), ("M", 20)):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size / (1 << 20):.1f}M" if size >= 16 << 20 else f"{size >> 10}K"


# -- find ---------------------------------------------------------------------------------------


def find_report(
    snapshot: Snapshot, pa: int, hits: Sequence[Hit], truncated: str, regions: RegionNamer
) -> Report:
    """List the ways to a physical address; `regions` names the addresses."""
    from ptinspect.snapshot.coverage import unseen

    result = {
        "pa": hex_address(pa),
        "root": _root(snapshot),
        "hits": [
            {
                "kind": hit.kind,
                "va": hex_address(hit.va),
                "region": regions(hit.va),
                "level": hit.level,
                "table_pa": hex_address(hit.table_pa),
                "index": hit.index,
                "descriptor_pa": hex_address(hit.descriptor_pa),
                "raw": hex_address(hit.raw),
                "size": hit.size,
            }
            for hit in hits
        ],
        "truncated": truncated,
        "complete": not truncated and not unseen(snapshot),
        "unseen": list(unseen(snapshot)),
        "snapshot": snapshot.name,
    }
    columns = (
        Column("address"),
        Column("region"),
        Column("what"),
        Column("level"),
        Column("descriptor at"),
        Column("raw", "right"),
    )
    rows = [
        (
            Styled(f"{hit.va:#018x}", "address"),
            escape(regions(hit.va)),
            f"maps it ({size_name(hit.size)})" if hit.kind == "leaf" else "entry there",
            Styled(f"{level_name(hit.level, snapshot.regime)} {hit.level}", "level"),
            f"pa:{hit.descriptor_pa:#x}",
            f"{hit.raw:#018x}",
        )
        for hit in hits
    ]
    where = "in what was captured" if result["unseen"] else "under this root"
    empty = f"no address {where} maps pa:{pa:#x}"
    body: list[Note | Table] = [
        Note(f"pa:{pa:#x}", "title"),
        *_heads(snapshot),
        Table(columns, rows, empty=empty),
    ]
    if truncated:
        body.append(Note(f"incomplete: {truncated}", "bad"))
    return Report(result, body)
