"""Page tables as text in the kernel's own form, line for line as /sys/kernel/debug/kernel_page_tables.

Source: Linux arch/arm64/mm/ptdump.c (dump.c up to v5.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.levels import level_name, levels_of
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import SnapshotError, UserError
from ptinspect.linux.ptdump.markers import Frame, Marker, frame_of
from ptinspect.linux.releases import TextForm
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex
from ptinspect.tables.kinds import are_leaves, are_tables, next_tables

VALID, USER, RDONLY, SHARED, AF, NG = 1, 1 << 6, 1 << 7, 3 << 8, 1 << 10, 1 << 11
TABLE_BIT, TYPE, ATTRINDX, GP = 2, 3, 7 << 2, 1 << 50
CONT, PXN, UXN = 1 << 52, 1 << 53, 1 << 54


@dataclass(frozen=True)
class Column:
    """One attribute: which text stands for which bits."""

    mask: int
    """The bits that are looked at."""
    value: int
    """What they must be."""
    yes: str
    """Printed if they are."""
    no: str | None
    """Printed if not; None: nothing at all."""


MEMORY_TYPES = {
    0x00: "DEVICE/nGnRnE",
    0x04: "DEVICE/nGnRE",
    0x0C: "DEVICE/GRE",
    0x44: "MEM/NORMAL-NC",
    0xFF: "MEM/NORMAL",
    0xF0: "MEM/NORMAL-TAGGED",
}
"""Attribute byte of MAIR_EL1 -> text."""
NORMAL = 0xFF


def columns(form: TextForm, mair: int) -> tuple[Column, ...]:
    """Return the attributes in order of their columns; the memory types come from MAIR_EL1.

    Without MTE the kernel has two indices with the attributes of normal memory, 0 and 1: the second one is
    the tagged type (asm/memory.h: MT_NORMAL 0, MT_NORMAL_TAGGED 1, from v5.10). Index 7 and up of a type that
    was there before is unused.
    """
    block = Column(TYPE, VALID, "BLK", "   ") if form.sect else Column(TABLE_BIT, TABLE_BIT, "   ", "BLK")
    fixed = [
        Column(VALID, VALID, " ", "F"),
        Column(USER, USER, "USR", "   "),
        Column(RDONLY, RDONLY, "ro", "RW"),
        Column(PXN, PXN, "NX", "x "),
        Column(SHARED, SHARED, "SHD", "   "),
        Column(AF, AF, "AF", "  "),
        Column(NG, NG, "NG", "  "),
        Column(CONT, CONT, "CON", "   "),
        block,
        Column(UXN, UXN, "UXN", "   "),
    ]
    if form.gp:
        fixed.append(Column(GP, GP, "GP", "  "))
    known: set[str] = set()
    for index in range(8):
        byte = mair >> 8 * index & 0xFF
        text = MEMORY_TYPES.get(byte, "")
        if byte == NORMAL and index == 1:
            text = MEMORY_TYPES[0xF0]
        if text and text not in known:
            known.add(text)
            fixed.append(Column(ATTRINDX, index << 2, text, None))
    return tuple(fixed)


def mask_of(found: tuple[Column, ...]) -> int:
    """Return the bits that any column looks at, and the whole index of the memory type."""
    mask = ATTRINDX
    for column in found:
        mask |= column.mask
    return mask


MAX_SEGMENTS = 1_000_000
"""Stretches of equal entries, each of which is a line or nearly one, of which a text is made."""
ROWS = 1024
"""Tables that are looked at together."""


class Segment(NamedTuple):
    """Entries that follow each other in one table, all empty or all leaves, with equal bits."""

    va: int
    """First address."""
    entries: int
    """How many entries."""
    level: int
    """Level of the table that they stand in."""
    bits: int
    """What they have in common, cut to the wanted mask; 0 for empty ones."""


def segments(snapshot: Snapshot, mask: int) -> Iterator[Segment]:
    """Yield what lies side by side in order of va, shared tables at each address that reaches them.

    Only the bits of `mask` are looked at. A tree of tables all of whose entries are equal pages (KASAN's
    early shadow) is one segment of pages. Entries of the upper levels that are neither empty, nor a
    leaf, nor a table are left out, as mm/pagewalk.c does. Raises SnapshotError if a table is missing
    from the snapshot or could not be read: the text cannot express it; and UserError, before anything is
    yielded, where there is more than a text is made of.
    """
    walk = _Walk(snapshot, mask)
    if walk.total > MAX_SEGMENTS:
        raise UserError(
            f"the kernel's own text of {snapshot.name!r} would have about {walk.total} lines: it tells of a "
            "table each time that it is reached, as of KASAN's shadow while the rewrite is in it",
            "map lists such a table once, and where it is again; --format csv writes it once",
        )
    return walk.table(0, int(snapshot.regime.va_min), snapshot.regime.start_level)


TABLE, LEFT_OUT = 1, 2
"""What an entry is that is neither empty nor a leaf."""
Words = NDArray[np.uint64]


class _Walk:
    """Go down one tree."""

    def __init__(self, snapshot: Snapshot, mask: int) -> None:
        self._tables, self._regime = snapshot.tables, snapshot.regime
        self._mask = np.uint64(mask)
        self._index = TableIndex(snapshot.tables)
        count = len(snapshot.tables)
        self._uniform: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
        self._value: NDArray[np.uint64] = np.zeros(count, dtype=np.uint64)
        self._segments: NDArray[np.int64] = np.ones(count, dtype=np.int64)
        """By table: how many there are in it and below it; 1 for one that is missing, or uniform."""
        for level in reversed(levels_of(self._regime)):
            self._find_uniform(level)
            self._count(level)

    def _find_uniform(self, level: int) -> None:
        """Note which tables of a level have nothing but equal pages below them."""
        rows = self._index.numbers(level)
        rows = rows[self._tables.readable[rows]]
        words = self._tables.raw[rows][:, : self._regime.entries(level)]
        if level == LEVEL_LAST:
            bits = words & self._mask
            self._uniform[rows] = (bits == bits[:, :1]).all(axis=1)
            self._value[rows] = bits[:, 0]
            return
        rows = rows[are_tables(words, level).all(axis=1)]
        for row in rows.tolist():
            words = self._tables.raw[row, : self._regime.entries(level)]
            children = np.unique(self._index.find(level + 1, next_tables(words, self._regime)))
            if children[0] >= 0 and self._uniform[children].all():
                values = self._value[children]
                self._uniform[row] = bool((values == values[0]).all())
                self._value[row] = values[0]

    @property
    def total(self) -> int:
        """How many segments there are."""
        return int(self._segments[0])

    def _count(self, level: int) -> None:
        rows = self._index.numbers(level)
        rows = rows[self._tables.readable[rows] & ~self._uniform[rows]]
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            words = self._tables.raw[part][:, : self._regime.entries(level)]
            kind, begins = self._stretches(words, level)
            self._segments[part] = (begins & (kind != TABLE)).sum(axis=1)
            if level < LEVEL_LAST:
                row, index = np.nonzero(kind == TABLE)
                child = self._index.find(level + 1, next_tables(words[row, index], self._regime))
                below = np.where(child >= 0, self._segments[child], 1)
                np.add.at(self._segments, part[row], below)

    def _stretches(self, words: Words, level: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Return what each entry of some tables is, and whether it is the first of a segment."""
        bits = words & self._mask
        kind = np.zeros(words.shape, dtype=np.int8)
        if level < LEVEL_LAST:
            known = are_leaves(words, level, self._regime) | (words == 0)
            kind = np.where(are_tables(words, level), TABLE, np.where(known, 0, LEFT_OUT)).astype(np.int8)
        same = (kind[:, 1:] == kind[:, :-1]) & (bits[:, 1:] == bits[:, :-1]) & (kind[:, 1:] != TABLE)
        return kind, np.concatenate([np.ones((len(words), 1), dtype=np.bool_), ~same], axis=1)

    def table(self, row: int, va: int, level: int) -> Iterator[Segment]:
        """Yield the segments of a table that begins at `va`, and of those below it."""
        if row < 0 or not self._tables.readable[row]:
            what = "is not in the snapshot" if row < 0 else "could not be read"
            raise SnapshotError(f"the level {level} table of {va:#x} {what}: the dump would lie")
        regime = self._regime
        shift = regime.shift(level)
        words = self._tables.raw[row, : regime.entries(level)]
        (kind,), (begins,) = self._stretches(words[np.newaxis], level)
        first = np.nonzero(begins)[0]
        counts = np.diff(np.append(first, words.shape[0])).tolist()
        below = self._children(words, first, level)
        columns = (first.tolist(), counts, kind[first].tolist(), (words[first] & self._mask).tolist(), below)
        for slot, count, what, value, child in zip(*columns, strict=True):
            at = va + (slot << shift)
            if what == TABLE and child >= 0 and self._uniform[child]:
                pages = 1 << (shift - regime.granule_bits)
                yield Segment(at, pages, LEVEL_LAST, int(self._value[child]))
            elif what == TABLE:
                yield from self.table(child, at, level + 1)
            elif what == 0:
                yield Segment(at, count, level, value)

    def _children(self, words: NDArray[np.uint64], first: NDArray[np.intp], level: int) -> list[int]:
        if level == LEVEL_LAST:
            return [-1] * int(first.shape[0])
        return list(self._index.find(level + 1, next_tables(words[first], self._regime)).tolist())


