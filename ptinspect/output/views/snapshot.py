"""Snapshots as reports: one, or the list of those in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.regime import Regime
from ptinspect.output.model import Column, Note, Report, Table, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Root, Snapshot


@dataclass(frozen=True)
class RootResult:
    """A root table, and why it was chosen."""

    pa: PhysAddr
    provenance: str


def root_result(root: Root) -> RootResult:
    """Return a root as results have it."""
    return RootResult(root.pa, root.provenance)


def facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return what JSON says about a snapshot."""
    regime, meta = snapshot.regime, snapshot.meta
    return {
        "name": snapshot.name,
        "root": {"pa": hex_address(snapshot.root.pa), "provenance": snapshot.root.provenance},
        "regime": regime_facts(regime),
        "tables": len(snapshot.tables),
        "unreadable": _unreadable(snapshot),
        "va_range": None if snapshot.va_range is None else [hex_address(va) for va in snapshot.va_range],
        "truncated": snapshot.truncated,
        **seen(snapshot),
        "created": meta.created,
        "tool_version": meta.tool_version,
        "where": meta.where,
        "kernel": meta.kernel,
        "source": meta.source,
        "note": meta.note,
        "extra": dict(meta.extra),
        "cpus": len(snapshot.cpus),
    }


def regime_facts(regime: Any) -> dict[str, Any]:
    """Return what JSON says about a regime."""
    return {
        "granule": regime.granule,
        "va_bits": regime.va_bits,
        "pa_bits": regime.pa_bits,
        "start_level": regime.start_level,
        "upper": regime.upper,
        "mmu_on": regime.mmu_on,
        "name": regime.name,
        "indirect": regime.pie,
        "doubt": regime.doubt,
    }


def source_of(snapshot: Snapshot) -> str:
    """Return where the tables of a snapshot come from: `snapshot NAME`, or `guest, cpu 0`.

    A capture that only one command looks at is named in parentheses after its guest.
    """
    name = snapshot.name
    return name[1:-1] if name.startswith("(") and name.endswith(")") else f"snapshot {name}"


def root_note(root: Root, source: str, regime: Regime) -> Note:
    """Say which root is looked at and why, and whose tables they are."""
    off = "" if regime.mmu_on else "; the MMU is off"
    return Note(f"root pa:{root.pa:#x}: {escape(root.provenance)} ({escape(source)}{off})", "dim")


def warnings(snapshot: Snapshot) -> list[Note]:
    """Return what is missing in a snapshot, so that nobody takes a part for the whole."""
    from ptinspect.snapshot.coverage import unseen

    return [Note(escape(text), "bad") for text in unseen(snapshot)]


def seen(*snapshots: Snapshot) -> dict[str, Any]:
    """Return what JSON says about what snapshots do not show."""
    from ptinspect.snapshot.coverage import unseen

    missing = [text for snapshot in snapshots for text in unseen(snapshot)]
    return {"complete": not missing, "unseen": missing}


def told(snapshot: Snapshot, verb: str, path: Path | None = None) -> Report:
    """Say what was done with a snapshot."""
    result = facts(snapshot)
    if path is not None:
        result["file"] = str(path)
    body = [
        Note(f"{verb} {snapshot.name}: {len(snapshot.tables)} tables", "good"),
        Note(f"root pa:{snapshot.root.pa:#x}: {escape(snapshot.root.provenance)}", "dim"),
        *([Note(escape(snapshot.meta.where), "dim")] if snapshot.meta.where else []),
        *warnings(snapshot),
    ]
    return Report(result, body)


def listed(snapshots: Sequence[Snapshot]) -> Report:
    """List snapshots."""
    columns = (Column("name"), Column("tables", "right"), Column("created (UTC)"), Column("where"))
    rows = [
        (s.name, str(len(s.tables)), escape(s.meta.created)[:19], escape(s.meta.where)) for s in snapshots
    ]
    table = Table(columns, rows, empty="no snapshots; 'snap NAME' captures one, 'load FILE' reads one")
    return Report({"snapshots": [facts(s) for s in snapshots]}, (table,))


def _unreadable(snapshot: Snapshot) -> int:
    return int((~snapshot.tables.readable).sum())
