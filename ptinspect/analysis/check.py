"""Rules that the tables of a healthy kernel keep, over one snapshot or over one before and one after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptinspect.analysis.aliases import Places, check_mappings
from ptinspect.analysis.classify import ATTRIBUTES, ELSEWHERE, LOST, Compared
from ptinspect.analysis.diff import Change, Comparison
from ptinspect.analysis.entry_rules import EntryRules, entry_finding
from ptinspect.analysis.findings import Finding, Findings, Severity
from ptinspect.arch.bits import VirtAddr, bit
from ptinspect.arch.levels import size_text
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass
from ptinspect.snapshot.coverage import unseen
from ptinspect.snapshot.fact_names import PHASE
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import (
    BIT11,
    are_valid,
)
from ptinspect.tables.walk import walk
from ptinspect.tables.window import Window
from ptinspect.text import counted

Early = Sequence[tuple[int, int, str]]
"""Physical ranges (first, one past the last, name) of tables of early boot, now out of use."""


def check(
    snapshot: Snapshot,
    findings: Findings | None = None,
    *,
    rewrite_done: bool = False,
    places: Places | None = None,
) -> Findings:
    """Apply every rule that needs one snapshot; rules on areas that `places` does not name are skipped.

    `rewrite_done`: it was captured at the instant at which the rewrite ended, as a capture of `kpti run`
    records itself.
    """
    out = findings or Findings()
    out.unseen += unseen(snapshot)
    checker = EntryRules(snapshot, out)
    checker.run()
    check_mappings(snapshot, places or Places(), out)
    if rewrite_done or snapshot.meta.extra.get(PHASE) == "after":
        checker.marks()
    return out


@dataclass(frozen=True)
class Pair:
    """Join two snapshots of one root and what is known about the time between."""

    before: Snapshot
    after: Snapshot
    rewrite_done: bool = False
    """True if `after` was captured once the rewrite had ended."""
    early: Early = ()
    places: Places | None = None
    """Where areas of `after` lie, as far as they are known."""

    @property
    def across(self) -> bool:
        """True if no more than the rewrite lies between the two."""
        first, then = (s.meta.extra.get(PHASE) for s in (self.before, self.after))
        return first in ("before", "during") and then in ("during", "after")

    @property
    def done(self) -> bool:
        """True if every entry of `before` should be marked in `after`."""
        return self.rewrite_done or self.after.meta.extra.get(PHASE) == "after"


def check_pair(pair: Pair, findings: Findings | None = None) -> Findings:
    """Apply the rules of one snapshot to `after`, and those of a pair to both.

    Changes between captures that have more than the rewrite between them (the kernel maps and unmaps)
    are warnings. Raises SnapshotError if the two cannot be compared.
    """
    out = check(pair.after, findings, places=pair.places)
    out.unseen += unseen(pair.before)
    comparison = Comparison(pair.before, pair.after)
    for step in comparison.steps():
        _changes(pair, comparison, step, out)
        _marks(pair, comparison, step, out)
    out.notes += comparison.notes()
    check_stacks(pair.after, out, pair.before if pair.across else None)
    return out


def _changes(pair: Pair, comparison: Comparison, step: Compared, out: Findings) -> None:
    """Find the changes of a step that a rewrite does not make."""
    found = step.beyond
    if not len(found):
        return
    elsewhere, lost = (found.codes & ELSEWHERE) != 0, (found.codes & LOST) != 0
    changed = ~elsewhere & ~lost
    if not pair.across:
        changed &= (found.codes & ATTRIBUTES) != 0
    for rule, which in (
        ("entry-lost", lost),
        ("entry-reverted", found.older),
        ("entry-retargeted", elsewhere & ~found.older),
        ("entry-changed", changed),
    ):
        chosen = found[which]
        room = out.room(rule)
        for change in comparison.changes(step, chosen[:room]):
            out.add(_finding(pair, rule, change))
        out.count(rule, len(chosen[room:]), "error" if pair.across else "warning")


def _finding(pair: Pair, rule: str, change: Change) -> Finding:
    """Make a finding of a change that breaks a rule."""
    assert change.before is not None and change.after is not None
    why = f"{change.before:#x} became {change.after:#x}: "
    early = ""
    if rule == "entry-lost":
        why += f"{counted(change.leaves_before, 'leaf', 'leaves')} with {size_text(change.bytes_before)} gone"
    elif rule == "entry-reverted":
        early = _early(pair, change.after, change.level)
        why += "without bit 11, and another address"
        why += f", which is a table of early boot ({early})" if early else ""
    else:
        why += "it leads elsewhere" if rule == "entry-retargeted" else ", ".join(change.kinds)
    severity: Severity = "error" if pair.across or early else "warning"
    where = change.descriptor_pa_after
    return Finding(rule, severity, change.va_start, change.va_end, change.level, where, change.after, why)


def _early(pair: Pair, raw: int, level: int) -> str:
    """Return the name of the tables of early boot that an entry points into; empty if it does not."""
    if level == LEVEL_LAST or raw & 3 != 3:
        return ""
    table = pair.after.regime.next_table(raw)
    return next((name for low, high, name in pair.early if low <= table < high), "")


def _marks(pair: Pair, comparison: Comparison, step: Compared, out: Findings) -> None:
    """Find entries that lead where they led and have lost bit 11, or should have it by now."""
    after, regime, level = pair.after, comparison.regime, step.level
    row, slot = step.cleared()
    bad = [("mark-lost", (row, slot), "bit 11 was set and is clear again")]
    if pair.done and after.meta.extra.get(PHASE) != "after":  # else check() has looked at all marks
        both = are_valid(step.chunk.raw_a, level, regime) & are_valid(step.chunk.raw_b, level, regime)
        for part in step.chunk.outside:
            both[0, part] = False
        missing = both & (((step.chunk.raw_a | step.chunk.raw_b) & BIT11) == 0)
        row, slot = np.nonzero(missing)
        bad.append(("not-marked", (row, slot), "bit 11 is clear, and the rewrite has ended"))
    pairs = step.chunk.pairs
    for rule, (row, slot), why in bad:
        room = out.room(rule)
        for at, index in zip(row[:room].tolist(), slot[:room].tolist(), strict=True):
            out.add(entry_finding(after, (int(pairs.b[at]), index), rule, why, table_va=int(pairs.va[at])))
        out.count(rule, row[room:].size, "error")


def check_stacks(snapshot: Snapshot, out: Findings, before: Snapshot | None = None) -> None:
    """Require that the stack pointer of every CPU in the kernel translates, and as in `before`."""
    regime = snapshot.regime
    if not regime.upper:
        return
    if snapshot.truncated:
        out.skipped["stack-lost"] = "a stack's tables may be among those that were not captured"
        return
    window = Window.of(snapshot.va_range, regime)
    memory = SnapshotMemory(snapshot)
    for state in snapshot.cpus:
        if (
            not bit(state.sp, 55)
            or not regime.contains(state.sp)
            or not window.low <= state.sp <= window.high
        ):
            continue
        found = walk(memory, state.sp, snapshot.root.pa, regime)
        if found.outcome != "mapped" and regime.contains(state.sp - 1):
            # SP of an empty stack is its top, the first byte of whatever follows: the stack lies below
            below = walk(memory, state.sp - 1, snapshot.root.pa, regime)
            if state.sp % regime.granule == 0 and below.outcome == "mapped":
                continue
        why = "" if found.outcome == "mapped" else f"sp of cpu {state.cpu}, {state.sp:#x}: {found.reason}"
        if not why and before is not None:
            old = walk(SnapshotMemory(before), state.sp, before.root.pa, regime)
            if old.pa is not None and old.pa != found.pa:
                why = f"sp of cpu {state.cpu}, {state.sp:#x}: pa:{found.pa:#x}, and pa:{old.pa:#x} before"
        if why:
            last = found.steps[-1]
            page = VirtAddr(state.sp & ~(regime.granule - 1))
            end = VirtAddr(page + regime.granule - 1)
            out.add(Finding("stack-lost", "error", page, end, last.level, last.descriptor_pa, last.raw, why))