UNITS = "KMGTPE"


def kernel_lines(snapshot: Snapshot, form: TextForm | None = None) -> tuple[Iterator[str], Frame]:
    """Return the lines that the kernel would print for a snapshot, in its own form or another, and the frame.

    Raises UserError if the snapshot is of a part, of a lower half, or of an unknown kernel.
    """
    regime = snapshot.regime
    if not regime.upper or snapshot.va_range is not None or snapshot.truncated:
        raise UserError(f"the kernel's text needs a whole capture of its half; {snapshot.name!r} is none")
    frame = frame_of(snapshot, form)
    attributes = columns(frame.form, regime.mair)
    found = segments(snapshot, mask_of(attributes))
    return lines(found, frame.markers, attributes, frame.form, regime), frame


def lines(
    found: Iterable[Segment],
    markers: Sequence[Marker],
    attributes: Sequence[Column],
    form: TextForm,
    regime: Regime,
) -> Iterator[str]:
    """Yield the lines, without line ends, of what a walk meets.

    note_page() of arch/arm64/mm/ptdump.c is called once for each entry; here once for each stretch of
    equal ones, and at the entries where a marker is due.
    """
    state = _State(markers, attributes, form, regime)
    for segment in found:
        step = regime.entry_size(segment.level)
        yield from state.note(segment.va, segment.level, segment.bits)
        done = 0
        while (due := state.due) is not None:
            done = max(-(-(due - segment.va) // step), done + 1)
            if done >= segment.entries:
                break
            yield from state.note(segment.va + done * step, segment.level, segment.bits)
    yield from state.note(0, None, 0)


def size_text(size: int) -> str:
    """Return a size as the kernel does: the largest unit that divides it, right-aligned in ten columns."""
    delta, unit = size >> 10, 0
    while not delta & 1023 and unit < len(UNITS) - 1:
        delta, unit = delta >> 10, unit + 1
    return f"{delta:9d}{UNITS[unit]}"


class _State:
    """What the kernel's struct pg_state holds."""

    def __init__(
        self, markers: Sequence[Marker], attributes: Sequence[Column], form: TextForm, regime: Regime
    ) -> None:
        self._markers, self._attributes = markers, attributes
        self._form, self._regime = form, regime
        self._at = 0
        self._begun = form.zero
        self._start = 0
        self._level: int | None = regime.start_level if form.zero else None
        self._prot = 0
        self._texts: dict[tuple[int | None, int], str] = {}

    @property
    def due(self) -> int | None:
        """The address from which on the next marker is to be printed; None after the last."""
        return self._markers[self._at + 1].address if self._at + 1 < len(self._markers) else None

    def note(self, addr: int, level: int | None, prot: int) -> Iterator[str]:
        """Take note of an entry, as note_page() does; `level` None is the end."""
        if not self._begun:
            self._begun = True
            self._start, self._level, self._prot = addr, level, prot
            yield self._marker()
        elif prot != self._prot or level != self._level or self._reached(addr):
            if self._prot or self._form.holes:
                size = size_text(addr - self._start & (1 << 64) - 1)
                yield f"0x{self._start:016x}-0x{addr:016x}   {size} {self._text()}"
            if self._reached(addr):
                self._at += 1
                yield self._marker()
            self._start, self._level, self._prot = addr, level, prot
        if self._reached(addr):
            self._at += 1
            yield self._marker()

    def _reached(self, addr: int) -> bool:
        return self.due is not None and addr >= self.due

    def _marker(self) -> str:
        return f"---[ {self._markers[self._at].name} ]---"

    def _text(self) -> str:
        """Return the level's name and the attributes."""
        key = (self._level, self._prot)
        if key not in self._texts:
            assert self._level is not None
            name = level_name(self._level, self._regime).upper()  # the root's is PGD
            self._texts[key] = name + self._columns()
        return self._texts[key]

    def _columns(self) -> str:
        if not self._prot:
            return ""
        shown = (
            column.yes if self._prot & column.mask == column.value else column.no
            for column in self._attributes
        )
        return "".join(f" {text}" for text in shown if text is not None)
