"""The walk of one address, over every granule, and each way it can end."""

from __future__ import annotations

import dataclasses

import pytest
from builders import AF, EL0, OUTSIDE, REGIMES, TreeBuilder, regime_4k, snapshot_of
from sparse_memory import SparseMemory

from ptinspect.arch.descriptor import Kind
from ptinspect.arch.levels import level_name, levels_of
from ptinspect.errors import TargetLost, UserError
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.tables.walk import Walk, walk


def walk_in(tree: TreeBuilder, va: int, **changes: object) -> Walk:
    regime = dataclasses.replace(tree.regime, **changes) if changes else tree.regime  # type: ignore[arg-type]
    return walk(tree.memory, va, tree.root, regime)


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("where", ["first", "last"])
def test_pages_and_blocks_lead_to_their_address(name: str, where: str) -> None:
    regime = REGIMES[name]
    for level in levels_of(regime):
        if level < 3 and not regime.allows_block(level):
            continue
        tree = TreeBuilder(regime)
        size = regime.entry_size(level)
        va = int(regime.va_min) if where == "first" else int(regime.va_max) - size + 1
        pa = size * 5 if regime.pa_bits < 52 else (1 << 51) + size
        if pa >> regime.pa_bits:
            pa = 0
        tree.map(va, pa, level=level)
        for source in (tree.memory, SnapshotMemory(tree.snapshot())):
            found = walk(source, va + size - 3, tree.root, regime)
            assert (found.outcome, found.pa, found.fault_level, found.reason) == (
                "mapped", pa + size - 3, None, "",
            )  # fmt: skip
            assert [s.level for s in found.steps] == list(range(regime.start_level, level + 1))
            assert [s.name for s in found.steps] == [level_name(s.level, regime) for s in found.steps]
            assert found.leaf is not None and found.leaf.level == level
            for step in found.steps:
                assert step.descriptor_pa == step.table_pa + 8 * step.index
                assert step.raw == tree.word(step.descriptor_pa) and step.error == ""
            assert found.steps[0].table_pa == tree.root
        miss = walk(tree.memory, va ^ size, tree.root, regime)
        assert (miss.outcome, miss.fault_level, miss.pa) == ("fault", level, None)


def test_one_read_of_eight_bytes_per_level() -> None:
    class Counting(SparseMemory):
        lengths: list[int]

        def read(self, pa: int, length: int) -> bytes:
            self.lengths.append(length)
            return super().read(pa, length)

    tree = TreeBuilder(regime_4k(48))
    tree.map(int(tree.regime.va_min), 0x8000_0000)
    memory = Counting(tree.memory.ram)
    memory._chunks, memory.lengths = tree.memory._chunks, []
    walk(memory, int(tree.regime.va_min), tree.root, tree.regime)
    assert memory.lengths == [8] * 4


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_fault_at_each_level(level: int) -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000)
    tree.set(va, level, 0xABCD_0002)
    found = walk_in(tree, va)
    assert (found.outcome, found.fault_level, len(found.steps)) == ("fault", level, level + 1)
    assert f"invalid descriptor at level {level}" in found.reason
    assert found.permissions is None and found.leaf is None


@pytest.mark.parametrize("level", [0, 3])
def test_a_reserved_encoding_is_a_fault_and_named(level: int) -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000)
    tree.set(va, level, 0x8000_0000 | AF | 1)
    found = walk_in(tree, va)
    assert (found.outcome, found.fault_level) == ("fault", level)
    assert "reserved" in found.reason
    assert found.steps[-1].descriptor is not None and found.steps[-1].descriptor.kind is Kind.RESERVED


def test_an_unreadable_table_is_no_fault() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.point(va, 1, OUTSIDE)
    for memory in (tree.memory, SnapshotMemory(tree.snapshot())):
        found = walk(memory, va, tree.root, tree.regime)
        assert (found.outcome, found.fault_level, found.pa) == ("unreadable", None, None)
        last = found.steps[-1]
        assert (last.level, last.raw, last.descriptor, last.table_pa) == (2, None, None, OUTSIDE)
        assert hex(OUTSIDE) in last.error and found.reason == last.error


