"""Rules that single entries of a snapshot keep, and tables by the entries that point to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.contiguous import DBM, READ_ONLY, group_size, groups_of
from ptinspect.analysis.findings import Finding, Findings, Severity
from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.levels import levels_of
from ptinspect.dataclass import dataclass
from ptinspect.memory.ranges import Ranges
from ptinspect.snapshot.fact_names import PHASE
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, entry_addresses, parts, place_of, take_rows
from ptinspect.tables.kinds import (
    BIT11,
    CONTIGUOUS,
    Flags,
    address_bits,
    are_leaves,
    are_reserved,
    are_tables,
    are_valid,
    are_whole,
    memory_types,
    next_tables,
    output_addresses,
)

ACCESS_FLAG = 1 << 10
SHARED_BY_DESIGN = 4
"""References from which on a table that neighbours share is taken for a known one (KASAN's zero shadow)."""

PART_WORDS = 1 << 15
"""Descriptors that are judged in one go: what is found out about them stays in the cache."""

Addresses = NDArray[np.uint64]
Words = NDArray[np.uint64]
Rows = NDArray[np.intp]
Entries = tuple[Rows, Rows]
"""Entries by the rows of their tables and their slots."""
Evidence = Callable[[tuple[int, int]], str]
"""Gives the reason why an entry, given by row and slot, breaks a rule."""


@dataclass(frozen=True)
class _EntryRule:
    """A rule that each entry of a level keeps or breaks by itself."""

    name: str
    broken: Callable[[Words], Flags]
    """Tells which entries of some tables break it."""
    evidence: Evidence


class _Broken:
    """Collect the entries of a level that break a rule: the first ones, and how many there are."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.first: list[tuple[int, int]] = []
        """By row and slot."""
        self.count = 0

    def take(self, row: Rows, slot: Rows) -> None:
        """Take entries that follow the ones before, by row and slot."""
        room = slice(max(self._limit - self.count, 0))
        self.first += zip(row[room].tolist(), slot[room].tolist(), strict=True)
        self.count += row.shape[0]


class EntryRules:
    """Go through the levels of one snapshot, some tables at a time."""

    def __init__(self, snapshot: Snapshot, out: Findings) -> None:
        self.snapshot, self.regime, self.out = snapshot, snapshot.regime, out
        tables = snapshot.tables
        self.index = TableIndex(tables)
        self.ram = Ranges.of_blocks(snapshot.ram)
        order = np.lexsort((tables.level, tables.pa))
        again = np.zeros(len(tables), dtype=np.bool_)
        again[order[1:]] = tables.pa[order[1:]] == tables.pa[order[:-1]]
        self.again = again
        """Rows whose table is also one of a level above: their entries were judged there."""

    def rows(self, level: int) -> Rows:
        """Return the rows of a level whose entries count."""
        rows = self.index.readable(level)
        return rows[~self.again[rows]]

    def run(self) -> None:
        """Apply the rules level by level."""
        self._unreadable()
        for level in levels_of(self.regime):
            self._level(level)

    def _level(self, level: int) -> None:
        """Apply the rules to the entries of a level."""
        rules = [self._reserved(level), *(self._outside(level) if self.snapshot.ram else ())]
        found = [_Broken(self.out.limit) for _ in rules]
        groups = _Broken(self.out.limit)
        links: list[Entries] = []
        for rows, raw in self._parts(level, self._sound):
            for rule, broken in zip(rules, found, strict=True):
                row, slot = np.nonzero(rule.broken(raw))
                broken.take(rows[row], slot)
            row, slot = self._uneven_groups(level, raw)
            groups.take(rows[row], slot)
            row, slot = np.nonzero(are_tables(raw, level))
            links.append((rows[row], slot))
        for rule, broken in zip(rules, found, strict=True):
            self._report(rule.name, broken, rule.evidence)
        if links:
            at = np.concatenate([row for row, _ in links]), np.concatenate([slot for _, slot in links])
            self._references(level, at)
        self._report("contiguous", groups, lambda at: self._uneven(level, at))

    def marks(self) -> None:
        """Require bit 11 in all valid entries."""
        for level in levels_of(self.regime):
            found = _Broken(self.out.limit)
            for rows, raw in self._parts(level, lambda first, _: (first & BIT11) != 0):
                row, slot = np.nonzero(are_valid(raw, level, self.regime) & ((raw & BIT11) == 0))
                found.take(rows[row], slot)
            self._report("not-marked", found, lambda _: "bit 11 is clear after the rewrite")

    def _parts(self, level: int, sound: Callable[[Words, int], Flags]) -> Iterator[tuple[Rows, Words]]:
        """Yield rows of a level and their descriptors, but not those of which the first shows all are sound.

        `sound` tells that of the first descriptors of tables that lead to memory in one piece.
        """
        every = self.rows(level)
        for part in parts(every.shape[0], self.snapshot.tables, PART_WORDS):
            rows = every[part]
            raw = take_rows(self.snapshot.tables.raw, rows)
            whole = are_whole(raw, level, self.regime)
            whole[whole] = sound(raw[whole, 0], level)
            if not whole.all():
                yield (rows[~whole], raw[~whole]) if whole.any() else (rows, raw)

    def _sound(self, first: Words, level: int) -> Flags:
        """Tell which tables in one piece break no rule, by their first descriptors.

        They lie in RAM or are Device memory; contiguous groups are uniform, and aligned if the first is.
        """
        regime = self.regime
        address = output_addresses(first, level, regime)
        inside = self.ram.contains_each(address, regime.table_span(level)) if self.snapshot.ram else True
        size = regime.entry_size(level) * group_size(level, regime)
        aligned = ((first & CONTIGUOUS) == 0) | (address % np.uint64(size) == 0)
        found: Flags = aligned & (inside | (memory_types(first, regime) & 0xF0 == 0))
        return found

    def _word(self, at: tuple[int, int]) -> int:
        return int(self.snapshot.tables.raw[at])

    def _report(self, rule: str, found: _Broken, evidence: Evidence) -> None:
        """Make findings of entries that break a rule, as many as are listed."""
        listed = found.first[: self.out.room(rule)]
        for at in listed:
            self.out.add(entry_finding(self.snapshot, at, rule, evidence(at)))
        self.out.count(rule, found.count - len(listed), "error")

    def _unreadable(self) -> None:
        tables, rule = self.snapshot.tables, "unreadable-table"
        rows = np.flatnonzero(~tables.readable)
        room = self.out.room(rule)
        for row in rows[:room].tolist():
            level, va, pa = (
                int(tables.level[row]),
                VirtAddr(int(tables.va[row])),
                PhysAddr(int(tables.pa[row])),
            )
            end = VirtAddr(va + self.regime.table_span(level) - 1)
            why = f"the table at pa:{pa:#x} cannot be read"
            self.out.add(Finding(rule, "error", va, end, level, pa, None, why))
        self.out.count(rule, rows[room:].size, "error")

    def _reserved(self, level: int) -> _EntryRule:
        return _EntryRule(
            "reserved-encoding",
            lambda raw: are_reserved(raw, level, self.regime),
            lambda at: f"bits [1:0] are {self._word(at) & 3:02b}, which this level reserves",
        )

    def _outside(self, level: int) -> tuple[_EntryRule, _EntryRule]:
        regime, ram = self.regime, self.ram

        def tables(raw: Words) -> Flags:
            return are_tables(raw, level) & ~ram.contains_each(next_tables(raw, regime), regime.granule)

        def leaves(raw: Words) -> Flags:
            inside = ram.contains_each(output_addresses(raw, level, regime), regime.entry_size(level))
            found = are_leaves(raw, level, regime) & ~inside
            found[found] = memory_types(raw[found], regime) & 0xF0 != 0
            return found

        def table(at: tuple[int, int]) -> str:
            return f"its next table, pa:{regime.next_table(self._word(at)):#x}, is not in RAM"

        def leaf(at: tuple[int, int]) -> str:
            return f"normal memory at pa:{regime.output_address(self._word(at), level):#x}: not RAM"

        return _EntryRule("outside-ram", tables, table), _EntryRule("outside-ram", leaves, leaf)

    def _references(self, level: int, at: Entries) -> None:
        """Judge which tables the entries of a level point to; `at`: those that do point to one."""
        if not at[0].size:
            return
        tables = self.snapshot.tables
        target = next_tables(tables.raw[at], self.regime)
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
            self.out.add(entry_finding(self.snapshot, (int(at[0][i]), int(at[1][i])), rule, why))
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
            self.out.add(entry_finding(self.snapshot, where, rule, why, severity=severity))
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

    def _uneven_groups(self, level: int, raw: Words) -> Entries:
        """Return row and slot of the first entry of each contiguous group that breaks the rule."""
        row, first, words = groups_of(raw, level, self.regime)
        mixed, loose = self._mixed_and_loose(level, words)
        return row[mixed | loose], first[mixed | loose]

    def _mixed_and_loose(self, level: int, words: Words) -> tuple[Flags, Flags]:
        """Tell which groups differ in attributes, and which do not follow each other or are not aligned."""
        regime = self.regime
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
        return mixed, loose

    def _uneven(self, level: int, at: tuple[int, int]) -> str:
        """Tell why the contiguous group that begins at an entry breaks the rule."""
        row, slot = at
        group = group_size(level, self.regime)
        mixed, _ = self._mixed_and_loose(level, self.snapshot.tables.raw[row : row + 1, slot : slot + group])
        unlike = "differ in attributes or are not all there"
        apart = "do not follow each other or are not aligned"
        return f"the {group} entries of its contiguous group {unlike if mixed[0] else apart}"


def entry_finding(
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
