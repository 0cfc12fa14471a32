"""Descriptors of a snapshot one by one, in batches: what `export` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.descriptor import Descriptor, Kind, decode
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import Columns, TableIndex, entry_addresses, parts, place_of, take_rows
from ptinspect.tables.kinds import are_leaves, are_tables, next_tables, output_addresses, without_addresses
from ptinspect.tables.window import Window

Progress = Callable[[int, int], None]
"""Called with the number of tables done, and the number of all."""


@dataclass(frozen=True)
class RowFilter:
    """Choose which descriptors are listed; all that are not zero are, by default."""

    levels: frozenset[int] | None = None
    """Only entries of tables of these levels."""
    kinds: frozenset[str] | None = None
    """Only these kinds: invalid, table, block, page, reserved."""
    bit11: bool | None = None
    """Only descriptors whose bit 11 (nG, or KPTI's mark) is this."""
    memory_type: str = ""
    """Part of the memory type's name, in any case; leaves only."""
    contiguous: bool | None = None
    """Only leaves whose contiguous hint is this."""
    va_range: tuple[int, int] | None = None
    """Only entries that translate an address of this range, both ends included."""
    pa_range: tuple[int, int] | None = None
    """Only leaves that lead into these physical addresses, both ends included."""


@dataclass(frozen=True, eq=False)
class Batch(Columns):
    """Hold some descriptors of one level in order of va; all arrays have shape (n,)."""

    level: int
    """Level of the tables that they stand in."""
    size: int
    """Bytes of address space that each translates."""
    va: NDArray[np.uint64]
    """First address that each translates, canonical."""
    table_pa: NDArray[np.uint64]
    """Physical address of its table."""
    index: NDArray[np.intp]
    """Its slot in that table."""
    raw: NDArray[np.uint64]
    """The eight bytes."""
    output: NDArray[np.uint64]
    """Next table, block or page; 0 where the descriptor is not valid."""
    fact: NDArray[np.intp]
    """Position in `facts`: descriptors that are equal but for the address."""
    facts: tuple[Descriptor, ...]
    """One decoded descriptor of each sort; its raw value and output address are without the address bits."""


def batches(
    snapshot: Snapshot, chosen: RowFilter | None = None, progress: Progress | None = None
) -> Iterator[Batch]:
    """Yield the descriptors of every table that are not zero, level by level, in order of va.

    A table that several ways lead to is listed once, at the lowest address in `va_range`. Tables that could
    not be read have no rows. Raises UserError if `va_range` lies outside the regime's half.
    """
    wanted = chosen or RowFilter()
    tables, regime = snapshot.tables, snapshot.regime
    window = Window.of(wanted.va_range, regime)
    if wanted.kinds is not None and wanted.kinds - {str(kind) for kind in Kind}:
        raise UserError(f"no kind of descriptor: {', '.join(sorted(wanted.kinds - set(Kind)))}")
    index = TableIndex(tables)
    sorts = _Sorts(snapshot, wanted)
    done, total = 0, len(tables)
    for level, found, begin in _all(snapshot, index) if window.whole else _reached(snapshot, index, window):
        if wanted.levels is None or level in wanted.levels:
            good = tables.readable[found]
            rows, va = found[good], begin[good]
            for part in parts(len(rows), tables):
                if progress is not None:
                    progress(done + part.start, total)
                batch = sorts.batch(rows[part], va[part], level, window)
                if len(batch):
                    yield batch
        done += found.shape[0]
    if progress is not None:
        progress(total, total)


Placed = tuple[int, NDArray[np.intp], NDArray[np.uint64]]
"""A level, rows of tables of it, and the first address that each translates; in order of va."""


def _all(snapshot: Snapshot, index: TableIndex) -> Iterator[Placed]:
    """Yield all tables, each at its lowest address."""
    for level in levels_of(snapshot.regime):
        rows = index.numbers(level)
        yield level, rows, snapshot.tables.va[rows]


def _reached(snapshot: Snapshot, index: TableIndex, window: Window) -> Iterator[Placed]:
    """Yield the tables that translate an address of the window.

    Each is at the lowest address at which all of it lies in the window; one that never does, at each
    address at which a part of it does.
    """
    regime = snapshot.regime
    rows, va = np.zeros(1, dtype=np.intp), np.array([int(regime.va_min)], dtype=np.uint64)
    for level in levels_of(regime):
        yield level, rows, va
        if level == LEVEL_LAST or not rows.size:
            return
        good = snapshot.tables.readable[rows]
        links = index.links(take_rows(snapshot.tables.raw, rows[good]), va[good], level, regime, window)
        links = links[links.child >= 0]
        links = links[np.argsort(links.va, kind="stable")]
        whole = np.flatnonzero(window.covers(links.va, regime.entry_size(level)))
        first = whole[np.unique(links.child[whole], return_index=True)[1]]
        parted = np.flatnonzero(~np.isin(links.child, links.child[whole]))
        chosen = links[np.sort(np.concatenate([first, parted]))]
        rows, va = chosen.child, chosen.va


class _Sorts:
    """Decode each distinct combination of bits that are not an address once."""

    def __init__(self, snapshot: Snapshot, wanted: RowFilter) -> None:
        self._tables, self._regime, self._wanted = snapshot.tables, snapshot.regime, wanted
        self._known: dict[tuple[int, int], Descriptor | None] = {}

    def batch(self, rows: NDArray[np.intp], begin: NDArray[np.uint64], level: int, window: Window) -> Batch:
        """Return what the filter accepts of the tables in these rows, which `begin` at ascending va."""
        regime, tables = self._regime, self._tables
        words = take_rows(tables.raw, rows)[:, : regime.entries(level)]
        row, slot = np.nonzero(words)
        raw = words[row, slot]
        size = regime.entry_size(level)
        va = entry_addresses(begin[row], slot, level, regime)
        leaf = are_leaves(raw, level, regime)
        output = np.where(leaf, output_addresses(raw, level, regime), np.uint64(0))
        output = np.where(are_tables(raw, level), next_tables(raw, regime), output)
        kept = np.ones(raw.shape, dtype=np.bool_) if window.whole else window.touches(va, size)
        if self._wanted.pa_range is not None:
            low, high = (np.uint64(end) for end in self._wanted.pa_range)
            kept &= leaf & (output <= high) & (output + np.uint64(size - 1) >= low)
        distinct, fact = np.unique(without_addresses(raw, level, regime), return_inverse=True)
        found = [self._decoded(level, bits) for bits in distinct.tolist()]
        kept &= np.array([sort is not None for sort in found], dtype=np.bool_)[fact.reshape(-1)]
        number = np.cumsum([sort is not None for sort in found]) - 1
        return Batch(
            level=level,
            size=size,
            va=va[kept],
            table_pa=tables.pa[rows][row[kept]],
            index=slot[kept],
            raw=raw[kept],
            output=output[kept],
            fact=number[fact.reshape(-1)[kept]].astype(np.intp),
            facts=tuple(sort for sort in found if sort is not None),
        )

    def _decoded(self, level: int, raw: int) -> Descriptor | None:
        """Return the descriptor, or None if the filter rejects it."""
        key = (level, raw)
        if key not in self._known:
            found = decode(raw, level, self._regime)
            self._known[key] = found if self._accepts(found) else None
        return self._known[key]

    def _accepts(self, found: Descriptor) -> bool:
        wanted, a = self._wanted, found.attributes
        if wanted.kinds is not None and str(found.kind) not in wanted.kinds:
            return False
        if wanted.bit11 is not None and bool(found.raw >> 11 & 1) != wanted.bit11:
            return False
        if wanted.contiguous is not None and (a is None or a.contiguous != wanted.contiguous):
            return False
        name = "" if a is None or a.memory_type is None else a.memory_type
        return not wanted.memory_type or wanted.memory_type.lower() in name.lower()


def sample_leaves(snapshot: Snapshot, count: int) -> list[tuple[int, int]]:
    """Return pairs of virtual and physical address, at most `count` for each level, evenly spread."""
    tables, regime = snapshot.tables, snapshot.regime
    found: list[tuple[int, int]] = []
    index = TableIndex(tables)
    for level in levels_of(regime):
        rows = index.numbers(level)
        at, slots = np.nonzero(are_leaves(take_rows(tables.raw, rows), level, regime))
        for i in np.linspace(0, max(len(at) - 1, 0), min(count, len(at)), dtype=int).tolist():
            row, slot = int(rows[at[i]]), int(slots[i])
            va, _ = place_of(tables, row, slot, regime)
            found.append((va, regime.output_address(int(tables.raw[row, slot]), level)))
    return found
