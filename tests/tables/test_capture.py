"""Capture against a slow walker, and against trees made to break it."""

from __future__ import annotations

import numpy as np
import pytest
from builders import (
    OUTSIDE,
    RAM,
    REGIMES,
    TABLES_AT,
    TreeBuilder,
    regime_4k,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparse_memory import SparseMemory

from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.errors import TargetLost, UserError
from ptinspect.tables.capture import BATCH_BYTES, capture
from ptinspect.tables.index import Tables


def slow_capture(tree: TreeBuilder, low: int, high: int, max_level: int = 3) -> dict[tuple[int, int], int]:
    """Follow every path by recursion: (level, table) -> lowest va."""
    regime, found, seen = tree.regime, dict[tuple[int, int], int](), set[tuple[int, int, int]]()

    def visit(level: int, pa: int, va: int) -> None:
        if (level, pa, va) in seen:
            return
        seen.add((level, pa, va))
        found[level, pa] = min(va, found.get((level, pa), va))
        if level == max_level or not RAM.contains(pa, regime.granule):
            return
        for index in range(regime.entries(level)):
            raw = tree.word(pa + 8 * index)
            here = va + (index << regime.shift(level))
            inside = here <= high and here + regime.entry_size(level) - 1 >= low
            if level < LEVEL_LAST and raw & 3 == 3 and inside:
                visit(level + 1, regime.next_table(raw), here)

    visit(regime.start_level, tree.root, int(regime.va_min))
    return found


def as_dict(tables: Tables) -> dict[tuple[int, int], int]:
    return {
        (int(level), int(pa)): int(va)
        for level, pa, va in zip(tables.level, tables.pa, tables.va, strict=True)
    }


def assert_well_formed(tables: Tables, regime: Regime) -> None:
    n = len(tables)
    assert tables.raw.shape == (n, regime.granule // 8) and tables.raw.dtype == np.uint64
    assert tables.pa.shape == tables.va.shape == tables.level.shape == tables.readable.shape == (n,)
    assert (tables.level.dtype, tables.pa.dtype, tables.va.dtype) == (np.int8, np.uint64, np.uint64)
    order = np.lexsort((tables.va, tables.level))
    assert order.tolist() == list(range(n)), "not sorted by (level, va)"
    assert len({(int(a), int(b)) for a, b in zip(tables.level, tables.pa, strict=True)}) == n


@pytest.mark.parametrize("name", REGIMES)
def test_every_table_is_found_with_its_bytes(name: str) -> None:
    regime = REGIMES[name]
    tree = TreeBuilder(regime)
    last = int(regime.va_max) + 1 - regime.granule
    for va in (int(regime.va_min), int(regime.va_min) + 5 * regime.entry_size(2), last):
        tree.map(va, 0x8000_0000)
    if regime.allows_block(2):
        tree.map(int(regime.va_min) + 9 * regime.entry_size(2), 0xC000_0000, level=2)
    tables = tree.capture()
    assert_well_formed(tables, regime)
    assert as_dict(tables) == slow_capture(tree, 0, 1 << 64)
    assert tables.readable.all()
    for i in range(len(tables)):
        size = regime.entries(int(tables.level[i])) * 8
        row = tables.raw[i].astype("<u8").tobytes()
        assert row[:size] == tree.memory.read(int(tables.pa[i]), size)
        assert not any(row[size:])


def test_a_root_smaller_than_a_granule_reads_only_its_own_bytes() -> None:
    regime = regime_4k(36)
    size = regime.entries(regime.start_level) * 8
    assert size < regime.granule
    tree = TreeBuilder(regime, root=RAM.end - size, memory=SparseMemory([RAM]))
    tree.map(int(regime.va_min), 0x8000_0000)
    tables = tree.capture()
    assert tables.readable.all() and len(tables) == 3
    assert tables.raw.shape[1] == 512


@pytest.mark.parametrize("target", ["itself", "root", "parent"])
def test_loops_end(target: str) -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000)
    level = {"itself": 0, "root": 1, "parent": 2}[target]
    to = {"itself": tree.root, "root": tree.root, "parent": tree.table_at(va, 2)}[target]
    tree.point(va + 7 * tree.regime.entry_size(level), level, to)
    tables = tree.capture()
    assert_well_formed(tables, tree.regime)
    assert as_dict(tables) == slow_capture(tree, 0, 1 << 64)
    assert len(tables) <= 4 * len(set(tables.pa.tolist()))


def test_one_page_that_points_to_itself_everywhere_is_one_row_a_level() -> None:
    tree = TreeBuilder(regime_4k(48))
    entry = tree.address_field(tree.root, 0, table=True) | 3
    tree.memory.write(tree.root, np.full(512, entry, dtype="<u8").tobytes())
    tables = tree.capture()
    assert tables.level.tolist() == [0, 1, 2, 3]
    assert set(tables.pa.tolist()) == {tree.root}
    assert set(tables.va.tolist()) == {int(tree.regime.va_min)}


def test_a_shared_table_is_one_row_at_its_lowest_address() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    unit = tree.regime.entry_size(2)
    tree.map(va + 9 * unit, 0x8000_0000)
    tree.share(va + 3 * unit, 2, va + 9 * unit)
    tree.share(va + 11 * unit, 2, va + 9 * unit)
    tables = tree.capture()
    assert tables.va[tables.level == 3].tolist() == [va + 3 * unit]


def test_a_shared_table_that_sticks_out_of_the_range_is_followed_as_far_as_each_way_in_goes() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    for index in (0, 5, 9):
        tree.map(va + index * (2 << 20), 0x8000_0000)
    tree.share(va + (1 << 30), 1, va)
    low, high = va + 3 * (2 << 20), va + (1 << 30) + (2 << 20)
    tables = tree.capture(va_range=(low, high))
    assert as_dict(tables) == slow_capture(tree, low, high)
    at = [int(v) - va for v in tables.va[tables.level == 3]]
    assert at == [5 * (2 << 20), 9 * (2 << 20), 1 << 30]


def test_an_unreadable_table_is_a_row_that_says_so() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000)
    tree.point(va + tree.regime.entry_size(1), 1, OUTSIDE)
    tables = tree.capture()
    bad = np.nonzero(~tables.readable)[0]
    assert tables.pa[bad].tolist() == [OUTSIDE] and tables.level[bad].tolist() == [2]
    assert not tables.raw[bad].any()


