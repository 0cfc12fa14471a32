"""What the rewrite of the tables stored, store by store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64
from ptinspect.arch.descriptor import BIT11
from ptinspect.dataclass import dataclass, field
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import K_TABLE, kinds, output_addresses


@dataclass(frozen=True)
class Write:
    """One store."""

    site: int
    """Offset of the store instruction from the function's entry."""
    level: int
    descriptor_pa: int | None
    """Address of the descriptor; None if what the window showed could not be read."""
    va: int | None
    """First address that it translates; None if no table of the kernel's holds it."""
    before: int
    stored: int


@dataclass(frozen=True)
class LevelWrites:
    """The number of stores of one level."""

    level: int
    stores: int
    changed: int
    """Those that stored another value than there was."""
    tables: int
    """Those of descriptors that point to a table."""
    tables_changed: int
    """Those of them that stored another value than there was."""
    bit11_only: int
    """Those that changed bit 11 and nothing else."""


@dataclass(frozen=True, eq=False)
class Recording:
    """The stores of one run through the rewrite, in their order. All arrays have n entries."""

    levels: tuple[int, ...]
    """The levels whose stores were recorded."""
    algorithm: str
    before: Snapshot
    """The tables when the recording began."""
    site: NDArray[np.uint64]
    """Offsets of the store instructions from the function's entry."""
    level: NDArray[np.int8]
    pa: NDArray[np.uint64]
    """Addresses of the descriptors; all ones where unknown."""
    va: NDArray[np.uint64]
    """First addresses that they translate."""
    known: NDArray[np.bool_]
    """True where `va` is known."""
    old: NDArray[np.uint64]
    new: NDArray[np.uint64]
    whole: bool
    """True if nothing was written before the recording began, and it ended after the last store."""
    seconds: float = 0.0
    unread: int = 0
    """Stores whose place or value before could not be read."""
    doubts: tuple[str, ...] = field(default=())
    """What went wrong while it was recorded."""

    def __len__(self) -> int:
        """Return the number of stores."""
        return len(self.site)

    def __iter__(self) -> Iterator[Write]:
        """Yield the stores in their order."""
        for i in range(len(self)):
            pa = int(self.pa[i])
            yield Write(
                int(self.site[i]),
                int(self.level[i]),
                None if pa == MASK64 else pa,
                int(self.va[i]) if self.known[i] else None,
                int(self.old[i]),
                int(self.new[i]),
            )

    def is_table(self) -> NDArray[np.bool_]:
        """Tell for each store whether the descriptor pointed to a table before it."""
        found = np.zeros(len(self), dtype=np.bool_)
        for level in self.levels:
            here = self.level == level
            found[here] = kinds(self.old[here], level, self.before.regime) == K_TABLE
        return found

    def by_level(self) -> list[LevelWrites]:
        """Count by level, the root first."""
        table, changed = self.is_table(), self.old != self.new
        only = (self.old ^ self.new) == np.uint64(BIT11)
        count = np.count_nonzero
        result = []
        for level in self.levels:
            here = self.level == level
            result.append(
                LevelWrites(
                    level,
                    int(count(here)),
                    int(count(here & changed)),
                    int(count(here & table)),
                    int(count(here & table & changed)),
                    int(count(here & only)),
                )
            )
        return result


def recording(
    before: Snapshot,
    algorithm: str,
    levels_by_site: dict[int, tuple[int, int]],
    records: NDArray[np.void],
    *,
    whole: bool,
    seconds: float,
) -> Recording:
    """Make a recording of what the recorder found.

    `levels_by_site`: address of a store instruction -> its offset in the function, and its level.
    `records`: fields site, address, before, stored, page (the descriptor that maps the address, or 0 if
    the address is physical) and readable.
    """
    regime = before.regime
    site = np.array([levels_by_site[int(pc)][0] for pc in records["site"]], dtype=np.uint64)
    level = np.array([levels_by_site[int(pc)][1] for pc in records["site"]], dtype=np.int8)
    readable = records["readable"] != 0
    page = records["page"]
    inside = records["address"] & np.uint64(regime.granule - 1)
    pa = records["address"].copy()
    windowed = page != 0
    pa[windowed] = output_addresses(page[windowed], 3, regime) | inside[windowed]
    pa[~readable] = np.uint64(MASK64)
    va, known = _places(before, level, pa)
    levels = tuple(sorted({found for _, found in levels_by_site.values()}))
    return Recording(
        levels, algorithm, before, site, level, pa, va, known,
        records["before"].copy(), records["stored"].copy(), whole, seconds,
        int(np.count_nonzero(~readable)),
    )  # fmt: skip


def _places(
    snapshot: Snapshot, level: NDArray[np.int8], pa: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the virtual addresses of descriptors, and where they are known."""
    tables, regime = snapshot.tables, snapshot.regime
    va, known = np.zeros_like(pa), np.zeros(len(pa), dtype=np.bool_)
    for wanted in np.unique(level).tolist():
        here = np.flatnonzero(level == wanted)
        rows = np.flatnonzero(tables.level == wanted)
        if not len(rows):
            continue
        rows = rows[np.argsort(tables.pa[rows], kind="stable")]
        row = rows[np.maximum(np.searchsorted(tables.pa[rows], pa[here], side="right") - 1, 0)]
        offset = pa[here] - tables.pa[row]
        va[here] = tables.va[row] + ((offset >> np.uint64(3)) << np.uint64(regime.shift(wanted)))
        known[here] = offset < np.uint64(8 * regime.entries(wanted))
    return va, known
