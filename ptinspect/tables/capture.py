"""Read every table under a root, level by level, as arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass
from ptinspect.memory.source import PhysicalMemory, has_rows, read_rows
from ptinspect.tables.index import Tables
from ptinspect.tables.kinds import are_tables, next_tables
from ptinspect.tables.storage import most_bytes, zeros
from ptinspect.tables.window import Window

Progress = Callable[[int, int], None]
"""Called with the number of tables read, and the number known to exist so far."""

BATCH_BYTES = 512 << 10
"""At most this much is read by `read_tables` in one call: it stays in the cache until it is put in order."""
SCATTER_BYTES = 16 << 20
"""The same where the memory puts each table into its row itself."""


@dataclass(frozen=True, eq=False)
class _Reached:
    """The tables of one level, as the level above reaches them: sorted by va."""

    pa: NDArray[np.uint64]
    va: NDArray[np.uint64]

    def __len__(self) -> int:
        return int(self.pa.shape[0])


@dataclass(frozen=True, eq=False)
class _Plan:
    """The same with one row per table, and which row each way of reaching it leads to."""

    pa: NDArray[np.uint64]
    """Unique, sorted."""
    row: NDArray[np.intp]
    """Position of each of them in va order."""
    row_pa: NDArray[np.uint64]
    row_va: NDArray[np.uint64]
    of: NDArray[np.intp] | None
    """Row of each entry of _Reached; None where that is its own position."""
    dropped: bool

    def __len__(self) -> int:
        return int(self.pa.shape[0])


def capture(
    memory: PhysicalMemory,
    root_pa: int,
    regime: Regime,
    *,
    va_range: tuple[int, int] | None = None,
    max_level: int = LEVEL_LAST,
    max_tables: int | None = None,
    progress: Progress | None = None,
) -> tuple[Tables, str]:
    """Read all tables reachable from `root_pa`, each one once per level, however they loop.

    `va_range` (both ends included) and `max_level` limit what is followed; `max_tables` bounds the
    number of rows, of which the lowest addresses are kept; by default there are as many as storage has
    room for. Returns the tables and why they are not complete (empty if they are; `va_range` is not a
    reason). A table that cannot be read is a row that is not `readable`. Raises UserError if `va_range`
    lies outside the regime's half, or the disk is full, TargetError if the link to the guest failed, and
    what `progress` raises.
    """
    window = Window.of(va_range, regime)
    most = max(max_tables or most_bytes() // regime.granule, 1)
    last_level = max(min(max_level, LEVEL_LAST), regime.start_level)
    reached = _Reached(np.array([root_pa], dtype=np.uint64), np.array([int(regime.va_min)], dtype=np.uint64))
    parts = _Parts(regime, last_level)
    truncated = ""
    for level in range(regime.start_level, last_level + 1):
        plan = _plan(reached, most - parts.total)
        if plan.dropped:
            truncated = f"more than {most} tables: stopped at level {level}"
        raw = parts.add(level, plan)
        rows = raw, parts.readable[-1]
        _read(memory, plan, rows, size=regime.entries(level) * 8, progress=progress, known=parts.total)
        if level == LEVEL_LAST:
            break
        reached = _below(raw, plan, reached, level=level, regime=regime, window=window)
        if level == last_level and len(reached) and not truncated:
            truncated = f"levels below {last_level} were not asked for"
        if not len(reached) or parts.total >= most:
            if len(reached) and not truncated:
                truncated = f"more than {most} tables: stopped at level {level + 1}"
            break
    return parts.tables(), truncated


class _Parts:
    """Collect rows by level; the last level, the largest by far, is read into its final place."""

    def __init__(self, regime: Regime, last_level: int) -> None:
        self._width = regime.granule // 8
        self._last_level = last_level
        self._levels: list[int] = []
        self._raw: list[NDArray[np.uint64]] = []
        self._plans: list[_Plan] = []
        self._final: NDArray[np.uint64] | None = None
        self.readable: list[NDArray[np.bool_]] = []
        self.total = 0

    def add(self, level: int, plan: _Plan) -> NDArray[np.uint64]:
        """Make room for one level; returns the array to fill, shape (tables, granule / 8)."""
        first, self.total = self.total, self.total + len(plan)
        if level == self._last_level:
            self._final = zeros(self.total, self._width)
            np.concatenate([*self._raw, self._final[:0]], out=self._final[:first])
            raw = self._final[first:]
        else:
            raw = np.empty((len(plan), self._width), dtype=np.uint64)
            self._raw.append(raw)
        self._levels.append(level)
        self._plans.append(plan)
        self.readable.append(np.zeros(len(plan), dtype=np.bool_))
        return raw

    def tables(self) -> Tables:
        """Join the levels."""
        counts = [len(plan) for plan in self._plans]
        return Tables(
            level=np.repeat(np.array(self._levels, dtype=np.int8), counts),
            pa=np.concatenate([plan.row_pa for plan in self._plans]),
            va=np.concatenate([plan.row_va for plan in self._plans]),
            raw=np.concatenate(self._raw) if self._final is None else self._final,
            readable=np.concatenate(self.readable),
        )


def _plan(reached: _Reached, room: int) -> _Plan:
    """Give each table one row, in the order of the lowest va that reaches it."""
    if len(reached) <= room:
        by_pa = np.argsort(reached.pa, kind="stable")
        ordered = reached.pa[by_pa]
        if (ordered[1:] != ordered[:-1]).all():
            return _Plan(ordered, by_pa, reached.pa, reached.va, None, dropped=False)
    pa, first, of = np.unique(reached.pa, return_index=True, return_inverse=True)
    dropped = pa.shape[0] > room
    if dropped:
        kept = first <= np.sort(first)[room - 1]
        pa, first = pa[kept], first[kept]
    order = np.argsort(first)
    row = np.empty(order.shape[0], dtype=np.intp)
    row[order] = np.arange(order.shape[0])
    alone = dropped or len(reached) == pa.shape[0]
    return _Plan(
        pa, row, pa[order], reached.va[first[order]], None if alone else row[of.reshape(-1)], dropped
    )


def _read(
    memory: PhysicalMemory,
    plan: _Plan,
    rows: tuple[NDArray[np.uint64], NDArray[np.bool_]],
    *,
    size: int,
    progress: Progress | None,
    known: int,
) -> None:
    """Read the planned tables of `size` bytes into their rows, in batches of bounded size."""
    step = max((SCATTER_BYTES if has_rows(memory) else BATCH_BYTES) // size, 1)
    words = size // 8
    done = known - len(plan)
    raw, readable = rows
    if words < raw.shape[1]:
        raw[:, words:] = 0
    for start in range(0, len(plan), step):
        part = slice(start, start + step)
        read_rows(memory, plan.pa[part], size, (raw, plan.row[part]), readable)
        if progress is not None:
            progress(min(done + start + step, known), known)


def _below(
    raw: NDArray[np.uint64],
    plan: _Plan,
    reached: _Reached,
    *,
    level: int,
    regime: Regime,
    window: Window,
) -> _Reached:
    """Return the tables that these tables point to, as far as the window goes.

    A table reached twice with every address in the window is kept once, with the lowest; the two
    that may stick out at either end are kept apart, because only a part of them is followed.
    """
    row, slot = np.nonzero(are_tables(raw, level))
    pa = next_tables(raw[row, slot], regime)
    offset = slot.astype(np.uint64) << np.uint64(regime.shift(level))
    if window.whole or plan.of is None:
        va = plan.row_va[row] + offset
    else:
        va, pa = _fan_out(plan.of, reached.va, row, offset, pa)
    if window.whole:
        return _Reached(pa, va)
    size = regime.entry_size(level)
    kept = window.touches(va, size)
    pa, va = pa[kept], va[kept]
    full = window.covers(va, size)
    _, first = np.unique(pa[full], return_index=True)
    picked = np.sort(np.concatenate([np.nonzero(full)[0][first], np.nonzero(~full)[0]]))
    return _Reached(pa[picked], va[picked])


def _fan_out(
    of: NDArray[np.intp],
    reached_va: NDArray[np.uint64],
    row: NDArray[np.intp],
    offset: NDArray[np.uint64],
    pa: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Repeat the children of each row for every way in which the row is reached; sorted by va."""
    counts = np.bincount(row, minlength=int(of.max()) + 1)
    starts = np.cumsum(counts) - counts
    repeat = counts[of]
    way = np.repeat(np.arange(of.shape[0]), repeat)
    child = np.arange(way.shape[0]) - np.repeat(np.cumsum(repeat) - repeat, repeat) + starts[of[way]]
    va = reached_va[way] + offset[child]
    order = np.argsort(va, kind="stable")
    return va[order], pa[child[order]]
