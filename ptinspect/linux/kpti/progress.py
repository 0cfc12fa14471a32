"""The progress of the rewrite: how much of its work is done, and a descriptor at which to stop it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.linux.kpti.marks import LevelMarks, algorithm_of, key_of, marks
from ptinspect.linux.kpti.state import KptiState
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import place_of

ALL = MASK64
"""A place in the order of the walk past every descriptor."""


@dataclass(frozen=True)
class Work:
    """The number of descriptors in which the walk sets bit 11: those that lack it when it begins."""

    total: int
    """All of them."""
    left: int
    """Those that are still to be stored."""
    exact: bool
    """True if they were counted before the first one was stored. Otherwise what was nG before is not known,
    and leaves that the walk has passed are counted as its work: the share is an upper bound."""

    @property
    def percent(self) -> float:
        """The share that is done, in percent; 100 where nothing was to be done."""
        return 100 * (self.total - self.left) / self.total if self.total else 100.0


@dataclass(frozen=True)
class Target:
    """The descriptor before whose store the boot CPU is to stand."""

    level: int
    """Its level."""
    va: VirtAddr
    """First virtual address that it translates."""
    descriptor_pa: PhysAddr
    """Where it is."""
    ordinal: int
    """How many descriptors of its level will be stored before it."""
    parent: int | None
    """How many of the level above will be stored before the one that leads to it; None at the root."""
    within: int
    """How many descriptors of its own table will be stored before it."""


@dataclass(frozen=True, eq=False)
class _Level:
    """The descriptors of one level that are still to be stored."""

    level: int
    row: NDArray[np.intp]
    slot: NDArray[np.intp]
    key: NDArray[np.uint64]
    """Grows in the order of the walk."""
    table: NDArray[np.bool_]


def work(snapshot: Snapshot, state: KptiState, total: int | None = None) -> Work:
    """Count what is to be done and what is left, by the tables and where the walk stands in them.

    `total` is what was counted when nothing was written yet, if anybody did. Leaves that are nG before
    the walk begins are not its work, nor is what lacks bit 11 when the boot CPU has left it.
    """
    order, place = algorithm_of(snapshot, state.code), _place(snapshot, state)
    left = passed = 0
    for at in marks(snapshot, order):
        left += int(np.count_nonzero(_is_left(at, state, place)))
        if total is None and place:
            done = (at.valid & (at.key < np.uint64(place))) & ~_is_left(at, state, place)
            if not state.marks_tables and state.code is not None and state.code.tables == "never-written":
                done &= ~at.table
            passed += int(np.count_nonzero(done))
    if state.state == "after" and state.position is None:
        left = 0
    if total is None:
        return Work(left + passed, left, exact=not place)
    return Work(max(total, left), left, exact=True)


def by_percent(snapshot: Snapshot, state: KptiState, percent: float, total: int | None = None) -> Target:
    """Return the leaf before which this share of the walk's work is done. Raises UserError without one."""
    whole, levels = work(snapshot, state, total), _pending(snapshot, state)
    wanted = round(whole.total * percent / 100) - (whole.total - whole.left)
    keys = np.sort(np.concatenate([v.key for v in levels])) if levels else np.zeros(0, np.uint64)
    if wanted < 0 or not len(keys):
        raise UserError(f"{percent:g} % are done already", "kpti progress shows how far it is")
    key = keys[min(wanted, len(keys) - 1)]
    best: tuple[int, _Level, int] | None = None
    for each in levels:
        leaves = np.flatnonzero(~each.table)
        if not len(leaves):
            continue
        later = leaves[each.key[leaves] >= key]
        at = int(later[each.key[later].argmin()] if len(later) else leaves[each.key[leaves].argmax()])
        # the first one past the place; where none is, the last one of all
        rank = int(each.key[at]) if len(later) else (1 << 80) - int(each.key[at])
        if best is None or rank < best[0]:
            best = (rank, each, at)
    if best is None:
        raise UserError(f"no page or block is left past {percent:g} %")
    return _target(snapshot, levels, best[1], best[2])


