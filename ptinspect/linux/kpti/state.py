"""How far the rewrite of the kernel's tables is, judged from the tables alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.descriptor import BIT11
from ptinspect.linux.kpti.position import Frontier
from ptinspect.snapshot.classify import K_BLOCK, K_PAGE, K_TABLE, kinds
from ptinspect.snapshot.model import Snapshot

__all__ = ["Census", "Frontier", "KptiState", "State", "census", "state_from_tables"]

State = Literal["before", "in-progress", "after", "not-needed", "unknown"]
MOSTLY = 0.99
"""Share of nG leaves from which a marked tree counts as finished: what is created later stays global."""


@dataclass(frozen=True)
class Census:
    """Count bit 11 over all levels."""

    tables: int
    """Table descriptors."""
    marked: int
    """Those with bit 11."""
    leaves: int
    """Blocks and pages."""
    ng: int
    """Those with bit 11."""

    def __str__(self) -> str:
        """Write the counts as people read them."""
        tables = f"{self.marked} of {self.tables} table descriptors are marked"
        return f"{self.ng} of {self.leaves} leaves are nG, {tables}"


@dataclass(frozen=True)
class KptiState:
    """Say where a guest stands with respect to the rewrite, and how that is known."""

    state: State
    """before, in-progress, after, not-needed or unknown."""
    reason: str
    """What it was concluded from."""
    census: Census
    """The counts behind it."""
    algorithm: str = ""
    """The algorithm of the kernel, where its code is known."""
    frontier: Frontier | None = None
    """Where the rewrite stands while it is in progress."""
    decision: Literal["on", "off", "open", "unknown"] = "unknown"
    """Whether the kernel has decided for KPTI, against it, not yet; unknown."""
    doubts: tuple[str, ...] = ()
    """What in the tables contradicts the registers of the walk."""


def census(snapshot: Snapshot) -> Census:
    """Count table descriptors and leaves, with and without bit 11."""
    counts = [0, 0, 0, 0]
    for level, raw in _levels(snapshot):
        kind = kinds(raw, level, snapshot.regime)
        bit11 = (raw & np.uint64(BIT11)) != 0
        table = kind == K_TABLE
        leaf = (kind == K_BLOCK) | (kind == K_PAGE)
        for i, chosen in enumerate((table, table & bit11, leaf, leaf & bit11)):
            counts[i] += int(np.count_nonzero(chosen))
    return Census(*counts)


def tables_by_level(snapshot: Snapshot) -> dict[int, tuple[int, int]]:
    """Return for each level that has table descriptors how many, and how many of them have bit 11."""
    counts: dict[int, tuple[int, int]] = {}
    for level, raw in _levels(snapshot):
        table = kinds(raw, level, snapshot.regime) == K_TABLE
        if table.any():
            marked = table & ((raw & np.uint64(BIT11)) != 0)
            counts[level] = int(table.sum()), int(marked.sum())
    return counts


def _levels(snapshot: Snapshot) -> list[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.uint64]]]]:
    tables = snapshot.tables
    return [(int(v), tables.raw[tables.level == v]) for v in np.unique(tables.level)]


def frontier_from_tables(snapshot: Snapshot) -> Frontier | None:
    """Return the leaf with the lowest address that is not nG; None if all are.

    Both algorithms visit leaves in ascending order, so that this is where an unfinished one stands.
    Whatever is global on purpose (the trampoline's pages) is found as well when all else is done.
    """
    tables, regime = snapshot.tables, snapshot.regime
    best: Frontier | None = None
    for level in np.unique(tables.level):
        rows = np.flatnonzero(tables.level == level)
        raw = tables.raw[rows]
        kind = kinds(raw, int(level), regime)
        open_ = ((kind == K_BLOCK) | (kind == K_PAGE)) & ((raw & np.uint64(BIT11)) == 0)
        row_has = open_.any(axis=1)
        if not row_has.any():
            continue
        first = int(np.flatnonzero(row_has)[0])  # rows of a level are sorted by address
        slot = int(np.flatnonzero(open_[first])[0])
        row = int(rows[first])
        va = (int(tables.va[row]) + (slot << regime.shift(int(level)))) & MASK64
        if best is None or va < best.va:
            best = Frontier(VirtAddr(va), int(level), PhysAddr(int(tables.pa[row]) + 8 * slot), "tables")
    return best


def state_from_tables(snapshot: Snapshot) -> KptiState:
    """Judge from the tables alone.

    Tells `before` from `not-needed` only where leaves are nG although no table was marked: the
    mappings were made that way (KASLR; Linux commit b89d82ef01b3, in v5.0).
    """
    c = census(snapshot)
    if not c.leaves:
        return KptiState("unknown", "the tables map nothing", c)
    share = str(c)
    if not c.marked:
        if not c.ng:
            return KptiState("before", f"{share}: the rewrite has not begun, or is not needed here", c)
        if c.ng >= c.leaves * MOSTLY:
            why = "made nG from the start (KASLR), or by a kernel that marks no tables"
            return KptiState("not-needed", f"{share}: {why}", c)
        return KptiState("unknown", share, c)
    if c.ng >= c.leaves * MOSTLY:
        return KptiState("after", share, c)
    return KptiState("in-progress", share, c, frontier=frontier_from_tables(snapshot))
