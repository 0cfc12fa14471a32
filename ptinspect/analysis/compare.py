"""Compare descriptors by the array, and say in which ways they differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.pairs import Chunk
from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import Regime
from ptinspect.snapshot.classify import (
    BIT11,
    K_INVALID,
    K_RESERVED,
    K_TABLE,
    address_bits,
    are_tables,
    are_valid,
    kinds,
)

KINDS = (
    "marked",
    "unmarked",
    "ng_set",
    "ng_cleared",
    "lost",
    "new",
    "retargeted",
    "attributes",
    "kind",
    "invalid",
)
"""The ways in which a descriptor can differ; bit i of a change code stands for KINDS[i]."""

MARKED, UNMARKED, NG_SET, NG_CLEARED, LOST, NEW, RETARGETED, ATTRIBUTES, KIND, INVALID = (
    np.uint16(1 << i) for i in range(len(KINDS))
)

MAPPING = LOST | NEW | RETARGETED | KIND
"""The kinds that change what is mapped."""

Words = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Differences:
    """Hold the descriptors of a chunk that differ in more than bit 11; arrays of one length."""

    row: NDArray[np.intp]
    """Position of the pair in the chunk."""
    slot: NDArray[np.intp]
    """Index of the descriptor in its table."""
    before: Words
    after: Words
    codes: NDArray[np.uint16]
    """Which KINDS apply, a bit each."""


def compare(
    chunk: Chunk, level: int, regime: Regime, counts: NDArray[np.int64]
) -> tuple[int, Differences | None]:
    """Compare the two sides of a chunk.

    Adds to `counts`, which has one number for each of KINDS. Returns how many descriptors differ,
    and those that differ in more than bit 11, if any.
    """
    a, b = chunk.raw_a, chunk.raw_b
    differ = a != b
    for part in chunk.outside:
        differ[0, part] = False
    rows = np.nonzero(differ.any(axis=1))[0]
    if not rows.shape[0]:
        return 0, None
    if rows.shape[0] < a.shape[0]:
        a, b, differ = a[rows], b[rows], differ[rows]
    changed = int(np.count_nonzero(differ))
    mark = ((a ^ b) == BIT11) & are_valid(a, level, regime)
    if chunk.outside:
        mark &= differ
    _count_marks(b, mark, level, counts)
    differ ^= mark
    if not differ.any():
        return changed, None
    row, slot = np.nonzero(differ)
    before, after = a[row, slot], b[row, slot]
    codes = _judge(before, after, level, regime)
    for i in range(len(KINDS)):
        counts[i] += np.count_nonzero(codes & np.uint16(1 << i))
    return changed, Differences(rows[row], slot, before, after, codes)


def _count_marks(b: Words, mark: NDArray[np.bool_], level: int, counts: NDArray[np.int64]) -> None:
    """Count the descriptors in which bit 11 alone changed; `b` is what they are now."""
    total = int(np.count_nonzero(mark))
    if not total:
        return
    now = mark & ((b & BIT11) != 0)
    table = mark & are_tables(b, level)
    set_tables = int(np.count_nonzero(now & table))
    set_all, tables = int(np.count_nonzero(now)), int(np.count_nonzero(table))
    counts[:4] += (
        set_tables,
        tables - set_tables,
        set_all - set_tables,
        total - tables - set_all + set_tables,
    )


def _judge(before: Words, after: Words, level: int, regime: Regime) -> NDArray[np.uint16]:
    """Return the change code of each pair of different descriptors."""
    kind_a, kind_b = kinds(before, level, regime), kinds(after, level, regime)
    valid_a = (kind_a != K_INVALID) & (kind_a != K_RESERVED)
    valid_b = (kind_b != K_INVALID) & (kind_b != K_RESERVED)
    same = valid_a & (kind_a == kind_b)
    table = kind_b == K_TABLE
    flipped = before ^ after
    address = np.where(
        table,
        np.uint64(address_bits(level, regime, table=True)),
        np.uint64(address_bits(level, regime)),
    )
    other = ~address & np.uint64(MASK64 & ~(1 << 11 | 3))
    bit11 = same & ((flipped & BIT11) != 0)
    now = (after & BIT11) != 0
    codes = np.zeros(before.shape, dtype=np.uint16)
    for code, where in (
        (MARKED, bit11 & table & now),
        (UNMARKED, bit11 & table & ~now),
        (NG_SET, bit11 & ~table & now),
        (NG_CLEARED, bit11 & ~table & ~now),
        (LOST, valid_a & ~valid_b),
        (NEW, ~valid_a & valid_b),
        (RETARGETED, same & ((flipped & address) != 0)),
        (ATTRIBUTES, same & ((flipped & other) != 0)),
        (KIND, valid_a & valid_b & (kind_a != kind_b)),
        (INVALID, ~valid_a & ~valid_b),
    ):
        codes[where] |= code
    return codes


def names(code: int) -> tuple[str, ...]:
    """Return the words of a change code."""
    return tuple(name for i, name in enumerate(KINDS) if code >> i & 1)
