"""Random trees whose tables point at each other, and recursion over every way through the tables of one."""

from __future__ import annotations

from collections.abc import Iterator

from builders import AF, NG, OUTSIDE, REGIMES, TreeBuilder
from hypothesis import strategies as st

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.descriptor import Descriptor, Kind, decode
from ptinspect.snapshot.model import Snapshot

Way = tuple[int, int, int, Descriptor, tuple[Descriptor, ...]]
"""First address that an entry translates, where it is, its table's row, the entry, and those above it."""


def every_way(snapshot: Snapshot, low: int, high: int) -> Iterator[Way]:
    """Go every way to each entry of a range that is not zero, with the scalar decoder."""
    regime, tables = snapshot.regime, snapshot.tables
    rows = {key: i for i, key in enumerate(zip(tables.level.tolist(), tables.pa.tolist(), strict=True))}

    def visit(level: int, row: int, va: int, above: tuple[Descriptor, ...]) -> Iterator[Way]:
        for slot in range(regime.entries(level) if tables.readable[row] else 0):
            raw, here = int(tables.raw[row, slot]), va + (slot << regime.shift(level))
            if not raw or here > high or here + regime.entry_size(level) - 1 < low:
                continue
            d = decode(raw, level, regime)
            yield here, int(tables.pa[row]) + 8 * slot, row, d, above
            child = rows.get((level + 1, int(d.output_address or 0))) if d.kind is Kind.TABLE else None
            if child is not None:
                yield from visit(level + 1, child, here, (*above, d))

    yield from visit(regime.start_level, 0, int(regime.va_min), ())


@st.composite
def tangled(draw: st.DrawFn) -> Snapshot:
    """A few tables that point at each other and at pages."""
    regime = REGIMES[draw(st.sampled_from(["4k-39", "4k-36", "16k-36", "64k-42"]))]
    tree = TreeBuilder(regime)
    pages = [tree.root] + [tree.new_table() for _ in range(draw(st.integers(1, 3)))]
    slots = st.sampled_from([0, 1, 2, 3, regime.entries(regime.start_level) - 1])
    target = st.sampled_from([*pages, OUTSIDE, 0x8000_0000, 0x8000_0000 + regime.granule])
    extra = st.sampled_from([AF, AF | NG, 1 << 59, AF | 3 << 61])
    for _ in range(draw(st.integers(0, 12))):
        page, slot, to = draw(st.sampled_from(pages)), draw(slots), draw(target)
        raw = tree.address_field(to, 3, table=True) | draw(extra) | draw(st.sampled_from([0, 1, 2, 3, 3, 3]))
        tree.set_word(page + 8 * slot, raw)
    low = int(regime.va_min)
    if draw(st.booleans()):
        unit = regime.entry_size(draw(st.integers(regime.start_level, 3)))
        ends = sorted(draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)))
        return tree.snapshot(
            va_range=(low + ends[0] * unit, min(low + ends[1] * unit + 0xFFF, int(regime.va_max)))
        )
    return tree.snapshot()


@st.composite
def two_trees(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """Two small trees in which tables point at each other, with few bits of difference."""
    regime = REGIMES[draw(st.sampled_from(["4k-39", "4k-48", "4k-36", "16k-36"]))]
    tree = TreeBuilder(regime)
    pages = [tree.root] + [tree.new_table() for _ in range(draw(st.integers(1, 4)))]
    slots = st.sampled_from([0, 1, 2, regime.entries(regime.start_level) - 1])
    target = st.sampled_from([*pages, OUTSIDE, 0x8000_0000])
    entry = st.tuples(
        st.sampled_from(pages), slots, target, st.sampled_from([0, 1, 2, 3, 3, 3]), st.booleans()
    )

    def fill(entries: list[tuple[int, int, int, int, bool]]) -> None:
        for page, slot, to, kind, mark in entries:
            tree.set_word(page + 8 * slot, tree.address_field(to, 2, table=True) | kind | (NG if mark else 0))

    def part() -> dict[str, object]:
        if draw(st.booleans()):
            return {}
        if draw(st.booleans()):
            return {"max_tables": draw(st.integers(1, 4))}
        unit = regime.entry_size(draw(st.integers(regime.start_level, 3)))
        ends = sorted(draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)))
        low = int(regime.va_min)
        return {"va_range": (low + ends[0] * unit, min(low + ends[1] * unit + 0xFFF, int(regime.va_max)))}

    fill(draw(st.lists(entry, max_size=10)))
    a = tree.snapshot("a", **part())
    fill(draw(st.lists(entry, max_size=6)))
    if draw(st.booleans()):
        tree.root = PhysAddr(draw(st.sampled_from(pages)))
    return a, tree.snapshot("b", **part())
