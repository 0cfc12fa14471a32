"""Regions of an address space: what of each is mapped, and how."""

from __future__ import annotations

import numpy as np
import pytest
from builders import KERNEL_DATA, KERNEL_TEXT, NG, REGIMES, TreeBuilder, regime_4k

from ptinspect.analysis.areas import areas
from ptinspect.analysis.map import half_namer


@pytest.mark.parametrize("name", ["4k-48", "4k-48-user", "16k-47", "64k-52-lpa"])
def test_each_region_has_what_was_mapped_in_it(name: str) -> None:
    tree = TreeBuilder(REGIMES[name])
    low, page = int(tree.regime.va_min), tree.regime.granule
    tree.map(low, 0x4400_0000, size=6 * page, level=3, attributes=KERNEL_DATA)
    tree.map(low + 8 * page, 0x4800_0000, size=2 * page, level=3, attributes=KERNEL_TEXT | NG)
    edges = [low + 4 * page, low + 16 * page]

    def namer(va: int) -> str:
        return "abc"[sum(va >= edge for edge in edges)]

    found, incomplete = areas(tree.snapshot(), namer, edges)
    assert not incomplete
    assert [(area.va_start, area.name, len(area.runs)) for area in found] == [
        (low, "a", 1),
        (edges[0], "b", 2),
        (edges[1], "c", 0),
    ]
    sizes = [[(share.el1, share.ng, share.size // page) for share in area.shares] for area in found]
    assert [sorted(each) for each in sizes] == [
        [("rw-", False, 4)],
        [("r-x", True, 2), ("rw-", False, 2)],
        [],
    ]
    assert sum(area.size for area in found) == 1 << tree.regime.va_bits


def test_repeated_tables_count_at_each_address() -> None:
    """KASAN's shadow while the rewrite is in it: tables of each level lead to one table below."""
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x4400_0000, attributes=KERNEL_DATA)
    for level in (3, 2):
        table = tree.table_at(low, level)
        words = np.full(512, int.from_bytes(tree.memory.read(table, 8), "little"), dtype="<u8")
        words[: 200 if level == 3 else 0] |= np.uint64(NG)
        tree.memory.write(table, words.tobytes())
    for number in range(1, 100):
        tree.share(low + (number << 30), 1, low)
    (area,), incomplete = areas(tree.snapshot(), half_namer(tree.regime), [])
    assert not incomplete and len(area.runs) == 2
    assert {share.ng: share.size for share in area.shares} == {
        True: 100 * 512 * 200 << 12,
        False: 100 * 512 * 312 << 12,
    }
    assert area.mapped == 100 << 30


def test_a_region_can_begin_within_a_page_and_pages_lie_anywhere() -> None:
    tree = TreeBuilder(REGIMES["4k-48"])
    low, page = int(tree.regime.va_min), tree.regime.granule
    for number in range(64):
        tree.map(low + number * page, 0x4400_0000 + (number * 37 % 64) * page, level=3)
    edge = low + 20 * page + 0x123
    found, _ = areas(tree.snapshot(), lambda va: "ab"[va >= edge], [edge])
    (first,), (second,) = (area.runs for area in found)
    assert (first.count, second.count, second.va_start) == (21, 43, low + 21 * page)
    assert [run.pa_start for run in (first, second)] == [0x4400_0000, 0x4400_0000 + (21 * 37 % 64) * page]
    assert [area.mapped // page for area in found] == [21, 43]