def by_address(snapshot: Snapshot, state: KptiState, va: int) -> Target:
    """Return the leaf that maps an address. Raises UserError if none does, or it is done already."""
    regime, levels = snapshot.regime, _pending(snapshot, state)
    if not regime.contains(va):
        raise UserError(f"{va:#x} is not in the half that the rewrite goes through")
    for level in levels:
        start = _start(snapshot, level)
        size = np.uint64(regime.entry_size(level.level))
        hit = np.flatnonzero((start <= np.uint64(va)) & (np.uint64(va) - start < size) & ~level.table)
        if len(hit):
            return _target(snapshot, levels, level, int(hit[0]))
    raise UserError(f"{va:#x} is not mapped, or its descriptor is done already", f"walk {va:#x}")


def by_number(snapshot: Snapshot, state: KptiState, level: int, number: int) -> Target:
    """Return the descriptor number `number` (from 1) of those of a level that are still to be stored."""
    levels = _pending(snapshot, state, {level - 1, level})
    mine = next((v for v in levels if v.level == level), None)
    left = 0 if mine is None else len(mine.key)
    if mine is None or not 1 <= number <= left:
        raise UserError(f"level {level} has {left} descriptors left, not {number}")
    return _target(snapshot, levels, mine, int(np.argsort(mine.key)[number - 1]))


def left_of(snapshot: Snapshot, state: KptiState, level: int) -> int:
    """Return how many descriptors of a level are still to be stored."""
    return sum(len(found.key) for found in _pending(snapshot, state, {level}))


def _place(snapshot: Snapshot, state: KptiState) -> int:
    """Return where the walk stands, in the order of the walk: 0 before it, ALL after it."""
    if state.state in ("before", "not-needed"):
        return 0
    if state.state == "in-progress" and state.frontier is not None:
        return key_of(state.frontier, snapshot.regime, algorithm_of(snapshot, state.code))
    return ALL


def _is_left(at: LevelMarks, state: KptiState, place: int) -> NDArray[np.bool_]:
    """Tell which descriptors are still to be stored.

    Where the code leaves no marks in tables, only the place tells which of those it has written back.
    """
    if state.marks_tables:
        return at.open()
    found = at.open(tables=False)
    if state.code is not None and state.code.tables == "written-back":
        found |= at.valid & at.table & (at.key >= np.uint64(place))
    return found


def _pending(snapshot: Snapshot, state: KptiState, only: set[int] | None = None) -> list[_Level]:
    place, parts = _place(snapshot, state), dict[int, list[tuple[NDArray[Any], ...]]]()
    for at in marks(snapshot, algorithm_of(snapshot, state.code)):
        if only is not None and at.level not in only:
            continue
        row, slot = np.nonzero(_is_left(at, state, place))
        if len(row):
            found = (at.rows[row], slot, at.key[row, slot], at.table[row, slot])
            parts.setdefault(at.level, []).append(found)
    return [
        _Level(level, *(np.concatenate(column) for column in zip(*found, strict=True)))
        for level, found in sorted(parts.items())
    ]


def _start(snapshot: Snapshot, level: _Level) -> NDArray[np.uint64]:
    shift = np.uint64(snapshot.regime.shift(level.level))
    start: NDArray[np.uint64] = snapshot.tables.va[level.row] + (level.slot.astype(np.uint64) << shift)
    return start


def _target(snapshot: Snapshot, levels: list[_Level], mine: _Level, at: int) -> Target:
    key, row = mine.key[at], int(mine.row[at])
    va, pa = place_of(snapshot.tables, row, int(mine.slot[at]), snapshot.regime)
    above = next((v for v in levels if v.level == mine.level - 1), None)
    parent = None
    if above is not None and mine.level > snapshot.regime.start_level:
        size = np.uint64(snapshot.regime.entry_size(mine.level - 1))
        start = _start(snapshot, above)
        leading = (start <= np.uint64(va)) & (np.uint64(va) - start < size)
        parent = int(np.count_nonzero(above.key < above.key[leading][0])) if leading.any() else None
    return Target(
        mine.level,
        va,
        pa,
        int(np.count_nonzero(mine.key < key)),
        parent,
        int(np.count_nonzero((mine.row == row) & (mine.key < key))),
    )
