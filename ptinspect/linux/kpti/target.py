"""Choose a descriptor at which the rewrite is to be stopped, and say how to get there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.errors import UserError
from ptinspect.linux.kpti.code import Algorithm
from ptinspect.linux.kpti.position import marks_of, order_keys
from ptinspect.snapshot.classify import K_TABLE, kinds
from ptinspect.snapshot.model import Snapshot


@dataclass(frozen=True)
class Target:
    """Name the descriptor before whose store the boot CPU is to stand."""

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
    """The descriptors of one level that are still to be stored, in the order of the walk."""

    level: int
    row: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    slot: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    key: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


def by_percent(snapshot: Snapshot, algorithm: Algorithm, percent: float) -> Target:
    """Return the leaf before which this share of all descriptors is done. Raises UserError without one."""
    levels = _pending(snapshot, algorithm)
    done = total = 0
    for level in {int(v) for v in np.unique(snapshot.tables.level)}:
        rows = np.flatnonzero(snapshot.tables.level == level)
        valid, marked, _ = marks_of(snapshot.tables.raw[rows], level, snapshot.regime)
        total += int(np.count_nonzero(valid))
        done += int(np.count_nonzero(marked))
    wanted = round(total * percent / 100) - done
    keys = np.sort(np.concatenate([v.key for v in levels])) if levels else np.zeros(0, np.uint64)
    if wanted < 0 or not len(keys):
        raise UserError(f"{percent:g} % are done already", "kpti progress says how far it is")
    key = keys[min(wanted, len(keys) - 1)]
    best: tuple[int, _Level, int] | None = None
    for each in levels:
        raw = snapshot.tables.raw[each.row, each.slot]
        leaves = np.flatnonzero(kinds(raw, each.level, snapshot.regime) != K_TABLE)
        if not len(leaves):
            continue
        behind = leaves[each.key[leaves] >= key]
        at = int(behind[each.key[behind].argmin()] if len(behind) else leaves[each.key[leaves].argmax()])
        # the first one behind the place; where none is, the last one of all
        rank = int(each.key[at]) if len(behind) else (1 << 80) - int(each.key[at])
        if best is None or rank < best[0]:
            best = (rank, each, at)
    if best is None:
        raise UserError(f"no page or block is left behind {percent:g} %")
    return _target(snapshot, algorithm, levels, best[1], best[2])


def by_address(snapshot: Snapshot, algorithm: Algorithm, va: int) -> Target:
    """Return the leaf that maps an address. Raises UserError if none does, or it is done already."""
    regime, levels = snapshot.regime, _pending(snapshot, algorithm)
    if not regime.contains(va):
        raise UserError(f"{va:#x} is not in the half that the rewrite goes through")
    for level in levels:
        start = _start(snapshot, level)
        hit = np.flatnonzero(
            (start <= np.uint64(va)) & (np.uint64(va) - start < np.uint64(regime.entry_size(level.level)))
        )
        for at in hit.tolist():
            if not _leads(snapshot, level, at):
                return _target(snapshot, algorithm, levels, level, at)
    raise UserError(f"{va:#x} is not mapped, or its descriptor is done already", f"walk {va:#x}")


def by_number(snapshot: Snapshot, algorithm: Algorithm, level: int, number: int) -> Target:
    """Return the descriptor number `number` (from 1) of those of a level that are still to be stored."""
    levels = _pending(snapshot, algorithm)
    mine = next((v for v in levels if v.level == level), None)
    if mine is None or not 1 <= number <= len(mine.key):
        left = 0 if mine is None else len(mine.key)
        raise UserError(f"level {level} has {left} descriptors left, not {number}")
    return _target(snapshot, algorithm, levels, mine, int(np.argsort(mine.key)[number - 1]))


def _pending(snapshot: Snapshot, algorithm: Algorithm) -> list[_Level]:
    tables, found = snapshot.tables, []
    for level in sorted({int(v) for v in np.unique(tables.level)}):
        rows = np.flatnonzero((tables.level == level) & tables.readable)
        valid, marked, _ = marks_of(tables.raw[rows], level, snapshot.regime)
        row, slot = np.nonzero(valid & ~marked)
        if len(row):
            keys = order_keys(tables.va[rows], valid.shape[1], level, snapshot.regime, algorithm)
            found.append(_Level(level, rows[row], slot, keys[row, slot]))
    return found


def _start(snapshot: Snapshot, level: _Level) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    shift = np.uint64(snapshot.regime.shift(level.level))
    start: np.ndarray[tuple[int, ...], np.dtype[np.uint64]] = snapshot.tables.va[level.row] + (
        level.slot.astype(np.uint64) << shift
    )
    return start


def _leads(snapshot: Snapshot, level: _Level, at: int) -> bool:
    """Tell whether a descriptor points to a table."""
    raw = snapshot.tables.raw[level.row[at], level.slot[at]].reshape(1)
    return int(kinds(raw, level.level, snapshot.regime)[0]) == K_TABLE


def _target(snapshot: Snapshot, algorithm: Algorithm, levels: list[_Level], mine: _Level, at: int) -> Target:
    tables, key, row, slot = snapshot.tables, mine.key[at], int(mine.row[at]), int(mine.slot[at])
    va = (int(tables.va[row]) + (slot << snapshot.regime.shift(mine.level))) & MASK64
    above = next((v for v in levels if v.level == mine.level - 1), None)
    parent = None
    if above is not None and mine.level > snapshot.regime.start_level:
        size = np.uint64(snapshot.regime.entry_size(mine.level - 1))
        start = _start(snapshot, above)
        leading = (start <= np.uint64(va)) & (np.uint64(va) - start < size)
        parent = int(np.count_nonzero(above.key < above.key[leading][0])) if leading.any() else None
    return Target(
        mine.level,
        VirtAddr(va),
        PhysAddr(int(tables.pa[row]) + 8 * slot),
        int(np.count_nonzero(mine.key < key)),
        parent,
        int(np.count_nonzero((mine.row == row) & (mine.key < key))),
    )


__all__ = ["LEVEL_LAST", "Target", "by_address", "by_number", "by_percent"]
