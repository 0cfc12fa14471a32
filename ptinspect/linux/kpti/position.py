"""How far the rewrite is: from the registers of the walk, and from the marks in the tables."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.descriptor import BIT11
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState, ttbr_base
from ptinspect.linux.kpti.code import Algorithm, KptiCode, LevelCode
from ptinspect.memory.source import PhysicalMemory
from ptinspect.paging.walk import walk
from ptinspect.snapshot.classify import K_BLOCK, K_PAGE, K_TABLE, kinds
from ptinspect.snapshot.model import Snapshot

Phase = Literal["before", "walking", "done"]
_PLACE = 0xFFFF
"""Physical and link-time addresses of code agree in these bits: images lie at multiples of 64 KiB."""


@dataclass(frozen=True)
class Frontier:
    """Say where the rewrite stands: at the first descriptor that is not done."""

    va: VirtAddr
    """First virtual address that the descriptor translates."""
    level: int
    """Level of the descriptor."""
    descriptor_pa: PhysAddr | None
    """Address of the descriptor; None if only registers told."""
    source: str
    """`tables` or `walk registers`."""


@dataclass(frozen=True)
class Cursor:
    """Say where the walk stands in the table of one level."""

    level: int
    """The level."""
    index: int
    """The first slot that is not done; the number of slots when the table is done."""
    entries: int
    """The number of slots."""
    descriptor: int
    """The descriptor that was loaded last, as the register holds it."""
    table: int = 0
    """Address of the table as the walk sees it: physical (old), or in the temporary window (new)."""
    written: bool = False
    """True if the descriptor in slot `index` is stored already: the walk is in its subtree, or about to."""


@dataclass(frozen=True)
class Position:
    """Say where the boot CPU stands in the rewrite."""

    phase: Phase
    """Whether the walk through the tables has begun and ended."""
    cursors: tuple[Cursor, ...]
    """The tables that are open, the root first; empty unless walking."""
    frontier: Frontier | None
    """The first descriptor that is not done; None unless walking."""
    subtree_done: bool = False
    """True if all below that descriptor is done, and only it is left (old algorithm)."""


def cursors(state: CpuState, code: KptiCode, regime: Regime) -> tuple[Cursor, ...]:
    """Read from program counter and registers which tables are open and where; the root first.

    Empty before the walk begins and after it ends. Where registers are left from an earlier table,
    the program counter tells: a level is open from its first load to its closing branch, and while a
    deeper one is.
    """
    offset = (state.pc - code.entry_va) & _PLACE
    levels = code.levels_of(regime)
    depth = _depth(levels, offset)
    pre_order = code.algorithm == "temp-pgd-pre-order"
    return tuple(
        _cursor(state, regime, level, offset if i == depth else None, pre_order=pre_order)
        for i, level in enumerate(levels[: depth + 1])
    )


def _depth(levels: tuple[LevelCode, ...], offset: int) -> int:
    """Return the index of the deepest open level; -1 if none is."""
    for i, level in enumerate(levels):
        behind = level.closing if level.back is None else level.closing + 4
        if level.begin <= offset <= behind:
            return i
        if i and levels[i - 1].descend is not None and (levels[i - 1].descend or 0) <= offset < level.begin:
            return i - 1
    return -1


def _cursor(
    state: CpuState, regime: Regime, code: LevelCode, offset: int | None, *, pre_order: bool
) -> Cursor:
    """Read the cursor of one level; `offset` is None for a level whose subtree is being walked."""
    entries = regime.entries(code.level)
    end = state.x[code.end]
    left = ((end - state.x[code.cursor]) & MASK64) // 8
    index = entries - min(left, entries)
    early = code.advance == code.load
    inside = offset is None or not code.begin <= offset <= code.closing + 4
    if inside:
        index, written = index - early, pre_order
    else:
        assert offset is not None
        current = index - (early and code.load < offset <= code.closing)
        handled = code.skip <= offset <= (code.closing if early else code.advance)
        index = current + handled
        written = not handled and code.store is not None and code.store < offset < code.skip
    index = max(index, 0)
    return Cursor(code.level, index, entries, state.x[code.register], (end - 8 * entries) & MASK64, written)


def frontier_of(found: tuple[Cursor, ...], regime: Regime) -> int | None:
    """Return the virtual address of the first entry that is not done; None if no table is open."""
    if not found:
        return None
    return (regime.va_min + sum(c.index << regime.shift(c.level) for c in found)) & MASK64


def position(state: CpuState, code: KptiCode, regime: Regime, memory: PhysicalMemory) -> Position:
    """Say where the boot CPU stands in the rewrite. Its program counter must lie in the function.

    The new algorithm's cursors are addresses in a window of the temporary pgd (x2); they are
    translated through it. Raises TargetError if the link to the guest failed.
    """
    found = cursors(state, code, regime)
    if not found:
        offset = (state.pc - code.entry_va) & _PLACE
        behind = code.levels[0].skip <= offset <= code.points["return"]
        return Position("done" if behind else "before", (), None)
    offset = (state.pc - code.entry_va) & _PLACE
    open_ = list(found)
    deepest = code.levels_of(regime)[len(open_) - 1]
    subtree_done = deepest.mark is not None and deepest.mark <= offset <= (deepest.store or 0)
    while len(open_) > 1 and open_[-1].index >= open_[-1].entries:
        open_.pop()
        subtree_done = True
        last = open_[-1]
        if last.written:  # marked before its subtree, which has just ended
            open_[-1] = Cursor(last.level, last.index + 1, last.entries, last.descriptor, last.table)
    last = open_[-1]
    if last.index >= last.entries:
        return Position("done", found, None)
    va = frontier_of(tuple(open_), regime)
    assert va is not None
    pa = _descriptor_pa(state, code, regime, memory, last)
    old = code.algorithm == "mmu-off-post-order"
    frontier = Frontier(VirtAddr(va), last.level, pa, "walk registers")
    return Position("walking", found, frontier, subtree_done and old)


def _descriptor_pa(
    state: CpuState, code: KptiCode, regime: Regime, memory: PhysicalMemory, last: Cursor
) -> PhysAddr | None:
    address = last.table + 8 * last.index
    if code.algorithm == "mmu-off-post-order":
        return PhysAddr(address)
    if not regime.contains(address):
        return None
    return walk(memory, address, ttbr_base(state.x[2], pa52=regime.wide_oa), regime).pa


def restores_tables(code: KptiCode) -> bool:
    """Tell whether descriptors of tables are written with the value that they had.

    So does the debug patch that toggles bit 11 twice; so does code in which tables come to the store by a
    way around the instruction that sets the bit, back from a subtree or before they go into it.
    """
    return code.toggles or any(
        above.bypass or (above.mark is not None and above.mark < (below.back or 0) <= (above.store or 0))
        for above, below in pairwise(code.levels)
    )


def leaves_marks(code: KptiCode) -> bool:
    """Tell whether tables bear bit 11 afterwards, so that registers and tables can be compared."""
    return code.marks_tables and not restores_tables(code)


# -- marks in the tables ------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelProgress:
    """Count the entries of one level."""

    level: int
    """The level."""
    valid: int
    """Valid descriptors: tables, blocks and pages."""
    marked: int
    """Those with bit 11."""


@dataclass(frozen=True)
class Progress:
    """Say how far the marks in the tables go."""

    levels: tuple[LevelProgress, ...]
    """Counts by level, the root first."""
    frontier: Frontier | None
    """The first unmarked descriptor in the order of the walk; None if all are marked."""
    gaps: int
    """Unmarked descriptors that the walk has passed, as the last marked table tells: 0 if all is well."""

    @property
    def valid(self) -> int:
        """Valid descriptors of all levels."""
        return sum(level.valid for level in self.levels)

    @property
    def marked(self) -> int:
        """Those of them with bit 11."""
        return sum(level.marked for level in self.levels)


def progress(snapshot: Snapshot, algorithm: Algorithm) -> Progress:
    """Count marks and find the first descriptor without one, in the order in which the walk visits them.

    Both walks go through addresses in ascending order; the old one visits a table's descriptor
    after the subtree, the new one before it.
    """
    tables, regime = snapshot.tables, snapshot.regime
    counts: list[LevelProgress] = []
    keys: list[tuple[int, Frontier]] = []
    open_keys: list[NDArray[np.uint64]] = []
    last_marked = -1
    for level in sorted({int(v) for v in np.unique(tables.level)}):
        rows = np.flatnonzero(tables.level == level)
        valid, marked, tabled = marks_of(tables.raw[rows], level, regime)
        counts.append(LevelProgress(level, int(np.count_nonzero(valid)), int(np.count_nonzero(marked))))
        key = order_keys(tables.va[rows], valid.shape[1], level, regime, algorithm)
        if tabled.any():
            last_marked = max(last_marked, int(key[tabled].max()))
        unmarked = valid & ~marked
        if unmarked.any():
            row, slot = (
                int(v) for v in np.unravel_index(int(np.where(unmarked, key, MASK64).argmin()), key.shape)
            )
            va = (int(tables.va[rows[row]]) + (slot << regime.shift(level))) & MASK64
            pa = PhysAddr(int(tables.pa[rows[row]]) + 8 * slot)
            keys.append((int(key[row, slot]), Frontier(VirtAddr(va), level, pa, "tables")))
            open_keys.append(key[unmarked])
    gaps = sum(int(np.count_nonzero(k < np.uint64(max(last_marked, 0)))) for k in open_keys)
    first = min(keys, key=lambda item: item[0])[1] if keys else None
    return Progress(tuple(counts), first, gaps)


def order_keys(
    va: NDArray[np.uint64], slots: int, level: int, regime: Regime, algorithm: Algorithm
) -> NDArray[np.uint64]:
    """Return for every entry a number that grows in the order of the walk; shape (rows, slots)."""
    size = regime.entry_size(level)
    start = (va - np.uint64(regime.va_min))[:, None] + np.arange(slots, dtype=np.uint64) * np.uint64(size)
    if algorithm == "mmu-off-post-order":
        return (start + np.uint64(size)) * np.uint64(16) - np.uint64(level + 1)
    return start * np.uint64(16) + np.uint64(level + 1)


def agrees(snapshot: Snapshot, algorithm: Algorithm, where: Position) -> list[str]:
    """Compare a position read from registers with the marks; return what contradicts it.

    Every valid descriptor before it must be marked, no table behind it may be. The descriptor at the
    frontier itself may be either: it is being written. Empty if nothing contradicts, or unless the
    position is one in the middle of the walk.
    """
    if where.frontier is None:
        return []
    regime, tables, here = snapshot.regime, snapshot.tables, where.frontier
    at = np.array([here.va], dtype=np.uint64)
    last = int(order_keys(at, 1, here.level, regime, algorithm)[0, 0])
    first = last
    if algorithm == "mmu-off-post-order" and not where.subtree_done:
        first -= (regime.entry_size(here.level)) * 16 - (here.level + 1)
    missed = early = 0
    for level in sorted({int(v) for v in np.unique(tables.level)}):
        rows = np.flatnonzero(tables.level == level)
        valid, marked, tabled = marks_of(tables.raw[rows], level, regime)
        key = order_keys(tables.va[rows], valid.shape[1], level, regime, algorithm)
        missed += int(np.count_nonzero(valid & ~marked & (key < np.uint64(max(first, 0)))))
        early += int(np.count_nonzero(tabled & (key > np.uint64(last))))
    found = []
    if missed:
        found.append(f"{missed} descriptors that the walk has passed are not marked")
    if early:
        found.append(f"{early} tables that the walk has not reached are marked")
    return found


def marks_of(
    raw: NDArray[np.uint64], level: int, regime: Regime
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which entries are valid descriptors, which of those have bit 11, which of these are tables."""
    kind = kinds(raw, level, regime)
    valid = (kind == K_TABLE) | (kind == K_BLOCK) | (kind == K_PAGE)
    marked = valid & ((raw & np.uint64(BIT11)) != 0)
    return valid, marked, marked & (kind == K_TABLE)
