"""Contiguous groups: leaves that the CPU may hold in one entry of its TLB, and how far they agree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, entry_addresses, parts, place_of, take_rows
from ptinspect.tables.kinds import CONTIGUOUS, are_leaves
from ptinspect.tables.window import Window

READ_ONLY, DBM, ACCESSED, SOFTWARE_DIRTY = (np.uint64(1 << bit) for bit in (7, 51, 10, 55))
"""AP[2], which with DBM set means that the page is clean; AF; Linux's own mark of a dirty page."""
SIZES = {(12, 1): 16, (12, 2): 16, (12, 3): 16, (14, 2): 32, (14, 3): 128, (16, 2): 32, (16, 3): 32}
"""Entries of a group by granule bits and level (Arm ARM D8.7.1, the Contiguous bit)."""

Rows = NDArray[np.intp]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class MixedGroup:
    """Show a group whose entries differ in AF or in whether they are dirty."""

    va: VirtAddr
    """First address."""
    level: int
    descriptor_pa: PhysAddr
    """Where the first of its entries is."""
    size: int
    """Bytes that each entry maps."""
    accessed: tuple[bool, ...]
    """Whether AF is set, by entry."""
    dirty: tuple[bool, ...]
    """Whether the entry is dirty: writable by DBM and AP[2], or marked by Linux (PTE_DIRTY, bit 55)."""


def group_size(level: int, regime: Regime) -> int:
    """Return how many entries a contiguous group of a level has; 1 where there are none."""
    return 1 if regime.pnch else SIZES.get((regime.granule_bits, level), 1)


def groups_of(raw: Words, level: int, regime: Regime) -> tuple[Rows, Rows, Words]:
    """Return row and first slot of each group of some tables, and its entries, shape (groups, entries).

    A group is one if any of its entries has the Contiguous bit. With FEAT_S1PIE's PnCH that bit means
    something else, and there are none.
    """
    size = group_size(level, regime)
    if size == 1 or not raw.size:
        none = np.zeros(0, dtype=np.intp)
        return none, none, np.zeros((0, size), dtype=np.uint64)
    flagged = are_leaves(raw, level, regime) & ((raw & CONTIGUOUS) != 0)
    row, part = np.nonzero(flagged.reshape(raw.shape[0], -1, size).any(axis=2))
    return row, part * size, raw.reshape(raw.shape[0], -1, size)[row, part]


def mixed_groups(
    snapshot: Snapshot, va_range: tuple[int, int] | None = None, levels: frozenset[int] | None = None
) -> Iterator[MixedGroup]:
    """Yield the groups whose entries differ in AF or dirty, by level and address.

    The CPU may set AF, or make dirty, a single entry of a group: Linux reads and clears them together
    (contpte, arch/arm64/mm/contpte.c). Source: Arm ARM D8.7.1. Raises UserError if `va_range` lies outside
    the half.
    """
    tables, regime = snapshot.tables, snapshot.regime
    window = Window.of(va_range, regime)
    index = TableIndex(tables)
    for level in levels_of(regime):
        if levels is not None and level not in levels:
            continue
        rows = index.readable(level)
        for at in parts(len(rows), tables):
            part = rows[at]
            row, slot, words = groups_of(take_rows(tables.raw, part), level, regime)
            accessed = (words & ACCESSED) != 0
            dirty = ((words & DBM) != 0) & ((words & READ_ONLY) == 0) | ((words & SOFTWARE_DIRTY) != 0)
            whole = are_leaves(words, level, regime).all(axis=1)
            differ = (accessed != accessed[:, :1]).any(axis=1) | (dirty != dirty[:, :1]).any(axis=1)
            size = regime.entry_size(level)
            va = entry_addresses(tables.va[part[row]], slot, level, regime)
            shown = whole & differ & window.touches(va, size * max(words.shape[1], 1))
            for i in np.flatnonzero(shown).tolist():
                begin, where = place_of(tables, int(part[row[i]]), int(slot[i]), regime)
                yield MixedGroup(
                    begin,
                    level,
                    where,
                    size,
                    tuple(accessed[i].tolist()),
                    tuple(dirty[i].tolist()),
                )
