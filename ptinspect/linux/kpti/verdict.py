"""Tell the ways apart in which the rewrite can have gone: the cases of the LKML thread of June 2018.

Four can be told from the tables before and after. Whether tables were never written, or written with the
value that they had, cannot: it takes the recorded stores, or the kernel's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ptinspect.analysis.changes import Change
from ptinspect.analysis.compare import is_older
from ptinspect.analysis.diff import diff
from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.linux.contents import Contents, in_words, took
from ptinspect.linux.kpti.code import KptiCode
from ptinspect.linux.kpti.position import restores_tables
from ptinspect.linux.kpti.state import MOSTLY, census, tables_by_level
from ptinspect.linux.kpti.stores import Recording
from ptinspect.linux.naming import layout_of
from ptinspect.snapshot.index import TableIndex
from ptinspect.snapshot.model import Snapshot

Code = Literal[
    "normal", "no-table-marks", "toggle-write-back", "lost-write", "reverted-entry", "not-run", "unknown"
]
FIXMAP = "fixmap"
LISTED = 8
"""Descriptors that are named; all are counted."""
MEANING: dict[Code, str] = {
    "normal": "every valid descriptor was rewritten, tables too",
    "no-table-marks": "tables were never written, leaves were: visited tables are not tracked in bit 11",
    "toggle-write-back": "tables were written with the value that they had",
    "lost-write": "a descriptor was valid before, or was stored, and does not hold it any more",
    "reverted-entry": "a descriptor holds an older value: another table, without bit 11",
    "not-run": "nothing was rewritten",
    "unknown": "what is known does not tell",
}


@dataclass(frozen=True)
class Verdict:
    """Say what the rewrite did."""

    code: Code
    """One of MEANING."""
    evidence: tuple[str, ...]
    """What supports it."""
    unknown: tuple[str, ...] = ()
    """What could not be told, and what would tell it."""

    @property
    def meaning(self) -> str:
        """The verdict in words."""
        return MEANING[self.code]


def judge(
    before: Snapshot | None,
    after: Snapshot,
    recording: Recording | None = None,
    code: KptiCode | None = None,
    *,
    finished: bool = True,
    walking: bool = False,
) -> Verdict:
    """Judge from the tables before and after, the recorded stores and the kernel's code, as far as known.

    `finished`: the tables are those of the instant at which the walk has ended; nothing in them was created
    later. `walking`: they are those of an instant in the walk, and tell nothing but damage. Damage is told
    first: it does not matter then how tables are marked.
    """
    before = before if before is not None or recording is None else recording.before
    damaged = _lost_stores(recording, after) if recording is not None else None
    damaged = damaged or (_damage(before, after) if before is not None else None)
    if damaged is None and walking:
        why = "the rewrite is not over: kpti progress says how far it is"
        return Verdict("unknown", (f"{after.name}: {census(after)}",), (why,))
    return damaged or _marking(before, after, recording, code, finished)


def _damage(before: Snapshot, after: Snapshot) -> Verdict | None:
    """Look for entries that vanished, or lead elsewhere."""
    found = diff(before, after, kinds=("lost", "retargeted"))
    notes: tuple[str, ...] = ()
    if not found.complete:
        notes = ("the two snapshots could not be compared as a whole",)
    slots = _fixmap_slots([c for c in found.changes if not c.older], before, after)
    if slots:
        notes += (f"{len(slots)} slot(s) of the fixmap, which the kernel itself empties, are left out",)
    total = sum(level.lost + level.retargeted for level in found.levels) - len(slots)
    if not total:
        return None
    empty = {(c.level, c.va_start) for c in slots}
    damaged = [c for c in found.changes if (c.level, c.va_start) not in empty]
    reverted = [c for c in damaged if c.older]
    named = (reverted or damaged)[:LISTED]
    held = Contents.of_changes(before, named)
    said = [_said(c, before, after, held) for c in named]
    if total > len(said):
        said.append(f"and {total - len(said)} more that are lost or lead elsewhere")
    return Verdict("reverted-entry" if reverted else "lost-write", tuple(said), notes)


def _fixmap_slots(lost: list[Change], before: Snapshot, after: Snapshot) -> list[Change]:
    """Return those of the changes that are slots of the fixmap.

    A CPU that patches code maps it there for a moment (patch_map, arch/arm64/kernel/patching.c).
    """
    pages = [c for c in lost if c.level == LEVEL_LAST]
    if not pages:
        return []
    names = layout_of(before, after)
    return [c for c in pages if names.name(c.va_start) == FIXMAP]


def _said(change: Change, before: Snapshot, after: Snapshot, held: Contents) -> str:
    old = "unreadable" if change.before is None else f"{change.before:#x}"
    now = "unreadable" if change.after is None else f"{change.after:#x}"
    weight = f", {change.leaves_before} leaves hung below it" if change.leaves_before else ""
    parts = held.of(change.va_start, change.va_end) if took(change) else ()
    weight += f": {in_words(parts)}" if parts else ""
    return (
        f"level {change.level}, descriptor pa:{change.descriptor_pa:#x} for {change.va_start:#x}: "
        f"{old} in {before.name}, {now} in {after.name}{weight}"
    )


def _lost_stores(recording: Recording, after: Snapshot) -> Verdict | None:
    """Compare what was stored last in each descriptor with what it holds."""
    said: list[str] = []
    reverted = False
    total = 0
    for level in recording.levels:
        here = np.flatnonzero((recording.level == level) & (recording.pa != np.uint64(MASK64)))
        if not len(here):
            continue
        last = here[::-1][np.unique(recording.pa[here][::-1], return_index=True)[1]]
        now, known = _values(after, level, recording.pa[last])
        wrong = np.flatnonzero(known & ((now ^ recording.new[last]) & ~np.uint64(0x400) != 0))
        total += len(wrong)
        for at in wrong[: LISTED - len(said)].tolist():
            stored, holds = int(recording.new[last[at]]), int(now[at])
            reverted = reverted or is_older(stored, holds, level, after.regime)
            said.append(
                f"level {level}, descriptor pa:{int(recording.pa[last[at]]):#x} for "
                f"{int(recording.va[last[at]]):#x}: the rewrite stored {stored:#x}, it holds {holds:#x}"
            )
    if not total:
        return None
    more = (f"and {total - len(said)} more",) if total > len(said) else ()
    return Verdict("reverted-entry" if reverted else "lost-write", (*said, *more))


def _values(
    snapshot: Snapshot, level: int, pa: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint64]], np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """Return what descriptors hold in a snapshot, and which of them it has."""
    size = np.uint64(8 * snapshot.tables.raw.shape[1])
    rows = TableIndex(snapshot.tables).find(level, pa - pa % size)
    known = rows >= 0
    slot = ((pa % size) >> np.uint64(3)).astype(np.intp)
    values = snapshot.tables.raw[np.where(known, rows, 0), slot]
    return values, known & snapshot.tables.readable[np.where(known, rows, 0)]


def _marking(
    before: Snapshot | None,
    after: Snapshot,
    recording: Recording | None,
    code: KptiCode | None,
    finished: bool,
) -> Verdict:
    """Judge by which descriptors have bit 11, and by the stores to tables."""
    c = census(after)
    share = f"{after.name}: {c}"
    early = _not_run(before, after, share)
    if early is not None:
        return early
    if before is None and not c.marked and recording is None and code is None:
        return Verdict("unknown", (share,), ("KASLR, or no marks in tables: a snapshot from before tells",))
    if c.ng < c.leaves * (1 if finished else MOSTLY):
        why = "the rewrite is not over, or left leaves out: kpti progress, check"
        return Verdict("unknown", (share, f"{c.leaves - c.ng} leaves are not nG"), (why,))
    if not c.marked and c.tables:
        return _unmarked(share, recording, code)
    later = c.tables - c.marked
    if later and finished:
        return _partly_marked(after, share, recording, code, later)
    made = (f"{later} tables without a mark were made later",) if later else ()
    return Verdict("normal", (share, *made, *_stores_said(recording)))


def _not_run(before: Snapshot | None, after: Snapshot, share: str) -> Verdict | None:
    """Tell whether nothing was rewritten."""
    c = census(after)
    if not c.leaves:
        return Verdict("unknown", (share,), ("the tables map nothing",))
    if not c.ng and not c.marked:
        return Verdict("not-run", (share, "no descriptor has bit 11"))
    if before is None:
        return None
    had = census(before)
    if had.ng >= had.leaves * MOSTLY and c.marked == had.marked:
        first = f"{before.name}: {had}"
        return Verdict("not-run", (first, share, "mappings were nG from the start (KASLR)"))
    return None


def _partly_marked(
    after: Snapshot, share: str, recording: Recording | None, code: KptiCode | None, missing: int
) -> Verdict:
    """Judge where only some of the tables are marked."""
    top = _marked_at_the_top(after)
    if top is None or code is None or not restores_tables(code):
        return Verdict("unknown", (share,), (f"{missing} table descriptors are not marked: check",))
    once = (
        f"level {top}: all table descriptors are marked, none below: the walk enters the next level without "
        "the toggle that would take the mark back, as where levels are folded"
    )
    return Verdict("toggle-write-back", (share, once, *_stores_said(recording)))


def _marked_at_the_top(snapshot: Snapshot) -> int | None:
    """Return the root's level if all its table descriptors are marked and no others; None otherwise."""
    counts = tables_by_level(snapshot)
    top = min(counts, default=None)
    if top is None or counts[top][0] != counts[top][1]:
        return None
    return None if any(marked for level, (_, marked) in counts.items() if level != top) else top


