"""What changed between two descriptors: the only judge of it, for one pair and by the array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.descent import Chunk
from ptinspect.arch.bits import MASK64
from ptinspect.arch.descriptor import decode
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.memory.source import RamBlock
from ptinspect.tables.index import Columns
from ptinspect.tables.kinds import (
    BIT11,
    K_INVALID,
    K_RESERVED,
    K_TABLE,
    Flags,
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

ELSEWHERE = RETARGETED | KIND
"""The kinds of an entry that leads elsewhere."""
MAPPING = LOST | NEW | ELSEWHERE
"""The kinds that change what is mapped."""

Words = NDArray[np.uint64]
Codes = NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Differences(Columns):
    """Hold the descriptors of a chunk that differ in more than bit 11."""

    row: NDArray[np.intp]
    """Position of the pair in the chunk."""
    slot: NDArray[np.intp]
    """Index of the descriptor in its table."""
    before: Words
    after: Words
    codes: Codes
    """Which KINDS apply, a bit each."""

    @property
    def older(self) -> Flags:
        """Tell which lead elsewhere with bit 11 clear, as an older value does if a rewrite lies between.

        The lost write of the LKML thread of June 2018: a table of early boot, in a marked tree.
        """
        found: Flags = ((self.codes & ELSEWHERE) != 0) & ((self.after & BIT11) == 0)
        return found


@dataclass(frozen=True, eq=False)
class Compared:
    """Hold what differs in a chunk of pairs of tables."""

    level: int
    chunk: Chunk
    """The pairs, with their descriptors."""
    changed: int
    """Descriptors that differ in any way."""
    counts: NDArray[np.int64]
    """How many differ in each of KINDS."""
    rows: NDArray[np.intp]
    """The pairs of the chunk in which something differs."""
    marks: Flags
    """Where bit 11 alone of a valid descriptor changed; a row for each of `rows`."""
    beyond: Differences
    """What differs in more than bit 11."""

    def cleared(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return pair and slot of each descriptor that leads where it led and has lost bit 11, in order."""
        if not self.counts[[KINDS.index("unmarked"), KINDS.index("ng_cleared")]].any():
            return self.rows[:0], self.rows[:0]
        codes = self.codes()
        row, slot = np.nonzero(((codes & (UNMARKED | NG_CLEARED)) != 0) & ((codes & ELSEWHERE) == 0))
        return row, slot

    def codes(self) -> Codes:
        """Return the change code of every descriptor of the chunk, 0 for equal ones; shape (pairs, words)."""
        found = np.zeros(self.chunk.raw_b.shape, dtype=np.uint16)
        now = self.chunk.raw_b[self.rows]
        table, bit11 = are_tables(now, self.level), (now & BIT11) != 0
        kind = np.where(table, np.where(bit11, MARKED, UNMARKED), np.where(bit11, NG_SET, NG_CLEARED))
        found[self.rows] = np.where(self.marks, kind, np.uint16(0))
        found[self.beyond.row, self.beyond.slot] = self.beyond.codes
        return found


def compare(chunk: Chunk, level: int, regime: Regime) -> Compared:
    """Compare the two sides of a chunk."""
    a, b = chunk.raw_a, chunk.raw_b
    counts = np.zeros(len(KINDS), dtype=np.int64)
    differ = a != b
    for part in chunk.outside:
        differ[0, part] = False
    rows = np.nonzero(differ.any(axis=1))[0]
    if rows.shape[0] < a.shape[0]:
        a, b, differ = a[rows], b[rows], differ[rows]
    changed = int(np.count_nonzero(differ))
    mark = ((a ^ b) == BIT11) & are_valid(a, level, regime)
    if chunk.outside:
        mark &= differ
    _count_marks(b, mark, level, counts)
    differ ^= mark
    row, slot = np.nonzero(differ)
    before, after = a[row, slot], b[row, slot]
    codes = judge(before, after, level, regime)
    if codes.shape[0]:
        for i in range(len(KINDS)):
            counts[i] += np.count_nonzero(codes & np.uint16(1 << i))
    beyond = Differences(rows[row], slot, before, after, codes)
    return Compared(level, chunk, changed, counts, rows, mark, beyond)


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


def judge(before: Words, after: Words, level: int, regime: Regime) -> Codes:
    """Return the change code of each pair of different descriptors; all arrays have one shape."""
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


def kinds_of(before: int, after: int, level: int, regime: Regime) -> tuple[str, ...]:
    """Return the words for one descriptor of a table at `level`; nothing if it did not change."""
    if before == after:
        return ()
    one, other = np.array([before], dtype=np.uint64), np.array([after], dtype=np.uint64)
    return names(int(judge(one, other, level, regime)[0]))


def is_older(before: int, after: int, level: int, regime: Regime, ram: Sequence[RamBlock] = ()) -> bool:
    """Tell whether a descriptor leads elsewhere with bit 11 clear, as `Differences.older` does of many.

    What leads out of `ram`, if that is known, is no older value but garbage.
    """
    if not {"retargeted", "kind"} & {*kinds_of(before, after, level, regime)} or after & int(BIT11):
        return False
    pa = decode(after, level, regime).output_address
    return not ram or any(pa is not None and block.contains(pa) for block in ram)


def only_bit11(kinds_found: tuple[str, ...]) -> bool:
    """Tell whether a change is no more than of bit 11 of a valid descriptor; by its words."""
    return set(kinds_found) <= set(KINDS[:4])
