"""Rules that the tables of a healthy kernel keep, over one snapshot or over one before and one after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.aliases import Places, check_mappings
from ptinspect.analysis.classify import ATTRIBUTES, ELSEWHERE, LOST, NG_CLEARED, UNMARKED, Compared
from ptinspect.analysis.contiguous import DBM, READ_ONLY, groups_of
from ptinspect.analysis.diff import Change, Comparison
from ptinspect.analysis.findings import Finding, Findings, Severity
from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, bit
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.memory.ranges import Ranges
from ptinspect.snapshot.coverage import unseen
from ptinspect.snapshot.fact_names import PHASE
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, entry_addresses, place_of
from ptinspect.tables.kinds import (
    BIT11,
    K_RESERVED,
    address_bits,
    are_leaves,
    are_tables,
    are_valid,
    kinds,
    memory_types,
    next_tables,
    output_addresses,
)
from ptinspect.tables.walk import walk
from ptinspect.tables.window import Window

ACCESS_FLAG = 1 << 10
SHARED_BY_DESIGN = 4
"""References from which on a table that neighbours share is taken for a known one (KASAN's zero shadow)."""

Addresses = NDArray[np.uint64]
Entries = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Entries by the rows of their tables and their slots."""
Evidence = Callable[[int], str]
"""Gives the reason why a raw entry breaks a rule."""
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
    checker = _Checker(snapshot, out)
    checker.run()
    check_mappings(snapshot, places or Places(), out)
    if rewrite_done or snapshot.meta.extra.get(PHASE) == "after":
        checker.marks()
    return out


class _Checker:
    """Go through the levels of one snapshot."""

    def __init__(self, snapshot: Snapshot, out: Findings) -> None:
        self.snapshot, self.regime, self.out = snapshot, snapshot.regime, out
        tables = snapshot.tables
        self.index = TableIndex(tables)
        order = np.lexsort((tables.level, tables.pa))
        again = np.zeros(len(tables), dtype=np.bool_)
        again[order[1:]] = tables.pa[order[1:]] == tables.pa[order[:-1]]
        self.again = again
        """Rows whose table is also one of a level above: their entries were judged there."""

    def rows(self, level: int) -> NDArray[np.intp]:
        """Return the rows of a level whose entries count."""
        rows = self.index.readable(level)
        return rows[~self.again[rows]]

    def run(self) -> None:
        """Apply the rules level by level."""
        self._unreadable()
        for level in levels_of(self.regime):
            rows = self.rows(level)
            raw = self.snapshot.tables.raw[rows]
            self._report(
                "reserved-encoding", rows, kinds(raw, level, self.regime) == K_RESERVED,
                lambda value: f"bits [1:0] are {value & 3:02b}, which this level reserves",
            )  # fmt: skip
            self._outside(level, rows, raw)
            self._references(level, rows, raw)
            self._contiguous(level, rows, raw)

    def marks(self) -> None:
        """Require bit 11 in all valid entries."""
        for level in levels_of(self.regime):
            rows = self.rows(level)
            raw = self.snapshot.tables.raw[rows]
            bad = are_valid(raw, level, self.regime) & ((raw & BIT11) == 0)
            self._report("not-marked", rows, bad, lambda _: "bit 11 is clear after the rewrite")

    def _report(self, rule: str, rows: NDArray[np.intp], bad: NDArray[np.bool_], evidence: Evidence) -> None:
        """Make findings of the marked entries of these rows, as many as are listed."""
        row, slot = np.nonzero(bad)
        room = self.out.room(rule)
        for at in zip(rows[row[:room]].tolist(), slot[:room].tolist(), strict=True):
            self.out.add(_entry(self.snapshot, at, rule, evidence(int(self.snapshot.tables.raw[at]))))
        self.out.count(rule, row[room:].size, "error")

    def _unreadable(self) -> None:
        tables = self.snapshot.tables
        for row in np.flatnonzero(~tables.readable).tolist():
            level, va, pa = (
                int(tables.level[row]),
                VirtAddr(int(tables.va[row])),
                PhysAddr(int(tables.pa[row])),
            )
            end = VirtAddr(va + self.regime.table_span(level) - 1)
            why = f"the table at pa:{pa:#x} cannot be read"
            self.out.add(Finding("unreadable-table", "error", va, end, level, pa, None, why))

    def _outside(self, level: int, rows: NDArray[np.intp], raw: NDArray[np.uint64]) -> None:
        if not self.snapshot.ram:
            return
        ram, regime = Ranges.of_blocks(self.snapshot.ram), self.regime
        table = are_tables(raw, level)
        bad = table & ~ram.contains_each(next_tables(raw, regime), regime.granule)
        self._report(
            "outside-ram", rows, bad,
            lambda value: f"its next table, pa:{regime.next_table(value):#x}, is not in RAM",
        )  # fmt: skip
        normal = are_leaves(raw, level, regime) & (memory_types(raw, regime) & 0xF0 != 0)
        bad = normal & ~ram.contains_each(output_addresses(raw, level, regime), regime.entry_size(level))
        self._report(
            "outside-ram", rows, bad,
            lambda value: f"normal memory at pa:{regime.output_address(value, level):#x}: not RAM",
        )  # fmt: skip

    def _references(self, level: int, rows: NDArray[np.intp], raw: NDArray[np.uint64]) -> None:
        """Judge which tables the entries of a level point to."""
        tables = self.snapshot.tables
        row, slot = np.nonzero(are_tables(raw, level))
        if not row.size:
            return
        at = rows[row], slot
        target = next_tables(raw[row, slot], self.regime)
        back = np.isin(target, tables.pa[tables.level <= level])
        self._upwards(level, at, target, back)
        self._shared(level, (at[0][~back], at[1][~back]), target[~back])

    def _upwards(self, level: int, at: Entries, target: Addresses, back: NDArray[np.bool_]) -> None:
        """Make findings of the entries that point to a table of a level above, or of their own."""
        loops = back & self._are_ancestors(target, at[0], level)
        shared = back & ~loops
        listed = [
            (i, rule)
            for rule, bad in (("table-loop", loops), ("table-shared", shared))
            for i in np.flatnonzero(bad)[: self.out.room(rule)].tolist()
        ]
        for i, rule in sorted(listed):
            why = f"points to pa:{int(target[i]):#x}, which is a table of a level above"
            self.out.add(_entry(self.snapshot, (int(at[0][i]), int(at[1][i])), rule, why))
        for rule, bad in (("table-loop", loops), ("table-shared", shared)):
            unlisted = np.count_nonzero(bad) - sum(name == rule for _, name in listed)
            self.out.count(rule, int(unlisted), "error")

    def _shared(self, level: int, at: Entries, target: Addresses) -> None:
        """Make findings of the tables that several entries of a level point to."""
        rule, size = "table-shared", np.uint64(self.regime.entry_size(level))
        values, inverse, counts = np.unique(target, return_inverse=True, return_counts=True)
        begins = np.cumsum(counts) - counts
        va = entry_addresses(self.snapshot.tables.va[at[0]], at[1], level, self.regime)
        order = np.lexsort((va, inverse))
        near = (np.diff(va[order]) == size) & (np.diff(inverse[order]) == 0)
        next_to = np.bincount(inverse[order][1:][near], minlength=values.size)
        known = (counts >= SHARED_BY_DESIGN) & (2 * next_to >= counts)
        by_design = np.isin(values, np.array(sorted(self.out.shared), dtype=np.uint64))
        several = np.flatnonzero((counts > 1) & ~by_design)
        room = self.out.room(rule)
        as_found = np.argsort(inverse, kind="stable")
        for number in several[:room].tolist():
            second = int(as_found[begins[number] + 1])
            count, table, lowest = int(counts[number]), int(values[number]), int(va[order[begins[number]]])
            why = f"{count} entries point to the table at pa:{table:#x}, the first for {lowest:#x}"
            where = int(at[0][second]), int(at[1][second])
            severity: Severity = "info" if known[number] else "error"
            self.out.add(_entry(self.snapshot, where, rule, why, severity=severity))
        unlisted = known[several[room:]]
        self.out.count(rule, int(np.count_nonzero(unlisted)), "info")
        self.out.count(rule, int(np.count_nonzero(~unlisted)), "error")

    def _are_ancestors(self, target: Addresses, rows: NDArray[np.intp], level: int) -> NDArray[np.bool_]:
        """Tell of each target whether it is a table that translates the addresses of a row's table too."""
        va, found = self.snapshot.tables.va, np.zeros(target.size, dtype=np.bool_)
        for above in levels_of(self.regime):
            if above <= level:
                other, span = self.index.find(above, target), np.uint64(self.regime.table_span(above))
                found |= (other >= 0) & (va[other] // span == va[rows] // span)
        return found

    def _contiguous(self, level: int, rows: NDArray[np.intp], raw: NDArray[np.uint64]) -> None:
        regime = self.regime
        row, first, words = groups_of(raw, level, regime)
        group = words.shape[1]
        ignored = address_bits(level, regime) | ACCESS_FLAG
        if self.snapshot.meta.extra.get(PHASE) == "during":
            ignored |= int(BIT11)
        kept = np.uint64(~ignored & MASK64)
        if regime.hd:  # the CPU makes one entry of a group dirty by clearing AP[2] or nDirty (Arm ARM D8.7.1)
            words = np.where(regime.pie | (words & DBM != 0), words & ~READ_ONLY, words)
        mixed = ((words & kept) != (words[:, :1] & kept)).any(axis=1)
        address = output_addresses(words, level, regime)
        size = np.uint64(regime.entry_size(level))
        steps = np.arange(group, dtype=np.uint64) * size
        loose = (address != address[:, :1] + steps).any(axis=1)
        loose |= address[:, 0] % (size * np.uint64(group)) != 0
        for i in np.flatnonzero(mixed | loose).tolist():
            unlike, apart = (
                "differ in attributes or are not all there",
                "do not follow each other or are not aligned",
            )
            why = f"the {group} entries of its contiguous group {unlike if mixed[i] else apart}"
            self.out.add(_entry(self.snapshot, (int(rows[row[i]]), int(first[i])), "contiguous", why))


def _entry(
    snapshot: Snapshot,
    at: tuple[int, int],
    rule: str,
    why: str,
    *,
    severity: Severity = "error",
    table_va: int | None = None,
) -> Finding:
    """Make a finding about one entry, given by its row and slot; `table_va` if its table is reached there."""
    tables, regime = snapshot.tables, snapshot.regime
    row, slot = at
    level = int(tables.level[row])
    va, where = place_of(tables, row, slot, regime)
    if table_va is not None:
        va = VirtAddr(va - int(tables.va[row]) + table_va)
    end = VirtAddr(va + regime.entry_size(level) - 1)
    return Finding(rule, severity, va, end, level, where, int(tables.raw[row, slot]), why)


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
        why += f"{change.leaves_before} leaves with {change.bytes_before} bytes are gone"
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
    clear = (step.chunk.raw_b & BIT11) == 0
    codes = step.codes()
    cleared = (codes & (UNMARKED | NG_CLEARED)) != 0
    bad = [("mark-lost", cleared & ((codes & ELSEWHERE) == 0), "bit 11 was set and is clear again")]
    if pair.done and after.meta.extra.get(PHASE) != "after":  # else check() has looked at all marks
        both = are_valid(step.chunk.raw_a, level, regime) & are_valid(step.chunk.raw_b, level, regime)
        for part in step.chunk.outside:
            both[0, part] = False
        missing = both & clear & ((step.chunk.raw_a & BIT11) == 0)
        bad.append(("not-marked", missing, "bit 11 is clear, and the rewrite has ended"))
    pairs = step.chunk.pairs
    for rule, where, why in bad:
        row, slot = np.nonzero(where)
        room = out.room(rule)
        for at, index in zip(row[:room].tolist(), slot[:room].tolist(), strict=True):
            out.add(_entry(after, (int(pairs.b[at]), index), rule, why, table_va=int(pairs.va[at])))
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
