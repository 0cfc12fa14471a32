"""The progress of the rewrite: how much of its work is done, and a descriptor at which to stop it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.linux.kpti.marks import LevelMarks, algorithm_of, key_of, marks, marks_of
from ptinspect.linux.kpti.state import KptiState
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import Columns, TableIndex, place_of

ALL = MASK64
"""A place in the order of the walk past every descriptor."""


@dataclass(frozen=True)
class Work:
    """The number of descriptors in which the walk sets bit 11: those that lack it when it begins."""

    total: int
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
    va: VirtAddr
    """First virtual address that it translates."""
    descriptor_pa: PhysAddr


@dataclass(frozen=True, eq=False)
class _Pending(Columns):
    """Descriptors that are still to be stored, those of one table of the last level together."""

    key: NDArray[np.uint64]
    """Of the first one: grows in the order of the walk, in which no other comes between those of a table."""
    count: NDArray[np.intp]
    level: NDArray[np.intp]
    row: NDArray[np.intp]
    slot: NDArray[np.intp]
    """Of the first one."""
    leaf: NDArray[np.bool_]


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
    whole, found = work(snapshot, state, total), _pending(snapshot, state)
    wanted = round(whole.total * percent / 100) - (whole.total - whole.left)
    if wanted < 0 or not len(found):
        raise UserError(f"{percent:g} % are done already", "kpti progress shows how far it is")
    leaves, passed = np.flatnonzero(found.leaf), np.cumsum(found.count)
    if not len(leaves):
        raise UserError(f"no page or block is left past {percent:g} %")
    at = int(np.searchsorted(passed, wanted, side="right"))
    later = leaves[leaves >= at]
    # the first one past the place; where none is, the last one of all
    chosen = int(later[0] if len(later) else leaves[-1])
    skip = wanted - int(passed[chosen] - found.count[chosen]) if chosen == at else 0
    return _target(snapshot, state, found, chosen, skip if len(later) else int(found.count[chosen]) - 1)


def by_address(snapshot: Snapshot, state: KptiState, va: int) -> Target:
    """Return the leaf that maps an address. Raises UserError if none does, or it is done already."""
    regime, tables = snapshot.regime, snapshot.tables
    if not regime.contains(va):
        raise UserError(f"{va:#x} is not in the half that the rewrite goes through")
    order, place, index = algorithm_of(snapshot, state.code), _place(snapshot, state), TableIndex(tables)
    for level in levels_of(regime):
        rows = index.readable(level)
        at = int(np.searchsorted(tables.va[rows], np.uint64(va), side="right")) - 1
        if at < 0 or va - int(tables.va[rows[at]]) >= regime.table_span(level):
            continue
        slot, one = regime.index(va, level), marks_of(snapshot, level, rows[at : at + 1], order)
        if _is_left(one, state, place)[0, slot] and not one.table[0, slot]:
            return Target(level, *place_of(tables, int(rows[at]), slot, regime))
    raise UserError(f"{va:#x} is not mapped, or its descriptor is done already", f"walk {va:#x}")


def by_number(snapshot: Snapshot, state: KptiState, level: int, number: int) -> Target:
    """Return the descriptor number `number` (from 1) of those of a level that are still to be stored."""
    found = _pending(snapshot, state, level)
    passed = np.cumsum(found.count)
    left = int(passed[-1]) if len(found) else 0
    if not 1 <= number <= left:
        raise UserError(f"level {level} has {left} descriptors left, not {number}")
    at = int(np.searchsorted(passed, number))
    return _target(snapshot, state, found, at, number - 1 - int(passed[at] - found.count[at]))


def left_of(snapshot: Snapshot, state: KptiState, level: int) -> int:
    """Return how many descriptors of a level are still to be stored."""
    return int(_pending(snapshot, state, level).count.sum())


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


def _pending(snapshot: Snapshot, state: KptiState, only: int | None = None) -> _Pending:
    """Return what is still to be stored, of all levels or of one, in the order of the walk."""
    place, none = _place(snapshot, state), np.zeros(0, dtype=np.intp)
    parts = [_Pending(none.astype(np.uint64), none, none, none, none, none.astype(np.bool_))]
    for at in marks(snapshot, algorithm_of(snapshot, state.code)):
        if only not in (None, at.level):
            continue
        left = _is_left(at, state, place)
        if at.level == LEVEL_LAST:
            many = np.count_nonzero(left, axis=1)
            row = np.flatnonzero(many)
            slot, many = left[row].argmax(axis=1), many[row]
        else:
            row, slot = np.nonzero(left)
            many = np.ones(row.shape, dtype=np.intp)
        level = np.full(row.shape, at.level, dtype=np.intp)
        parts.append(_Pending(at.key[row, slot], many, level, at.rows[row], slot, ~at.table[row, slot]))
    found = _Pending.joined(parts)
    return found[np.argsort(found.key, kind="stable")]


def _target(snapshot: Snapshot, state: KptiState, found: _Pending, at: int, skip: int) -> Target:
    """Return the descriptor that comes so many after the first one of some."""
    level, row, slot = int(found.level[at]), int(found.row[at]), int(found.slot[at])
    if skip:
        one = marks_of(snapshot, level, found.row[at : at + 1], algorithm_of(snapshot, state.code))
        slot = int(np.flatnonzero(_is_left(one, state, _place(snapshot, state))[0])[skip])
    return Target(level, *place_of(snapshot.tables, row, slot, snapshot.regime))
