"""Tell apart how the rewrite can have gone: the cases of the LKML thread of June 2018.

Damage, a normal rewrite and none at all show in the tables before and after. Whether tables were
never written, or written with the value that they had, does not: it takes the recorded stores, or the
kernel's code, which decides where it is known.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.classify import is_older
from ptinspect.analysis.diff import Change, diff
from ptinspect.analysis.summary import Summary, summarize
from ptinspect.arch.bits import MASK64
from ptinspect.arch.descriptor import BIT11
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass
from ptinspect.linux.kpti.code import PRE_ORDER, TablesAre
from ptinspect.linux.kpti.marks import marks
from ptinspect.linux.kpti.state import MOSTLY, KptiState, mostly_ng, state_from_tables
from ptinspect.linux.kpti.stores import Recording
from ptinspect.linux.layout.choice import layout_of
from ptinspect.linux.layout.mapped_parts import Contents, in_words, took
from ptinspect.snapshot.coverage import strangers, unseen
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, place_of
from ptinspect.tables.kinds import are_valid
from ptinspect.text import counted

Code = Literal[
    "normal", "no-table-marks", "toggle-write-back", "lost-write", "reverted-entry", "not-run", "unknown"
]
FIXMAP = "fixmap"
UNEXPLAINED = "who marked tables: check"
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
    """What the rewrite did."""

    code: Code
    """One of MEANING."""
    evidence: tuple[str, ...]
    """What supports it."""
    unknown: tuple[str, ...] = ()
    """What is not known, and what would tell it."""

    @property
    def meaning(self) -> str:
        """The verdict in words."""
        return MEANING[self.code]


def judge(
    before: Snapshot | None,
    after: Snapshot,
    state: KptiState | None = None,
    recording: Recording | None = None,
    *,
    finished: bool = False,
) -> Verdict:
    """Judge from the tables before and after, where the guest stood then, and the recorded stores.

    `state` is that of `after`, with the code as the kernel has it; what the tables tell alone by default.
    `finished`: the tables are those of the instant at which the walk has ended; nothing in them was created
    later. Damage comes first: it does not matter then how tables are marked; unless the kernel has run on for
    so long that it may be its own doing. Nothing is claimed of what was not captured.
    """
    before = before if before is not None or recording is None else recording.before
    state = state or state_from_tables(after)
    if before is not None and (differ := strangers(before, after)):
        return Verdict(
            "unknown", differ, ("what the rewrite did: the two are not of one boot's kernel tables",)
        )
    lacks = (*state.unseen, *(() if before is None else unseen(before)))
    found = _lost_stores(recording, after) if recording is not None else None
    found = found or (_damage(before, after) if before is not None else None)
    if found is not None and state.past:
        why = f"{state.past}: the kernel may have changed these itself since, kpti run on a fresh boot tells"
        found = Verdict("unknown", found.evidence, (*found.unknown, why))
    found = found or _not_over(before, after, state, finished=finished)
    found = found or _marking(before, after, state, recording, finished=finished)
    if found.code == "normal" and lacks:
        return Verdict("unknown", found.evidence, lacks)
    return Verdict(found.code, found.evidence, (*found.unknown, *lacks)) if lacks else found


def _damage(before: Snapshot, after: Snapshot) -> Verdict | None:
    """Look for entries that vanished, or lead elsewhere."""
    found = diff(before, after, kinds=("lost", "retargeted"))
    notes: tuple[str, ...] = ()
    if not found.complete:
        notes = ("the two snapshots could not be compared as a whole",)
    slots = _fixmap_slots([c for c in found.changes if not c.older], before, after)
    if slots:
        notes += (f"left out: {counted(len(slots), 'slot')} of the fixmap, which the kernel itself empties",)
    total = sum(level.lost + level.retargeted for level in found.levels) - len(slots)
    if not total:
        return None
    empty = {(c.level, c.va_start) for c in slots}
    damaged = [c for c in found.changes if (c.level, c.va_start) not in empty]
    reverted = [c for c in damaged if c.older and _older(c.before, c.after, c.level, after)]
    named = (reverted or damaged)[:LISTED]
    held = Contents.of_changes(before, named)
    lines = [_in_words(c, before, after, held) for c in named]
    if total > len(lines):
        lines.append(f"and {total - len(lines)} more that are lost or lead elsewhere")
    return Verdict("reverted-entry" if reverted else "lost-write", tuple(lines), notes)


def _older(then: int | None, now: int | None, level: int, after: Snapshot) -> bool:
    return None not in (then, now) and is_older(then or 0, now or 0, level, after.regime, after.ram)


def _fixmap_slots(lost: list[Change], before: Snapshot, after: Snapshot) -> list[Change]:
    """Return those of the changes that are slots of the fixmap.

    A CPU that patches code maps it there for a moment (patch_map, arch/arm64/kernel/patching.c).
    """
    pages = [c for c in lost if c.level == LEVEL_LAST]
    if not pages:
        return []
    names = layout_of(before, after)
    return [c for c in pages if names.name(c.va_start) == FIXMAP]


def _descriptor(level: int, pa: int, va: int) -> str:
    return f"level {level}, descriptor pa:{pa:#x} for {va:#x}"


def _in_words(change: Change, before: Snapshot, after: Snapshot, held: Contents) -> str:
    old = "unreadable" if change.before is None else f"{change.before:#x}"
    now = "unreadable" if change.after is None else f"{change.after:#x}"
    weight = f", {change.leaves_before} leaves hung below it" if change.leaves_before else ""
    parts = held.of(change.va_start, change.va_end) if took(change) else ()
    weight += f": {in_words(parts)}" if parts else ""
    place = _descriptor(change.level, change.descriptor_pa, change.va_start)
    return f"{place}: {old} in {before.name}, {now} in {after.name}{weight}"


def _lost_stores(recording: Recording, after: Snapshot) -> Verdict | None:
    """Compare what was stored last in each descriptor with what it holds."""
    lines: list[str] = []
    reverted = False
    total = 0
    for level in recording.levels:
        last = _last(recording, (recording.level == level) & (recording.pa != np.uint64(MASK64)))
        if not len(last):
            continue
        now, known = _values(after, level, recording.pa[last])
        wrong = np.flatnonzero(known & ((now ^ recording.new[last]) & ~np.uint64(0x400) != 0))
        total += len(wrong)
        for at in wrong[: LISTED - len(lines)].tolist():
            stored, holds = int(recording.new[last[at]]), int(now[at])
            reverted = reverted or _older(stored, holds, level, after)
            place = _descriptor(level, int(recording.pa[last[at]]), int(recording.va[last[at]]))
            lines.append(f"{place}: the rewrite stored {stored:#x}, it holds {holds:#x}")
    if not total:
        return None
    more = (f"and {total - len(lines)} more",) if total > len(lines) else ()
    return Verdict("reverted-entry" if reverted else "lost-write", (*lines, *more))


def _last(recording: Recording, chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return which of the chosen stores were the last to their descriptors."""
    at = np.flatnonzero(chosen)[::-1]
    return at[np.unique(recording.pa[at], return_index=True)[1]]


