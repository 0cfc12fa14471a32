"""Pick leaves that are spread over a whole capture, to ask somebody else about them."""

from __future__ import annotations

import numpy as np

from ptinspect.arch.bits import MASK64
from ptinspect.snapshot.classify import K_BLOCK, K_PAGE, kinds
from ptinspect.snapshot.model import Snapshot


def sample_leaves(snapshot: Snapshot, count: int) -> list[tuple[int, int]]:
    """Return pairs of virtual and physical address, at most `count` for each level, evenly spread."""
    tables, regime = snapshot.tables, snapshot.regime
    found: list[tuple[int, int]] = []
    for level in np.unique(tables.level).tolist():
        rows = np.flatnonzero(tables.level == level)
        kind = kinds(tables.raw[rows], level, regime)
        at, slots = np.nonzero((kind == K_BLOCK) | (kind == K_PAGE))
        for i in np.linspace(0, max(len(at) - 1, 0), min(count, len(at)), dtype=int).tolist():
            row, slot = int(rows[at[i]]), int(slots[i])
            va = (int(tables.va[row]) + (slot << regime.shift(level))) & MASK64
            found.append((va, int(regime.output_address(int(tables.raw[row, slot]), level))))
    return found