def _unmarked(share: str, recording: Recording | None, code: KptiCode | None) -> Verdict:
    """Tell the two cases apart in which leaves are nG and no table is marked."""
    if recording is not None and recording.whole and len(recording):
        table = recording.is_table()
        stores, changed = int(table.sum()), int((table & (recording.old != recording.new)).sum())
        said = (share, *_stores_said(recording))
        if not stores:
            return Verdict("no-table-marks", said)
        if not changed:
            return Verdict("toggle-write-back", said)
        return Verdict(
            "lost-write", said, (f"{changed} tables were marked by a store, and none is marked now",)
        )
    if code is not None and not code.marks_tables:
        return Verdict("no-table-marks", (share, "the kernel's code has no store for tables"))
    if code is not None and restores_tables(code):
        how = "toggles bit 11 twice" if code.toggles else "stores tables without setting bit 11"
        return Verdict("toggle-write-back", (share, f"the kernel's code {how}"))
    why = "no-table-marks or toggle-write-back: kpti writes on a fresh boot, or the kernel file, tells"
    return Verdict("unknown", (share,), (why,))


def _stores_said(recording: Recording | None) -> tuple[str, ...]:
    if recording is None or not len(recording):
        return ()
    parts = []
    for level in recording.by_level():
        parts.append(
            f"level {level.level}: {level.stores} stores, {level.tables} to table descriptors, "
            f"{level.tables_changed} of these changed them"
        )
    whole = () if recording.whole else ("the recording is not of the whole rewrite",)
    return (*parts, *whole)
