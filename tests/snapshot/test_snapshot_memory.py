"""A snapshot as a source of guest-physical memory."""

from __future__ import annotations

import numpy as np
import pytest
from builders import OUTSIDE, REGIMES, TreeBuilder, regime_4k

from ptinspect.errors import MemoryReadError
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.tables.capture import capture


@pytest.mark.parametrize("name", REGIMES)
def test_capturing_a_snapshot_gives_the_same_tables(name: str) -> None:
    regime = REGIMES[name]
    tree = TreeBuilder(regime)
    low = int(regime.va_min)
    tree.map(low, 0x8000_0000, size=regime.granule * 3)
    tree.map(low + 2 * regime.entry_size(2), 0x8000_0000)
    tree.point(low + 3 * regime.entry_size(2), 2, OUTSIDE)
    snapshot = tree.snapshot()
    again, truncated = capture(SnapshotMemory(snapshot), tree.root, regime)
    assert not truncated
    for field in ("level", "pa", "va", "raw", "readable"):
        assert np.array_equal(getattr(again, field), getattr(snapshot.tables, field)), field


def test_bytes_are_those_of_the_guest_and_nothing_else_is_there() -> None:
    regime = regime_4k(36)
    tree = TreeBuilder(regime)
    low = int(regime.va_min)
    tree.map(low, 0x8000_0000, size=regime.granule * 300)
    tree.point(low + 3 * regime.entry_size(2), 2, OUTSIDE)
    memory = SnapshotMemory(tree.snapshot("x"))
    table = tree.table_at(low, 2)
    for pa, length in ((table + 0xFF8, 16), (table + 3, 9), (tree.root, 64 * 8), (table, 0x2000), (table, 0)):
        if pa != tree.root:
            assert memory.read(pa, length) == tree.memory.read(pa, length)
    assert memory.read(tree.root, regime.entries(1) * 8) == tree.memory.read(tree.root, regime.entries(1) * 8)
    for pa, length in (
        (tree.root + regime.entries(1) * 8, 8),
        (tree.root - 8, 16),
        (OUTSIDE, 8),
        (table + 0x1FF8, 16),
        (-8, 8),
        (1 << 64, 8),
    ):
        with pytest.raises(MemoryReadError):
            memory.read(pa, length)
    with pytest.raises(MemoryReadError, match="could not be read"):
        memory.read(OUTSIDE + 8, 8)
    assert "x" in memory.label