def test_what_was_not_captured_is_unreadable() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000)
    part = snapshot_of(tree.memory, tree.root, tree.regime, max_level=2)
    found = walk(SnapshotMemory(part), va, tree.root, tree.regime)
    assert found.outcome == "unreadable" and "not in snapshot" in found.reason


def test_a_lost_target_is_not_an_outcome() -> None:
    class Gone(SparseMemory):
        def read(self, pa: int, length: int) -> bytes:
            raise TargetLost("QEMU has ended")

    with pytest.raises(TargetLost):
        walk(Gone([]), int(regime_4k(48).va_min), 0, regime_4k(48))


def test_tables_that_loop_end_at_the_last_level() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.set(va, 0, tree.root | AF | 3)
    found = walk_in(tree, va + 0x123)
    assert (found.outcome, found.pa, len(found.steps)) == ("mapped", tree.root + 0x123, 4)


def test_an_address_in_neither_half_faults_with_no_step() -> None:
    regime = regime_4k(48)
    tree = TreeBuilder(regime)
    tree.map(int(regime.va_min), 0x8000_0000)
    found = walk_in(tree, 0x0080_0000_0000_0000 | 1 << 48)
    assert (found.outcome, found.fault_level, found.steps) == ("fault", 0, ())
    assert "outside both halves" in found.reason
    va = int(regime.va_min)
    tagged = va & ~(0xFF << 56) | 0xAB << 56
    assert walk_in(tree, tagged).outcome == "fault"
    assert walk_in(tree, tagged, tbi=True).pa == 0x8000_0000


def test_an_address_of_the_other_half_is_refused() -> None:
    tree = TreeBuilder(regime_4k(48))
    with pytest.raises(UserError, match="TTBR1"):
        walk_in(tree, 0x1000)
    with pytest.raises(UserError, match="TTBR0"):
        walk_in(tree, int(tree.regime.va_min), upper=False)


def test_access_flag_size_and_epd_faults() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000, attributes=0)
    tree.map(va + 0x1000, 1 << 45)
    tree.map(va + 0x2000, 0x8000_0000)
    tree.point(va + tree.regime.entry_size(2), 2, 1 << 45)
    old = walk_in(tree, va)
    assert (old.outcome, old.fault_level, old.pa) == ("fault", 3, None) and "Access flag" in old.reason
    assert walk_in(tree, va, ha=True).outcome == "mapped"
    wide = walk_in(tree, va + 0x1000, pa_bits=44)
    assert (wide.outcome, wide.fault_level) == ("fault", 3) and "address size" in wide.reason
    assert walk_in(tree, va + 0x1000).pa == 1 << 45
    table = walk_in(tree, va + tree.regime.entry_size(2), pa_bits=44)
    assert (table.outcome, table.fault_level) == ("fault", 2) and "address size" in table.reason
    off = walk_in(tree, va + 0x2000, epd=True)
    assert (off.outcome, off.fault_level, len(off.steps)) == ("fault", 0, 4) and "EPD1" in off.reason
    assert walk_in(tree, va + 0x2000, mmu_on=False).outcome == "mapped"


def test_permissions_come_from_all_levels() -> None:
    tree = TreeBuilder(regime_4k(48))
    va = int(tree.regime.va_min)
    tree.map(va, 0x8000_0000, attributes=AF | EL0)
    found = walk_in(tree, va).permissions
    assert found is not None and (found.el1, found.el0) == ("rw-", "rwx")
    tree.xor(va, 1, 1 << 62 | 1 << 60)
    found = walk_in(tree, va).permissions
    assert found is not None and (found.el1, found.el0) == ("r-x", "r--")
