"""Count tables and descriptors by level: the only place that counts them, and those with bit 11."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.counts import LevelSummary
from ptinspect.arch.levels import level_name, levels_of
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, parts
from ptinspect.tables.kinds import BIT11, CONTIGUOUS, TYPE_MASK, are_leaves, are_tables, leaf_type


@dataclass(frozen=True)
class Summary:
    """Hold the counts of all levels."""

    levels: tuple[LevelSummary, ...]
    """One for each level of the regime, root first."""

    @property
    def tables(self) -> int:
        """How many tables there are."""
        return sum(level.tables for level in self.levels)

    @property
    def table_descriptors(self) -> int:
        """How many descriptors point to a table."""
        return sum(level.table_descriptors for level in self.levels)

    @property
    def table_descriptors_marked(self) -> int:
        """How many of them have bit 11."""
        return sum(level.table_descriptors_marked for level in self.levels)

    @property
    def leaves(self) -> int:
        """How many blocks and pages there are."""
        return sum(level.leaves for level in self.levels)

    @property
    def leaves_ng(self) -> int:
        """How many of them are nG."""
        return sum(level.leaves_ng for level in self.levels)

    @property
    def marks(self) -> str:
        """How many descriptors have bit 11, in words."""
        tables = f"{self.table_descriptors_marked} of {self.table_descriptors} table descriptors are marked"
        return f"{self.leaves_ng} of {self.leaves} leaves are nG, {tables}"


def summarize(snapshot: Snapshot) -> Summary:
    """Count the descriptors of a snapshot by level."""
    regime, tables = snapshot.regime, snapshot.tables
    index = TableIndex(tables)
    levels = []
    for level in levels_of(regime):
        rows = index.rows(level)
        raw = tables.raw[rows]
        counts = np.zeros(8, dtype=np.int64)
        for part in parts(len(raw), tables):
            counts += _count(raw[part], level, regime)
        valid, table, marked, leaf, ng, contiguous, reserved, nonzero = counts.tolist()
        levels.append(
            LevelSummary(
                level=level,
                name=level_name(level, regime),
                tables=len(raw),
                entries_valid=valid,
                table_descriptors=table,
                table_descriptors_marked=marked,
                leaves=leaf,
                leaves_ng=ng,
                leaf_size=0 if leaf_type(level, regime) is None else regime.entry_size(level),
                leaves_contiguous=contiguous,
                reserved=reserved,
                invalid_nonzero=nonzero,
                unreadable=int(np.count_nonzero(~tables.readable[rows])),
            )
        )
    return Summary(tuple(levels))


def _count(raw: NDArray[np.uint64], level: int, regime: Regime) -> tuple[int, ...]:
    """Return the numbers of a few tables, in the order in which `summarize` names them."""
    tables, leaves = are_tables(raw, level), are_leaves(raw, level, regime)
    bit11 = (raw & BIT11) != 0
    table, leaf = _many(tables), _many(leaves)
    set_bits = _many((raw & TYPE_MASK & np.uint64(1)) != 0)
    return (
        table + leaf,
        table,
        _many(tables & bit11) if table else 0,
        leaf,
        _many(leaves & bit11) if leaf else 0,
        _many(leaves & ((raw & CONTIGUOUS) != 0)) if leaf else 0,
        set_bits - table - leaf,
        _many(raw != 0) - set_bits,
    )


def _many(flags: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(flags))
