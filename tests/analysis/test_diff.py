"""The diff against a slow one over dictionaries, and by the kinds of change that matter."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from builders import (
    EL0,
    KERNEL_DATA,
    NG,
    OUTSIDE,
    REGIMES,
    TABLES_AT,
    TreeBuilder,
    copy_tables,
    regime_4k,
)
from hypothesis import given, settings
from tangled import two_trees

from ptinspect.analysis.counts import LevelDiff
from ptinspect.analysis.diff import Diff, diff
from ptinspect.arch.descriptor import Kind, decode
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.errors import SnapshotError
from ptinspect.snapshot.model import Snapshot

COUNTS = [f.name for f in dataclasses.fields(LevelDiff) if f.name not in ("level", "name", "tables")]
VALID = (Kind.TABLE, Kind.BLOCK, Kind.PAGE)


def slow_kinds(a: int, b: int, level: int, regime: Regime) -> set[str]:
    """Judge one pair of different descriptors with the scalar decoder."""
    before, after = decode(a, level, regime), decode(b, level, regime)
    if before.kind not in VALID or after.kind not in VALID:
        if before.kind in VALID:
            return {"lost"}
        return {"new"} if after.kind in VALID else {"invalid_changed"}
    if before.kind is not after.kind:
        return {"kind"}
    found = set()
    if (a ^ b) & NG:
        word = ("marked", "unmarked") if before.kind is Kind.TABLE else ("ng_set", "ng_cleared")
        found.add(word[0] if b & NG else word[1])
    if before.output_address != after.output_address:
        found.add("retargeted")
    rest = (a ^ b) & ~NG
    for position in range(2, 64):
        moved = decode(a ^ 1 << position, level, regime).output_address != before.output_address
        if rest >> position & 1 and not moved:
            found.add("attributes")
    return found


def slow_diff(a: Snapshot, b: Snapshot) -> tuple[dict[int, Counter[str]], set[tuple[int, int, str]]]:
    """Diff by recursion over pairs of tables: counts by level, and (level, va, kinds) beyond bit 11."""
    regime = a.regime
    low = max(int(s.va_range[0]) if s.va_range else 0 for s in (a, b))
    high = min(int(s.va_range[1]) if s.va_range else 1 << 64 for s in (a, b))
    rows = [
        {
            (int(level), int(pa)): i
            for i, (level, pa) in enumerate(zip(s.tables.level, s.tables.pa, strict=True))
        }
        for s in (a, b)
    ]
    done: dict[tuple[int, int, int, int], set[str]] = {}
    counts: dict[int, Counter[str]] = {level: Counter() for level in levels_of(regime)}
    beyond: dict[tuple[int, int, int, int], tuple[int, str]] = {}
    unreadable = set()
    seen = set()

    def visit(level: int, row_a: int, row_b: int, va: int) -> None:
        if (level, row_a, row_b, va) in seen:
            return
        seen.add((level, row_a, row_b, va))
        if not (a.tables.readable[row_a] and b.tables.readable[row_b]):
            unreadable.add((level, row_a, row_b))
            return
        for slot in range(regime.entries(level)):
            here = va + (slot << regime.shift(level))
            if here > high or here + regime.entry_size(level) - 1 < low:
                continue
            old, now = int(a.tables.raw[row_a, slot]), int(b.tables.raw[row_b, slot])
            key = (level, row_a, row_b, slot)
            if old != now:
                kinds = done.setdefault(key, slow_kinds(old, now, level, regime))
                if kinds - {"marked", "unmarked", "ng_set", "ng_cleared"}:
                    words = "+".join(sorted(kinds)).replace("invalid_changed", "invalid")
                    beyond[key] = min((here, words), beyond.get(key, (here, words)))
            if level < 3 and old & 3 == 3 and now & 3 == 3:
                children = [
                    r.get((level + 1, int(regime.next_table(raw))))
                    for r, raw in zip(rows, (old, now), strict=True)
                ]
                if children[0] is not None and children[1] is not None:
                    visit(level + 1, children[0], children[1], here)

    visit(regime.start_level, 0, 0, int(regime.va_min))
    for key, kinds in done.items():
        counts[key[0]]["changed"] += 1
        counts[key[0]].update(kinds)
    for key in unreadable:
        counts[key[0]]["unreadable"] += 1
    return counts, {(key[0], va, words) for key, (va, words) in beyond.items()}


def assert_agrees(a: Snapshot, b: Snapshot) -> Diff:
    found = diff(a, b)
    counts, beyond = slow_diff(a, b)
    for level in found.levels:
        for name in COUNTS:
            assert getattr(level, name) == counts[level.level][name], (level.level, name)
    listed = {
        (c.level, int(c.va_start), "+".join(sorted(c.kinds))) for c in found.changes if c.before is not None
    }
    assert listed == beyond
    assert found.changes_total == len(found.changes)
    assert found.only_bit11 == (found.complete and not found.changes)
    return found


def small_tree(regime: Regime) -> TreeBuilder:
    tree = TreeBuilder(regime)
    low = int(regime.va_min)
    tree.map(low, 0x8000_0000, size=regime.granule * 40)
    tree.map(low + 3 * regime.entry_size(2), 0x9000_0000, size=regime.granule * 5)
    if regime.allows_block(2):
        tree.map(low + 5 * regime.entry_size(2), 0xC000_0000, level=2)
    return tree


def level_of(found: Diff, level: int) -> LevelDiff:
    return next(item for item in found.levels if item.level == level)


@pytest.mark.parametrize("name", REGIMES)
def test_equal_snapshots(name: str) -> None:
    a = small_tree(REGIMES[name]).snapshot("a")
    found = assert_agrees(a, copy_tables(a, "b"))
    assert found.only_bit11 and found.complete and not found.changes and not found.notes
    assert found.changed == 0 and (found.a, found.b) == ("a", "b")
    assert sum(level.tables for level in found.levels) == len(a.tables)


@pytest.mark.parametrize("name", REGIMES)
def test_a_kpti_rewrite_is_only_bit_11(name: str) -> None:
    a = small_tree(REGIMES[name]).snapshot("a")
    b = copy_tables(a, "b")
    b.tables.raw[(b.tables.raw & 1) != 0] |= np.uint64(NG)
    found = assert_agrees(a, b)
    assert found.only_bit11 and not found.changes
    tables = len(a.tables) - 1
    assert sum(level.marked for level in found.levels) == tables
    assert sum(level.ng_set for level in found.levels) == 45 + REGIMES[name].allows_block(2)
    back = diff(b, a)
    assert sum(level.unmarked for level in back.levels) == tables
    assert sum(level.ng_cleared for level in back.levels) == sum(level.ng_set for level in found.levels)


@pytest.mark.parametrize("name", ["4k-48", "4k-52-lpa2", "16k-47", "64k-52-lpa"])
def test_every_bit_of_every_kind_of_descriptor_is_judged_as_the_decoder_does(name: str) -> None:
    regime = REGIMES[name]
    a = small_tree(regime).snapshot("a")
    spots = [(row, 0) for row in range(len(a.tables))]
    if regime.allows_block(2):
        spots.append((int(np.nonzero(a.tables.level == 2)[0][0]), 5))
    spots.append((len(a.tables) - 1, 100))
    for position in range(64):
        b = copy_tables(a, "b")
        for row, slot in spots:
            b.tables.raw[row, slot] ^= np.uint64(1 << position)
        found, (counts, _) = diff(a, b), slow_diff(a, b)
        for level in found.levels:
            for word in COUNTS:
                if word != "unreadable":
                    assert getattr(level, word) == counts[level.level][word], (position, level.level, word)


def test_a_lost_pmd_entry_is_named_with_what_hung_below() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    a = tree.snapshot("a")
    where, raw = tree.slot(va, 2), tree.get(va, 2)
    tree.set(va, 2, 0)
    b = tree.snapshot("b")
    found = assert_agrees(a, b)
    (change,) = found.changes
    assert (change.level, change.descriptor_pa, change.before, change.after) == (2, where, raw, 0)
    assert (change.va_start, change.va_end) == (va, va + (2 << 20) - 1)
    assert change.kinds == ("lost",) and change.descriptor_pa_after == where
    assert (change.leaves_before, change.bytes_before) == (40, 40 << 12)
    assert (change.leaves_after, change.bytes_after) == (0, 0)
    assert not found.only_bit11 and found.complete
    assert level_of(found, 2).lost == 1 and level_of(found, 3).changed == 0
    (back,) = diff(b, a).changes
    assert back.kinds == ("new",) and (back.leaves_after, back.leaves_before) == (40, 0)


def test_a_reverted_pgd_entry_is_retargeted_and_followed() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    a = tree.snapshot("a")
    boot = tree.new_table()
    old = tree.table_at(va, 1)
    tree.point(va, 0, boot)
    tree.point(va + tree.regime.entry_size(1), 1, tree.new_table())
    found = assert_agrees(a, tree.snapshot("b"))
    top, lost, new = found.changes
    assert (top.level, top.kinds) == (0, ("retargeted",))
    assert top.leaves_before == 46 and top.leaves_after == 0
    assert top.bytes_before == (45 << 12) + (2 << 20)
    assert (lost.level, lost.kinds, lost.leaves_before) == (1, ("lost",), 46)
    assert lost.descriptor_pa == old and lost.descriptor_pa_after == boot
    assert (new.level, new.kinds) == (1, ("new",))


def test_a_tree_that_moved_whole_differs_only_where_it_is_pointed_to() -> None:
    regime = regime_4k(48)
    a = small_tree(regime).snapshot("a")
    other = TreeBuilder(regime, tables_at=TABLES_AT + (64 << 20))
    other.map(int(regime.va_min), 0x8000_0000, size=40 << 12)
    other.map(int(regime.va_min) + (6 << 20), 0x9000_0000, size=5 << 12)
    other.map(int(regime.va_min) + (10 << 20), 0xC000_0000, level=2)
    found = assert_agrees(a, other.snapshot("b"))
    assert [c.kinds for c in found.changes] == [("retargeted",)] * 4
    assert level_of(found, 3).changed == 0
    assert any("the roots differ" in note for note in found.notes)


def test_kind_attributes_and_several_kinds_at_once() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    a = tree.snapshot("a")
    tree.map(va, 0x8000_0000, level=2)
    tree.set(va + (6 << 20), 3, tree.leaf(0xA000_0000, 3, KERNEL_DATA | NG | EL0))
    tree.set(va + (6 << 20) + 0x1000, 3, 0x1234 << 12 | 2)
    tree.set(va + (6 << 20) + 0x8000, 3, 0x5678 << 12 | NG)
    found = assert_agrees(a, tree.snapshot("b"))
    kinds = {int(c.va_start) - va: c.kinds for c in found.changes}
    assert kinds == {
        0: ("kind",),
        6 << 20: ("ng_set", "retargeted", "attributes"),
        (6 << 20) + 0x1000: ("lost",),
        (6 << 20) + 0x8000: ("invalid",),
    }
    block = found.changes[0]
    assert (block.leaves_before, block.leaves_after, block.bytes_after) == (40, 1, 2 << 20)
    assert level_of(found, 3).invalid_changed == 1 and level_of(found, 3).lost == 1


@pytest.mark.parametrize("who", ["a", "b", "both"])
def test_an_unreadable_table_is_neither_equal_nor_lost(who: str) -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    good = tree.snapshot("good")
    tree.point(va + (6 << 20), 2, OUTSIDE)
    bad = tree.snapshot("bad")
    a, b = {"a": (bad, good), "b": (good, bad), "both": (bad, bad)}[who]
    found = assert_agrees(a, b)
    change = next(c for c in found.changes if c.kinds == ("unreadable",))
    assert (change.level, change.before, change.after) == (3, None, None)
    assert (change.va_start, change.va_end) == (va + (6 << 20), va + (8 << 20) - 1)
    assert "could not be read in bad" in change.note
    assert level_of(found, 3).unreadable == 1 and level_of(found, 3).changed == 0
    assert not found.only_bit11


def test_an_unreadable_root() -> None:
    a = small_tree(regime_4k(48)).snapshot("a")
    tables = dataclasses.replace(
        a.tables, readable=np.zeros(len(a.tables), dtype=np.bool_), raw=np.zeros_like(a.tables.raw)
    )
    found = diff(a, dataclasses.replace(a, tables=tables, name="b"))
    (change,) = found.changes
    assert (change.va_start, change.va_end) == (a.regime.va_min, a.regime.va_max)
    assert not found.only_bit11


def test_what_one_side_did_not_capture_is_said_and_not_called_equal() -> None:
    tree = small_tree(regime_4k(48))
    whole, part = tree.snapshot("whole"), tree.snapshot("part", max_level=2)
    for a, b in ((whole, part), (part, whole)):
        found = diff(a, b)
        assert not found.changes and not found.complete and not found.only_bit11
        assert any("part is incomplete" in note for note in found.notes)
        assert any("2 tables are not in both" in note for note in found.notes)


def test_only_the_common_part_is_compared() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    a = tree.snapshot("a", va_range=(va + 0x3000, va + 0x8FFF))
    for page in (0, 2, 3, 5, 8, 9, 39):
        tree.xor(va + page * 0x1000, 3, EL0)
    tree.set(va + (6 << 20), 2, 0)
    b = tree.snapshot("b", va_range=(va + 0x5000, va + (512 << 20)))
    found = assert_agrees(a, b)
    assert [int(c.va_start) - va for c in found.changes] == [0x5000, 0x8000]
    assert found.complete and any("was compared" in note for note in found.notes)
    assert [int(c.va_start) - va for c in diff(b, a).changes] == [0x5000, 0x8000]
    far = tree.snapshot("far", va_range=(va + (1 << 40), va + (1 << 41)))
    with pytest.raises(SnapshotError, match="no address in common"):
        diff(a, far)


@pytest.mark.parametrize("third", [False, True])
def test_a_shared_table_that_sticks_out_at_both_ends_counts_each_slot_once(third: bool) -> None:
    tree = small_tree(regime_4k(48))
    va, unit = int(tree.regime.va_min), 2 << 20
    for index in range(12):
        tree.map(va + index * unit, 0x9000_0000)
    tree.share(va + (1 << 30), 1, va)
    tree.share(va + (2 << 30), 1, va)
    if not third:
        tree.set(va + (1 << 30), 1, 0)
    part = (va + 3 * unit, va + (2 << 30) + 6 * unit)
    a = tree.snapshot("a", va_range=part)
    for index in (0, 4, 5, 11):
        tree.xor(va + index * unit, 2, 1 << 59)
    tree.xor(va + 3 * unit, 2, NG)
    tree.xor(va + 2 * unit, 2, NG)
    b = tree.snapshot("b", va_range=part)
    found = diff(a, b) if third else assert_agrees(a, b)
    assert (level_of(found, 2).attributes, level_of(found, 2).marked) == (4, 2)
    assert level_of(found, 2).changed == 6 and found.changes_total == 4


def test_what_lies_outside_the_common_part_is_not_counted() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    part = (va + 0x3000, va + 0x8FFF)
    a = tree.snapshot("a", va_range=part)
    for page in range(40):
        tree.xor(va + page * 0x1000, 3, NG)
    found = assert_agrees(a, tree.snapshot("b", va_range=part))
    assert (level_of(found, 3).ng_set, level_of(found, 3).changed) == (6, 6)


def test_bit_11_with_something_else_is_no_attribute() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    a = tree.snapshot("a")
    tree.xor(va, 3, NG | 0x1000)
    (change,) = assert_agrees(a, tree.snapshot("b")).changes
    assert change.kinds == ("ng_set", "retargeted")


def test_a_shared_table_is_compared_once() -> None:
    tree = small_tree(regime_4k(48))
    va = int(tree.regime.va_min)
    for i in range(20, 60):
        tree.share(va + i * (2 << 20), 2, va)
    a = tree.snapshot("a")
    tree.xor(va, 3, EL0)
    found = assert_agrees(a, tree.snapshot("b"))
    assert level_of(found, 3).changed == 1 and [int(c.va_start) for c in found.changes] == [va]


@pytest.mark.parametrize(
    "changes",
    [{"va_bits": 39}, {"granule_bits": 14}, {"upper": False}, {"ds": True, "pa_bits": 52}],
)
def test_other_geometries_are_refused(changes: dict[str, object]) -> None:
    regime = regime_4k(48)
    other = dataclasses.replace(regime, **changes)  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match="cannot be compared"):
        diff(TreeBuilder(regime).snapshot("a"), TreeBuilder(other).snapshot("b"))


def test_other_memory_types_are_noted() -> None:
    a = TreeBuilder(regime_4k(48)).snapshot("a")
    b = TreeBuilder(regime_4k(48, mair=1)).snapshot("b")
    assert any("MAIR_EL1" in note for note in diff(a, b).notes)
    indirect = dataclasses.replace(a.regime, pie=True, pir=0xA5, hpd=True)
    notes = diff(a, dataclasses.replace(a, regime=indirect)).notes
    assert "PIR_EL1 differs: 0x0 and 0xa5" in notes, "equal bits, other permissions"


def test_the_list_is_bounded_and_the_count_is_not() -> None:
    tree = TreeBuilder(regime_4k(48))
    tree.map(int(tree.regime.va_min), 0x8000_0000, size=3000 << 12)
    a = tree.snapshot("a")
    b = copy_tables(a, "b")
    b.tables.raw[b.tables.level == 3] ^= np.uint64(EL0)
    found = diff(a, b, max_changes=700)
    assert len(found.changes) == 700 and found.changes_total == 6 * 512
    assert "700 of 3072 changes are listed" in found.notes
    assert level_of(found, 3).changed == 3072
    starts = [c.va_start for c in found.changes]
    assert starts == sorted(starts)
    none = diff(a, b, max_changes=0)
    assert not none.changes and none.changes_total == 3072 and not none.only_bit11


def test_loops_end_and_pairs_stay_bounded() -> None:
    regime = regime_4k(48)
    rng = np.random.default_rng(3)
    snapshots = []
    for name in ("a", "b"):
        tree = TreeBuilder(regime)
        pages = [tree.root] + [tree.new_table() for _ in range(63)]
        for page in pages:
            targets = rng.choice(pages, 512).astype("<u8") | np.uint64(3)
            tree.memory.write(page, targets.astype("<u8").tobytes())
        snapshots.append(tree.snapshot(name))
    found = diff(*snapshots, max_changes=10)
    assert found.changes_total > 0
    assert level_of(found, 3).tables <= 64 * 64


def test_pairs_beyond_the_bound_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = small_tree(regime_4k(48))
    a = tree.snapshot("a")
    from ptinspect.analysis import descent

    real = descent.Descent.__init__

    def tight(self: descent.Descent, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        self._most = 1

    monkeypatch.setattr(descent.Descent, "__init__", tight)
    found = diff(a, copy_tables(a, "b"))
    assert not found.complete and not found.only_bit11
    assert any("too many ways" in note for note in found.notes)


def test_chunks_smaller_than_a_level_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptinspect.analysis import descent

    regime = regime_4k(48)
    tree = TreeBuilder(regime, top_down=True, tables_at=TABLES_AT + (32 << 20))
    low = int(regime.va_min)
    tree.map(low, 0x8000_0000, size=9 << 21)
    a = tree.snapshot("a", va_range=(low + 0x5000, low + (5 << 21) + 0x3000))
    for i in range(9):
        for page in (0, 5, 6, 511):
            tree.xor(low + (i << 21) + (page << 12), 3, EL0)
    tree.set(low + (3 << 21), 2, 0)
    b = tree.snapshot("b")
    whole = diff(a, b)
    for words in (512, 1024, 2048):
        monkeypatch.setattr(descent, "CHUNK_WORDS", words)
        assert assert_agrees(a, b).changes == whole.changes


def test_roots_that_moved_are_paired() -> None:
    tree = small_tree(regime_4k(48))
    a = tree.snapshot("a")
    elsewhere = tree.new_table()
    tree.memory.write(elsewhere, tree.memory.read(tree.root, 4096))
    tree.root = elsewhere
    found = diff(a, tree.snapshot("b"))
    assert found.only_bit11 and f"pa:{elsewhere:#x}" in found.notes[0]


@settings(max_examples=300)
@given(two_trees())
def test_tangled_trees_agree_with_recursion(snapshots: tuple[Snapshot, Snapshot]) -> None:
    a, b = snapshots
    try:
        assert_agrees(a, b)
    except SnapshotError:
        assert a.va_range is not None and b.va_range is not None