def _values(
    snapshot: Snapshot, level: int, pa: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return what descriptors hold in a snapshot, and which of them it has."""
    size = np.uint64(8 * snapshot.tables.raw.shape[1])
    rows = TableIndex(snapshot.tables).find(level, pa - pa % size)
    known = rows >= 0
    slot = ((pa % size) >> np.uint64(3)).astype(np.intp)
    values = snapshot.tables.raw[np.where(known, rows, 0), slot]
    return values, known & snapshot.tables.readable[np.where(known, rows, 0)]


def _not_over(
    before: Snapshot | None, after: Snapshot, state: KptiState, *, finished: bool
) -> Verdict | None:
    """Tell whether nothing was rewritten, or not all yet."""
    if finished:
        return None
    stands = f"{after.name}: {state.reason}"
    if state.state == "in-progress":
        return Verdict("unknown", (stands,), ("the rewrite is not over: kpti progress shows how far it is",))
    if state.state in ("before", "not-needed"):
        return (None if before is None else _backwards(before, state, stands)) or Verdict(
            "not-run", (stands,)
        )
    if before is None or state.unseen or unseen(before):
        return None
    had = summarize(before)
    same = had.table_descriptors_marked == state.counts.table_descriptors_marked
    if same and mostly_ng(had):
        why = "mappings were nG from the start (KASLR)"
        return Verdict("not-run", (f"{before.name}: {had.marks}", stands, why))
    return None


def _backwards(before: Snapshot, state: KptiState, stands: str) -> Verdict | None:
    """Notice that what was rewritten before is not so after."""
    had = summarize(before)
    if not had.table_descriptors_marked and mostly_ng(had) <= mostly_ng(state.counts):
        return None
    why = "no rewrite takes marks back: the two are in the wrong order, or not of one boot"
    return Verdict("unknown", (f"{before.name}: {had.marks}", stands), (why,))


def _marking(
    before: Snapshot | None, after: Snapshot, state: KptiState, recording: Recording | None, *, finished: bool
) -> Verdict:
    """Judge by which descriptors have bit 11, by the stores to tables, and by the kernel's code."""
    c = state.counts
    stores = _stores(recording) if recording is not None and recording.whole else ()
    share = (f"{after.name}: {c.marks}", *stores)
    treated = _by_stores(recording)
    if state.code is not None and treated in (None, "never-written"):
        treated = state.code.tables  # only stores that were seen outrank it
    if not c.leaves or not after.regime.upper:
        return Verdict("unknown", share, (state.reason,))
    if c.leaves_ng < c.leaves * (1 if finished else MOSTLY):
        why = "the rewrite is not over, or left leaves out: kpti progress, check"
        listed = _missed(None, after, tables=False)[1] if finished else []
        return Verdict(
            "unknown",
            (*share, f"{counted(c.leaves - c.leaves_ng, 'leaf is', 'leaves are')} not nG", *listed),
            (why,),
        )
    if treated in ("never-written", "written-back"):
        return _unmarked(state, treated, share)
    if c.table_descriptors_marked or not c.table_descriptors:
        return _marked(None if finished else before, after, share, finished=finished)
    if treated == "marked":
        return Verdict("unknown", share, ("the kernel's code marks tables, and none is marked: check",))
    why = "no-table-marks or toggle-write-back" + ("" if before is not None else ", or not-run (KASLR)")
    return Verdict("unknown", share, (f"{why}: kpti writes on a fresh boot, or the kernel file, tells",))


def _marked(before: Snapshot | None, after: Snapshot, share: tuple[str, ...], *, finished: bool) -> Verdict:
    """Judge where the rewrite marked tables: did it pass all that were there?"""
    missed, listed = _missed(before, after)
    if not missed:
        every = 0 if before is None else _missed(None, after)[0]
        if before is None or not every:
            return Verdict("normal", share)
        later = f"{counted(every, 'descriptor')} without bit 11 made later: not in {before.name}"
        return Verdict("normal", (*share, later))
    more = (f"and {missed - len(listed)} more",) if missed > len(listed) else ()
    why = (
        f"{counted(missed, 'descriptor')} without bit 11 made later, or missed: a snapshot from before tells"
    )
    if finished or before is not None:
        why = f"{counted(missed, 'descriptor')} that the walk has passed not marked: check"
    return Verdict("unknown", (*share, *listed, *more), (why,))


def _missed(before: Snapshot | None, after: Snapshot, *, tables: bool = True) -> tuple[int, list[str]]:
    """Count valid descriptors without bit 11 that were valid before, and describe the first ones.

    Without `before` all count; without `tables` only blocks and pages.
    """
    index = None if before is None else TableIndex(before.tables)
    total, lines = 0, list[str]()
    for at in marks(after, PRE_ORDER):  # what is counted in any order
        wrong, rows = at.open(tables=tables), at.rows
        if before is not None and index is not None:
            old = index.find(at.level, after.tables.pa[rows])
            wrong &= (old >= 0)[:, None] & are_valid(
                before.tables.raw[np.maximum(old, 0)], at.level, before.regime
            )
        total += int(np.count_nonzero(wrong))
        row, slot = (part[: LISTED - len(lines)].tolist() for part in np.nonzero(wrong))
        for r, s in zip(row, slot, strict=True):
            va, pa = place_of(after.tables, int(rows[r]), s, after.regime)
            raw = int(after.tables.raw[rows[r], s])
            lines.append(f"{_descriptor(at.level, pa, va)}: {raw:#x} has no bit 11")
    return total, lines


def _by_stores(recording: Recording | None) -> TablesAre | None:
    """Tell from the last recorded stores what the walk does to tables; None if they are not all there.

    The debug patch that writes tables back leaves the mark in those of the root where levels are folded.
    """
    if recording is None or not recording.whole or not len(recording):
        return None
    tables = recording.is_table()
    below = tables & (recording.level > recording.before.regime.start_level)
    stored = recording.new[_last(recording, below if below.any() else tables)]
    if not len(stored):
        return "never-written"
    return "marked" if (stored & np.uint64(BIT11)).any() else "written-back"


def _unmarked(state: KptiState, treated: TablesAre, evidence: tuple[str, ...]) -> Verdict:
    """Judge where all leaves are nG, and the code, or its stores, leave no marks in tables."""
    c, code = state.counts, state.code
    if treated == "never-written":
        how = () if code is None else ("the kernel's code has no store for tables",)
        if c.table_descriptors_marked:
            return Verdict("unknown", (*evidence, *how), (UNEXPLAINED,))
        return Verdict("no-table-marks", (*evidence, *how))
    how = ()
    if code is not None and code.tables == treated:
        does = "toggles bit 11 twice" if code.toggles else "stores tables without setting bit 11"
        how = (f"the kernel's code {does}",)
    if not c.table_descriptors_marked:
        return Verdict("toggle-write-back", (*evidence, *how))
    top = _marked_at_the_top(c)
    if top is None:
        return Verdict("unknown", (*evidence, *how), (UNEXPLAINED,))
    once = (
        f"level {top}: all table descriptors are marked, none below: the walk enters the next level without "
        "the toggle that would take the mark back, as where levels are folded"
    )
    return Verdict("toggle-write-back", (*evidence, once, *how))


def _marked_at_the_top(counts: Summary) -> int | None:
    """Return the root's level if all its table descriptors are marked and no others; None otherwise."""
    top, *below = counts.levels
    if top.table_descriptors != top.table_descriptors_marked:
        return None
    return None if any(level.table_descriptors_marked for level in below) else top.level


def _stores(recording: Recording) -> tuple[str, ...]:
    return tuple(
        f"level {level.level}: {counted(level.stores, 'store')}, {level.tables} to table descriptors, "
        f"{level.tables_changed} of these changed them"
        for level in recording.by_level()
    )
