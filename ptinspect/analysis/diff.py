"""Compare two snapshots descriptor by descriptor: the one descent that diff, picture and check stand on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.classify import KINDS, MAPPING, Compared, Differences, compare, names
from ptinspect.analysis.counts import LevelDiff
from ptinspect.analysis.descent import Descent, Pairs
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import level_name, levels_of
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import SnapshotError
from ptinspect.snapshot.coverage import strangers
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, entry_addresses, parts, take_rows
from ptinspect.tables.kinds import are_leaves, are_tables, next_tables
from ptinspect.tables.window import Window
from ptinspect.text import counted

MAX_CHANGES = 10_000
"""How many changes are listed by default; all are counted."""
UNREADABLE = "unreadable"
"""Kind of a change that is a table which cannot be compared."""


@dataclass(frozen=True)
class Change:
    """Show one descriptor that differs in more than bit 11, or one table that cannot be compared."""

    va_start: VirtAddr
    """First address that it translates; the lowest compared, if its table is reached several times."""
    va_end: VirtAddr
    """Last address that it translates."""
    level: int
    """Level of its table."""
    descriptor_pa: PhysAddr
    """Where it is in the first snapshot; for an unreadable table, where the table is."""
    before: int | None
    """Raw value in the first snapshot; None for an unreadable table."""
    after: int | None
    """Raw value in the second."""
    kinds: tuple[str, ...]
    """Words of compare.KINDS, or `unreadable`."""
    descriptor_pa_after: PhysAddr
    """Where it is in the second snapshot; another address if its table moved."""
    older: bool = False
    """True if it leads elsewhere and its bit 11 is clear: an older value, if the rewrite lies between."""
    leaves_before: int = 0
    """Leaves at or below it in the first snapshot; counted where a mapping was lost, new or moved."""
    bytes_before: int = 0
    """Bytes that those leaves map."""
    leaves_after: int = 0
    """The same in the second snapshot."""
    bytes_after: int = 0
    """The same in the second snapshot."""
    note: str = ""
    """Which snapshot could not read the table."""


@dataclass(frozen=True)
class Diff:
    """Hold the difference of two snapshots."""

    a: str
    b: str
    levels: tuple[LevelDiff, ...]
    """One for each level of the regime, root first."""
    changes: tuple[Change, ...]
    """What is more than bit 11, by level and address; at most as many as were requested."""
    changes_total: int
    """How many there are, listed or not."""
    only_bit11: bool
    """True if all was compared, and nothing but bit 11 of valid descriptors differs."""
    complete: bool
    """False if parts of the trees could not be compared; `notes` give the reason."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know: other roots, a part only, incomplete captures."""

    @property
    def changed(self) -> int:
        """How many descriptors differ in any way."""
        return sum(level.changed for level in self.levels)


