"""The leaves of a capture as arrays: where each begins, leads to and ends, and whether it is code."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.linux.layout.regions import Region
from ptinspect.tables.index import TableIndex, Tables, entry_addresses
from ptinspect.tables.kinds import are_leaves, output_addresses

PXN = np.uint64(1 << 53)


@dataclass(frozen=True)
class Leaves:
    """The leaves of a capture, in order of address."""

    va: NDArray[np.uint64]
    """First address of each, ascending."""
    pa: NDArray[np.uint64]
    """Where it leads."""
    size: NDArray[np.uint64]
    """Bytes."""
    executable: NDArray[np.bool_]
    """EL1 may execute it, as far as its own descriptor tells."""

    @classmethod
    def of(cls, tables: Tables, regime: Regime) -> Leaves:
        """Collect the leaves of all tables, each table once."""
        parts = []
        index = TableIndex(tables)
        for level in levels_of(regime):
            rows = index.rows(level)
            raw = tables.raw[rows]
            row, slot = np.nonzero(are_leaves(raw, level, regime))
            size = regime.entry_size(level)
            va = entry_addresses(tables.va[rows][row], slot, level, regime)
            pa = output_addresses(raw[row, slot], level, regime)
            parts.append((va, pa, np.full(va.shape, size, np.uint64), (raw[row, slot] & PXN) == 0))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0])
        return cls(*(column[order] for column in columns))

    def count(self, region: Region) -> int:
        """Return how many begin in a region."""
        first = int(np.searchsorted(self.va, np.uint64(region.start), side="left"))
        return int(np.searchsorted(self.va, np.uint64(region.end - 1), side="right")) - first

    def at(self, va: int) -> int | None:
        """Return the number of the leaf that maps an address; None if none does."""
        slot = int(np.searchsorted(self.va, np.uint64(va), side="right")) - 1
        return slot if slot >= 0 and va - int(self.va[slot]) < int(self.size[slot]) else None

    def translated(self, va: int) -> int | None:
        """Return where an address leads; None if it is not mapped."""
        slot = self.at(va)
        return None if slot is None else int(self.pa[slot]) + va - int(self.va[slot])

    def executable_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield address and size of each leaf that EL1 may execute."""
        chosen = self.executable
        yield from zip(self.va[chosen].tolist(), self.size[chosen].tolist(), strict=True)