def test_an_unreadable_root_is_one_row() -> None:
    tables, truncated = capture(SparseMemory([RAM]), OUTSIDE, regime_4k(48))
    assert len(tables) == 1 and not tables.readable[0] and not truncated


def test_garbage_in_unreadable_rows_is_not_followed() -> None:
    class Careless(SparseMemory):
        def read_tables(
            self, addresses: NDArray[np.uint64], size: int
        ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
            raw, _ = super().read_tables(addresses, size)
            return raw | np.uint64(3), np.zeros(len(addresses), dtype=np.bool_)

    tables, _ = capture(Careless([RAM]), TABLES_AT, regime_4k(48))
    assert len(tables) == 1 and not tables.raw.any()


def test_reserved_and_invalid_encodings_are_never_followed() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000)
    somewhere = tree.new_table()
    tree.set(va + tree.regime.entry_size(0), 0, somewhere | 1)
    tree.set(va + tree.regime.entry_size(1), 1, somewhere | 2)
    tree.set(va + tree.regime.entry_size(3), 3, somewhere | 3)
    assert somewhere not in tree.capture().pa.tolist()


def test_table_addresses_out_of_any_range_do_not_crash() -> None:
    tree = TreeBuilder(regime_4k(48))
    ones = np.full(512, (1 << 64) - 1, dtype="<u8")
    tree.memory.write(tree.root, ones.tobytes())
    tables = tree.capture()
    assert len(tables) == 2 and tables.readable.tolist() == [True, False]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 40, 66])
def test_max_tables_keeps_the_lowest_addresses_and_says_so(limit: int) -> None:
    tree = TreeBuilder(regime_4k(48), top_down=True, tables_at=TABLES_AT + (1 << 24))
    va, unit = int(tree.regime.va_min), tree.regime.entry_size(2)
    for i in range(64):
        tree.map(va + i * unit, 0x8000_0000)
    tables, truncated = capture(tree.memory, tree.root, tree.regime, max_tables=limit)
    assert len(tables) == limit
    assert f"more than {limit} tables" in truncated
    assert_well_formed(tables, tree.regime)
    leaves = tables.va[tables.level == 3]
    assert leaves.tolist() == [va + i * unit for i in range(len(leaves))]
    assert capture(tree.memory, tree.root, tree.regime, max_tables=67)[1] == ""


