"""Random trees whose tables point at each other: shared tables, loops, moved roots, cut captures."""

from __future__ import annotations

from builders import NG, OUTSIDE, REGIMES, TreeBuilder
from hypothesis import strategies as st

from ptinspect.arch.bits import PhysAddr
from ptinspect.snapshot.model import Snapshot


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
