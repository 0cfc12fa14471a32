"""Descriptors of a range: what recursion finds in it, each once, at its lowest address there."""

from __future__ import annotations

from builders import KERNEL_DATA, TreeBuilder, regime_4k
from hypothesis import given, settings
from hypothesis import strategies as st
from tangled import every_way, tangled

from ptinspect.analysis.descriptor_batches import RowFilter, batches
from ptinspect.snapshot.model import Snapshot

Slot = tuple[int, int, int]
"""Level, address of the table, index."""


def slow_slots(snapshot: Snapshot, low: int, high: int) -> dict[Slot, list[int]]:
    """Return the addresses of each entry that is not zero in a range."""
    found: dict[Slot, list[int]] = {}
    for va, pa, row, d, _ in every_way(snapshot, low, high):
        table = int(snapshot.tables.pa[row])
        found.setdefault((d.level, table, (pa - table) // 8), []).append(va)
    return found


def listed(snapshot: Snapshot, low: int, high: int) -> list[tuple[Slot, int]]:
    found = []
    for batch in batches(snapshot, RowFilter(va_range=(low, high))):
        columns = (batch.table_pa.tolist(), batch.index.tolist(), batch.va.tolist())
        found += [((batch.level, pa, index), va) for pa, index, va in zip(*columns, strict=True)]
    return found


@settings(max_examples=150)
@given(tangled(), st.data())
def test_a_range_lists_the_entries_in_it(snapshot: Snapshot, data: st.DataObject) -> None:
    regime = snapshot.regime
    unit = regime.entry_size(data.draw(st.integers(regime.start_level, 3)))
    ends = sorted(data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=2)))
    low = int(regime.va_min) + ends[0] * unit + data.draw(st.sampled_from([0, 0x1000]))
    high = min(int(regime.va_min) + ends[1] * unit + 0x1FFF, int(regime.va_max))
    wanted = slow_slots(snapshot, low, high)
    found = listed(snapshot, low, high)
    assert {slot for slot, _ in found} == set(wanted)
    assert all(va in wanted[slot] for slot, va in found)


def test_a_shared_table_is_listed_in_the_range_of_its_second_address() -> None:
    tree = TreeBuilder(regime_4k(48))
    low = int(tree.regime.va_min)
    tree.map(low, 0x8000_0000, size=8 << 12, attributes=KERNEL_DATA)
    tree.share(low + (2 << 20), 2, low)
    tree.share(low + (4 << 20), 2, low)
    snapshot, second, third = tree.snapshot(), low + (2 << 20), low + (4 << 20)
    pages = [va for slot, va in listed(snapshot, second, third + 0xFFFFF) if slot[0] == 3]
    assert pages == [second + n * 0x1000 for n in range(8)], "once, at the lowest address in the range"
    pages = [va for slot, va in listed(snapshot, third + 0x2000, third + 0x3FFF) if slot[0] == 3]
    assert pages == [third + 0x2000, third + 0x3000]
    assert len([1 for slot, _ in listed(snapshot, low, int(tree.regime.va_max)) if slot[0] == 3]) == 8