def test_max_level_limits_the_descent_and_says_so() -> None:
    tree = TreeBuilder(regime_4k(48))
    tree.map(int(tree.regime.va_min), 0x8000_0000)
    tables, truncated = capture(tree.memory, tree.root, tree.regime, max_level=1)
    assert tables.level.tolist() == [0, 1] and truncated == "levels below 1 were not asked for"
    tree.set(int(tree.regime.va_min), 1, 0)
    assert capture(tree.memory, tree.root, tree.regime, max_level=1)[1] == ""


def test_fan_out_of_all_entries_is_read_in_few_calls_of_bounded_size() -> None:
    tree = TreeBuilder(regime_4k(39))
    first = tree.new_table()
    entries = (first + 0x1000 * np.arange(512, dtype=np.uint64)) | np.uint64(3)
    tree.memory.write(tree.root, entries.astype("<u8").tobytes())
    seen: list[int] = []

    class Counting(SparseMemory):
        def read_tables(
            self, addresses: NDArray[np.uint64], size: int
        ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
            seen.append(len(addresses) * size)
            assert (np.diff(addresses.astype(object)) > 0).all()
            return super().read_tables(addresses, size)

    memory = Counting([RAM])
    memory._chunks = tree.memory._chunks
    for i in range(512):
        below = (first + 0x1000 * (512 + 4 * i) + 0x1000 * np.arange(4, dtype=np.uint64)) | np.uint64(3)
        tree.memory.write(first + 0x1000 * i, below.astype("<u8").tobytes())
    calls: list[tuple[int, int]] = []
    tables, _ = capture(
        memory, tree.root, tree.regime, progress=lambda done, known: calls.append((done, known))
    )
    assert len(tables) == 1 + 512 + 2048
    assert len(seen) == 1 + 4 + 16 and max(seen) <= BATCH_BYTES
    assert calls[0] == (1, 1) and calls[-1] == (2561, 2561)
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)


def test_a_lost_target_is_not_swallowed() -> None:
    class Gone(SparseMemory):
        def read_tables(
            self, addresses: NDArray[np.uint64], size: int
        ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
            raise TargetLost("QEMU has ended")

    with pytest.raises(TargetLost):
        capture(Gone([RAM]), TABLES_AT, regime_4k(48))


def test_a_range_outside_the_half_is_refused() -> None:
    tree = TreeBuilder(regime_4k(48))
    with pytest.raises(UserError):
        tree.capture(va_range=(0, 0x1000))
    with pytest.raises(UserError):
        tree.capture(va_range=(int(tree.regime.va_max), int(tree.regime.va_min)))


@st.composite
def tangled(draw: st.DrawFn) -> TreeBuilder:
    """A few tables that point at each other, at RAM that is empty and at nothing."""
    regime = REGIMES[draw(st.sampled_from(["4k-39", "4k-48", "4k-36", "16k-48", "64k-42"]))]
    tree = TreeBuilder(regime)
    count = draw(st.integers(1, 6))
    pages = [tree.root] + [tree.new_table() for _ in range(count)]
    targets = [*pages, OUTSIDE]
    slots = st.sampled_from([0, 1, 2, 3, regime.entries(regime.start_level) - 1])
    for page in pages:
        for slot in draw(st.lists(slots, max_size=4)):
            target = draw(st.sampled_from(targets))
            kind = draw(st.sampled_from([3, 3, 3, 3, 1, 2, 0]))
            tree.set_word(page + 8 * slot, tree.address_field(target, 1, table=True) | kind)
    return tree


@settings(max_examples=150)
@given(tangled(), st.data())
def test_tangled_tables_agree_with_recursion(tree: TreeBuilder, data: st.DataObject) -> None:
    regime = tree.regime
    span = int(regime.va_max) - int(regime.va_min)
    low, high = 0, span
    if data.draw(st.booleans()):
        unit = regime.entry_size(data.draw(st.integers(regime.start_level, 3)))
        edge = st.integers(0, 5).map(lambda n: min(n * unit, span))
        low, high = sorted((data.draw(edge), max(data.draw(edge) - 1, 0)))
    low, high = int(regime.va_min) + low, int(regime.va_min) + high
    max_level = data.draw(st.integers(regime.start_level, 3))
    tables, _ = capture(tree.memory, tree.root, regime, va_range=(low, high), max_level=max_level)
    assert_well_formed(tables, regime)
    assert as_dict(tables) == slow_capture(tree, low, high, max_level)