class Subtrees:
    """Count leaves and bytes below tables of one snapshot; each table is looked at once."""

    def __init__(self, index: TableIndex, regime: Regime) -> None:
        self._index = index
        self._regime = regime
        count = len(index.tables)
        self._leaves = np.zeros(count, dtype=np.int64)
        self._bytes = np.zeros(count, dtype=np.uint64)
        self._done = np.zeros(count, dtype=np.bool_)

    def below(self, raw: NDArray[np.uint64], level: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Return leaves and bytes that each descriptor of a table at `level` maps, as captured.

        A leaf counts as one; a table that was not captured or not readable counts as nothing; a
        table that is reached twice counts twice, since it maps two ranges.
        """
        leaf = are_leaves(raw, level, self._regime)
        leaves = leaf.astype(np.int64)
        size = leaf.astype(np.uint64) * np.uint64(self._regime.entry_size(level))
        if level == LEVEL_LAST:
            return leaves, size
        at = np.nonzero(are_tables(raw, level))[0]
        rows = self._index.find(level + 1, next_tables(raw[at], self._regime))
        at, rows = at[rows >= 0], rows[rows >= 0]
        self._fill(np.unique(rows), level + 1)
        leaves[at] = self._leaves[rows]
        size[at] = self._bytes[rows]
        return leaves, size

    def _fill(self, rows: NDArray[np.intp], level: int) -> None:
        """Count below tables at `level`, those below them first."""
        todo = rows[~self._done[rows]]
        for at in parts(len(todo), self._index.tables):
            part = todo[at]
            raw = take_rows(self._index.tables.raw, part)
            leaf = np.count_nonzero(are_leaves(raw, level, self._regime), axis=1)
            self._leaves[part] = leaf
            self._bytes[part] = leaf.astype(np.uint64) * np.uint64(self._regime.entry_size(level))
            if level == LEVEL_LAST:
                continue
            links = self._index.links(raw, self._index.tables.va[part], level, self._regime)
            links = links[links.child >= 0]
            self._fill(np.unique(links.child), level + 1)
            np.add.at(self._leaves, part[links.row], self._leaves[links.child])
            np.add.at(self._bytes, part[links.row], self._bytes[links.child])
        self._done[todo] = True


class Comparison:
    """Go down the two trees, table by table, from the root to the last level."""

    def __init__(self, a: Snapshot, b: Snapshot) -> None:
        """Pair the roots. Raises SnapshotError if geometries differ or there is no address in common."""
        self.a, self.b, self.regime = a, b, a.regime
        self.window, self._notes = _common(a, b)
        index = TableIndex(a.tables), TableIndex(b.tables)
        self._descent = Descent(*index, a.regime, self.window)
        self._subtrees = tuple(Subtrees(each, a.regime) for each in index)
        self.levels: list[LevelDiff] = []
        """The counts of the levels that have been compared."""
        self.unreadable: list[tuple[int, Pairs]] = []
        """Level, and the pairs of it that cannot be compared."""

    def steps(self) -> Iterator[Compared]:
        """Compare all levels, some tables at a time; to be iterated once, to its end."""
        pairs = self._descent.root()
        for level in levels_of(self.regime):
            good = self._descent.readable(pairs)
            bad = pairs[~good]
            self.unreadable.append((level, bad))
            pairs = pairs[good] if len(bad) else pairs
            changed, counts = 0, np.zeros(len(KINDS), dtype=np.int64)
            below: list[Pairs] = [pairs[:0]]
            for chunk in self._descent.chunks(pairs, level):
                found = compare(chunk, level, self.regime)
                changed += found.changed
                counts += found.counts
                if level < LEVEL_LAST:
                    below = self._descent.gather([*below, self._descent.children(chunk, level)], level)
                yield found
            name = level_name(level, self.regime)
            self.levels.append(LevelDiff(level, name, len(pairs), changed, *[*counts.tolist(), len(bad)]))
            pairs = self._descent.below(below, level)

    @property
    def complete(self) -> bool:
        """Tell whether all tables that both sides point to were compared, once the steps have ended."""
        missed = (
            self._descent.not_captured or self._descent.too_many or any(len(p) for _, p in self.unreadable)
        )
        return not (missed or self.a.truncated or self.b.truncated)

    def notes(self) -> list[str]:
        """Return what a reader must know of the two, and what was not compared."""
        found = list(self._notes)
        if self._descent.not_captured:
            tables = counted(self._descent.not_captured, "table is", "tables are")
            found.append(f"{tables} not in both snapshots: not compared")
        if self._descent.too_many:
            found.append("too many ways through the tables: not all were compared")
        return found

    def changes(self, step: Compared, which: Differences) -> Iterator[Change]:
        """Make the changes of some of the differences of a step."""
        if not len(which):
            return
        row, slot, level = which.row, which.slot, step.level
        moved = (which.codes & MAPPING) != 0
        last = self.regime.entry_size(level) - 1
        offset = slot.astype(np.uint64) * np.uint64(8)
        pairs = step.chunk.pairs
        columns = (
            entry_addresses(pairs.va[row], slot, level, self.regime),
            self.a.tables.pa[pairs.a[row]] + offset,
            self.b.tables.pa[pairs.b[row]] + offset,
            which.before,
            which.after,
            which.codes,
            which.older,
            *self._subtrees[0].below(np.where(moved, which.before, 0), level),
            *self._subtrees[1].below(np.where(moved, which.after, 0), level),
        )
        for va, pa_a, pa_b, old, now, code, *rest in zip(*(c.tolist() for c in columns), strict=True):
            yield Change(va, VirtAddr(va + last), level, pa_a, old, now, names(code), pa_b, *rest)

    def unreadable_tables(self) -> Iterator[Change]:
        """Make a change of each pair of tables that cannot be compared."""
        for level, bad in self.unreadable:
            size = self.regime.table_span(level)
            for va, row_a, row_b in zip(bad.va.tolist(), bad.a.tolist(), bad.b.tolist(), strict=True):
                sides = ((self.a, row_a), (self.b, row_b))
                where = [s.name for s, row in sides if not s.tables.readable[row]]
                yield Change(
                    VirtAddr(va),
                    VirtAddr(va + size - 1),
                    level,
                    PhysAddr(int(self.a.tables.pa[row_a])),
                    None,
                    None,
                    (UNREADABLE,),
                    PhysAddr(int(self.b.tables.pa[row_b])),
                    note=f"the table could not be read in {' and '.join(where)}",
                )


def _common(a: Snapshot, b: Snapshot) -> tuple[Window, list[str]]:
    """Return the part that both snapshots hold, and what the reader must know about the two."""
    ra, rb = a.regime, b.regime
    for what, this, that in (
        ("granule", ra.granule, rb.granule),
        ("VA size", ra.va_bits, rb.va_bits),
        ("half", "upper" if ra.upper else "lower", "upper" if rb.upper else "lower"),
        ("descriptor format", _format(ra), _format(rb)),
    ):
        if this != that:
            raise SnapshotError(f"{a.name} and {b.name} cannot be compared: {what} {this} and {that}")
    notes = [*strangers(a, b)]
    if ra.name != rb.name:
        notes.append(f"the regimes differ: {ra.name} and {rb.name}")
    for stem, this, that in (
        ("MAIR", ra.mair, rb.mair),
        ("MAIR2", ra.mair2, rb.mair2),
        ("PIR", ra.pir, rb.pir),
        ("PIRE0", ra.pire0, rb.pire0),
    ):
        if this != that:
            notes.append(f"{ra.register(stem)} differs: {this:#x} and {that:#x}")
    for snapshot in (a, b):
        if snapshot.truncated:
            notes.append(f"{snapshot.name} is incomplete: {snapshot.truncated}")
    both = Window.of(a.va_range, ra).common(Window.of(b.va_range, rb))
    if both.low > both.high:
        raise SnapshotError(f"{a.name} and {b.name} have no address in common")
    if not both.whole:
        notes.append(f"only {both.low:#x}-{both.high:#x} is in both and was compared")
    return both, notes


def _format(regime: Regime) -> str:
    return "LPA2" if regime.ds else "LPA" if regime.wide_oa else "48-bit"


def diff(
    a: Snapshot, b: Snapshot, *, max_changes: int = MAX_CHANGES, kinds: Collection[str] = (*KINDS, UNREADABLE)
) -> Diff:
    """Compare the trees of two snapshots, pairing tables by the addresses that they translate.

    Tables are paired by the entries that lead to them, also where the table itself moved. Below a
    descriptor that is lost or new nothing is paired: the change counts what it mapped. Only changes that
    have one of `kinds` are listed; all are counted. Raises SnapshotError if the two have different
    geometries or no address in common.
    """
    worker = Comparison(a, b)
    wanted = np.uint16(sum(1 << i for i, kind in enumerate(KINDS) if kind in kinds))
    changes: list[Change] = []
    total = 0
    for step in worker.steps():
        total += len(step.beyond)
        room = max(max_changes - len(changes), 0)
        if room and len(step.beyond):
            chosen = step.beyond[(step.beyond.codes & wanted) != 0]
            changes += worker.changes(step, chosen[:room])
    blind = islice(worker.unreadable_tables(), max_changes if UNREADABLE in kinds else 0)
    total += sum(len(pairs) for _, pairs in worker.unreadable)
    changes = sorted([*changes, *blind], key=lambda change: (change.level, change.va_start))[:max_changes]
    notes = worker.notes()
    if total > len(changes) and set(kinds) >= {*KINDS}:
        notes.append(f"{len(changes)} of {total} changes are listed")
    return Diff(
        a=a.name,
        b=b.name,
        levels=tuple(worker.levels),
        changes=tuple(changes),
        changes_total=total,
        only_bit11=worker.complete and total == 0,
        complete=worker.complete,
        notes=tuple(notes),
    )
