"""Descriptors of a capture by their number."""

from __future__ import annotations

from builders import TABLES_AT, TreeBuilder, regime_4k

from ptinspect.snapshot.index import valid_entry


def test_the_nth_valid_descriptor_of_a_level_is_found_in_the_order_of_va() -> None:
    tree = TreeBuilder(regime_4k(48), tables_at=TABLES_AT)
    start = int(tree.regime.va_min)
    places = [start + (7 << 30), start + (5 << 21), start + (5 << 21) + 0x3000, start + (1 << 39)]
    for number, va in enumerate(places):
        tree.map(va, 0x8000_0000 + number * 0x1000, size=0x1000)
    snapshot = tree.snapshot("a")
    for level in (2, 3):
        expected = []
        for row in range(len(snapshot.tables)):
            if snapshot.tables.level[row] == level:
                pa = int(snapshot.tables.pa[row])
                expected += [pa + 8 * n for n in range(512) if int(snapshot.tables.raw[row, n]) & 1]
        assert len(expected) == {2: 3, 3: 4}[level]
        assert [valid_entry(snapshot, level, n) for n in range(len(expected))] == expected
        assert valid_entry(snapshot, level, len(expected)) is None
        assert valid_entry(snapshot, level, -1) is None
