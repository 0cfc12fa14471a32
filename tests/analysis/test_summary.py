"""Counts by level, against the scalar decoder."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from builders import CONTIGUOUS, KERNEL_DATA, NG, OUTSIDE, REGIMES, TreeBuilder, regime_4k

from ptinspect.analysis.counts import LevelSummary
from ptinspect.analysis.summary import summarize
from ptinspect.arch.descriptor import Kind, decode
from ptinspect.snapshot.model import Snapshot


def slow_counts(snapshot: Snapshot, level: int) -> Counter[str]:
    found: Counter[str] = Counter()
    tables = snapshot.tables
    for row in np.nonzero(tables.level == level)[0]:
        found["tables"] += 1
        found["unreadable"] += not tables.readable[row]
        for raw in tables.raw[row].tolist():
            d = decode(raw, level, snapshot.regime)
            found["entries_valid"] += d.kind is Kind.TABLE or d.is_leaf
            found["table_descriptors"] += d.kind is Kind.TABLE
            found["table_descriptors_marked"] += d.kind is Kind.TABLE and bool(raw & NG)
            found["leaves"] += d.is_leaf
            found["leaves_ng"] += d.is_leaf and bool(raw & NG)
            found["leaves_contiguous"] += d.is_leaf and bool(raw & CONTIGUOUS)
            found["reserved"] += d.kind is Kind.RESERVED
            found["invalid_nonzero"] += d.kind is Kind.INVALID and raw != 0
    return found


@pytest.mark.parametrize("name", REGIMES)
def test_counts_agree_with_the_decoder(name: str) -> None:
    regime = REGIMES[name]
    tree = TreeBuilder(regime)
    low = int(regime.va_min)
    tree.map(low, 0x8000_0000, size=regime.granule * 40)
    tree.map(
        low + 3 * regime.entry_size(2), 0x9000_0000, size=regime.granule * 16, attributes=KERNEL_DATA | NG
    )
    tree.map(low + 4 * regime.entry_size(2), 0, size=regime.granule * 5, attributes=KERNEL_DATA | CONTIGUOUS)
    tree.point(low + 9 * regime.entry_size(2), 2, OUTSIDE, NG)
    if regime.allows_block(2):
        tree.map(low + 5 * regime.entry_size(2), 0xC000_0000, level=2, attributes=KERNEL_DATA | NG)
    tree.set(low + 50 * regime.granule, 3, 0x1001)
    tree.set(low + 51 * regime.granule, 3, 0x1002)
    tree.share(low + 10 * regime.entry_size(2), 2, low)
    snapshot = tree.snapshot()
    summary = summarize(snapshot)
    assert [s.level for s in summary.levels] == list(range(regime.start_level, 4))
    counted = [
        f.name for f in dataclasses.fields(LevelSummary) if f.name not in ("level", "name", "leaf_size")
    ]
    for found in summary.levels:
        expected = slow_counts(snapshot, found.level)
        for field in counted:
            assert getattr(found, field) == expected[field], (found.level, field)
        blocks = found.level == 3 or regime.allows_block(found.level)
        assert found.leaf_size == (regime.entry_size(found.level) if blocks else 0)
    assert summary.tables == len(snapshot.tables)
    assert summary.leaves == 61 + regime.allows_block(2)
    assert summary.levels[-1].unreadable == 1


def test_chunks_smaller_than_a_level_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptinspect.tables import index

    tree = TreeBuilder(regime_4k(48))
    tree.map(int(tree.regime.va_min), 0, size=7 << 21)
    snapshot = tree.snapshot()
    whole = summarize(snapshot)
    monkeypatch.setattr(index, "CHUNK_WORDS", 1024)
    assert summarize(snapshot) == whole
    assert whole.leaves == 7 * 512
