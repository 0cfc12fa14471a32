"""Where the boot CPU stands in the rewrite, by the registers of the walk."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState, ttbr_base
from ptinspect.dataclass import dataclass
from ptinspect.linux.kpti.code import POST_ORDER, PRE_ORDER, Algorithm, KptiCode, LevelCode
from ptinspect.linux.kpti.marks import Frontier, key_of, marks
from ptinspect.memory.source import PhysicalMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.walk import walk
from ptinspect.text import counted

Phase = Literal["before", "walking", "done"]
_PLACE = 0xFFFF
"""Physical and link-time addresses of code agree in these bits: images lie at multiples of 64 KiB."""


@dataclass(frozen=True)
class Cursor:
    """Where the walk stands in the table of one level."""

    level: int
    index: int
    """The first slot that is not done; the number of slots when the table is done."""
    entries: int
    descriptor: int
    """The descriptor that was loaded last, as the register holds it."""
    table: int = 0
    """Address of the table as the walk sees it: physical (old), or in the temporary window (new)."""
    written: bool = False
    """True if the descriptor in slot `index` is stored already: the walk is in its subtree, or about to."""


@dataclass(frozen=True)
class Position:
    """Where the boot CPU stands in the rewrite."""

    phase: Phase
    """Whether the walk through the tables has begun and ended."""
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
    pre_order = code.algorithm == PRE_ORDER
    return tuple(
        _cursor(state, regime, level, offset if i == depth else None, pre_order=pre_order)
        for i, level in enumerate(levels[: depth + 1])
    )


def _depth(levels: tuple[LevelCode, ...], offset: int) -> int:
    """Return the index of the deepest open level; -1 if none is."""
    for i, level in enumerate(levels):
        last = level.closing if level.back is None else level.closing + 4
        if level.begin <= offset <= last:
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
    """Return where the boot CPU stands in the rewrite. Its program counter must lie in the function.

    The new algorithm's cursors are addresses in a window of the temporary pgd (x2); they are
    translated through it. Raises TargetError if the link to the guest failed.
    """
    open_, offset = list(cursors(state, code, regime)), (state.pc - code.entry_va) & _PLACE
    if not open_:
        walked = code.levels[0].skip <= offset <= code.points["return"]
        return Position("done" if walked else "before", None)
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
        return Position("done", None)
    va = frontier_of(tuple(open_), regime)
    assert va is not None
    pa = _descriptor_pa(state, code, regime, memory, last)
    old = code.algorithm == POST_ORDER
    frontier = Frontier(VirtAddr(va), last.level, pa, "walk registers")
    return Position("walking", frontier, subtree_done and old)


def _descriptor_pa(
    state: CpuState, code: KptiCode, regime: Regime, memory: PhysicalMemory, last: Cursor
) -> PhysAddr | None:
    address = last.table + 8 * last.index
    if code.algorithm == POST_ORDER:
        return PhysAddr(address)
    if not regime.contains(address):
        return None
    return walk(memory, address, ttbr_base(state.x[2], pa52=regime.wide_oa), regime).pa


def agrees(snapshot: Snapshot, algorithm: Algorithm, where: Position, *, tables: bool = True) -> list[str]:
    """Compare a position read from registers with the marks; return what contradicts it.

    Every valid descriptor before it must be marked, no table past it may be. The descriptor at the
    frontier itself may be either: it is being written. With `tables` false only blocks and pages are asked.
    """
    if where.phase == "before":
        return []
    regime, here = snapshot.regime, where.frontier
    last = first = MASK64 if here is None else key_of(here, regime, algorithm)
    if here is not None and algorithm == POST_ORDER and not where.subtree_done:
        first -= (regime.entry_size(here.level)) * 16 - (here.level + 1)
    missed = early = 0
    for at in marks(snapshot, algorithm):
        missed += int(np.count_nonzero(at.open(tables=tables) & (at.key < np.uint64(max(first, 0)))))
        if tables:
            early += int(np.count_nonzero(at.marked & at.table & (at.key > np.uint64(last))))
    found = []
    if missed:
        found.append(f"{counted(missed, 'descriptor')} that the walk has passed not marked")
    if early:
        found.append(f"{counted(early, 'table')} that the walk has not reached marked")
    return found
