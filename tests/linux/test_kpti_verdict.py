"""Verdicts about the rewrite, and the choice of a place in it, on tables made for the purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import NG, REGIMES, TreeBuilder, copy_tables

from ptinspect.errors import UserError
from ptinspect.linux.kpti.position import order_keys
from ptinspect.linux.kpti.stores import Recording
from ptinspect.linux.kpti.target import by_address, by_number, by_percent
from ptinspect.linux.kpti.verdict import MEANING, judge
from ptinspect.linux.naming import LAYOUT, REGIONS
from ptinspect.snapshot.classify import are_leaves, are_tables
from ptinspect.snapshot.model import Snapshot

POST, PRE = "mmu-off-post-order", "temp-pgd-pre-order"
REGIME = REGIMES["4k-48"]
BASE = int(REGIME.va_min)
FAR = BASE + (1 << 39)


def before() -> Snapshot:
    """Two subtrees: eight pages and a block, four pages."""
    made = TreeBuilder(REGIME)
    made.map(BASE, 0x4400_0000, size=8 << 12, level=3)
    made.map(BASE + (4 << 21), 0x4800_0000, size=1 << 21, level=2)
    made.map(FAR, 0x4900_0000, size=4 << 12, level=3)
    return made.snapshot("before")


def marked(snapshot: Snapshot, *, tables: bool = True, leaves: bool = True, name: str = "after") -> Snapshot:
    """The same tables with bit 11 set."""
    found = copy_tables(snapshot, name)
    for row in range(len(found.tables)):
        raw, level = found.tables.raw[row], int(found.tables.level[row])
        if tables:
            raw[are_tables(raw, level)] |= np.uint64(NG)
        if leaves:
            raw[are_leaves(raw, level, REGIME)] |= np.uint64(NG)
    return found


def place(snapshot: Snapshot, level: int, va: int) -> tuple[int, int]:
    """Row and slot of a descriptor."""
    rows = np.flatnonzero(snapshot.tables.level == level)
    row = int(rows[np.searchsorted(snapshot.tables.va[rows], np.uint64(va), side="right") - 1])
    return row, REGIME.index(va, level)


def recording(old: Snapshot, stores: list[tuple[int, int, int]], *, whole: bool = True) -> Recording:
    """Stores of (level, va, value), each over what was there before."""
    rows = [place(old, level, va) for level, va, _ in stores]
    pa = [int(old.tables.pa[row]) + 8 * slot for row, slot in rows]
    values = [int(old.tables.raw[row, slot]) for row, slot in rows]

    def words(items: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
        return np.array(items, dtype=np.uint64)

    levels = np.array([level for level, _, _ in stores], dtype=np.int8)
    return Recording(
        tuple(sorted(set(levels.tolist()))), POST, old, words([0] * len(stores)), levels, words(pa),
        words([va for _, va, _ in stores]), np.ones(len(stores), dtype=np.bool_), words(values),
        words([value for _, _, value in stores]), whole,
    )  # fmt: skip


def value(snapshot: Snapshot, level: int, va: int) -> int:
    row, slot = place(snapshot, level, va)
    return int(snapshot.tables.raw[row, slot])


def test_the_codes_that_the_tables_alone_tell() -> None:
    old = before()
    assert judge(old, marked(old)).code == "normal"
    assert judge(None, marked(old)).code == "normal"
    assert judge(old, copy_tables(old, "after")).code == "not-run"
    nothing = judge(old, marked(old, tables=False))
    assert nothing.code == "unknown" and "toggle-write-back" in nothing.unknown[0]
    early = marked(old, tables=False, name="before")
    kaslr = judge(early, copy_tables(early, "after"))
    assert kaslr.code == "not-run" and "nG from the start" in kaslr.evidence[-1]
    assert judge(old, marked(old, leaves=False)).code == "unknown"


def test_in_the_walk_only_damage_is_told() -> None:
    old, new = before(), marked(before())
    row, slot = place(new, 2, BASE)
    new.tables.raw[row, slot] ^= NG
    assert judge(old, new, finished=False).code == "normal", "a table may have been made later"
    found = judge(old, new, finished=False, walking=True)
    assert (found.code, len(found.unknown)) == ("unknown", 1)
    new.tables.raw[row, slot] = 0
    assert judge(old, new, finished=False, walking=True).code == "lost-write"


def test_a_lost_entry_and_a_reverted_one_are_named() -> None:
    old, new = before(), marked(before())
    row, slot = place(new, 2, BASE)
    kept = int(new.tables.raw[row, slot])
    new.tables.raw[row, slot] = 0
    lost = judge(old, new)
    assert lost.code == "lost-write"
    assert f"{int(new.tables.pa[row]) + 8 * slot:#x}" in lost.evidence[0]
    assert "8 leaves hung below it" in lost.evidence[0]
    new.tables.raw[row, slot] = (kept ^ 0x5000) & ~NG
    assert judge(old, new).code == "reverted-entry"
    new.tables.raw[row, slot] = kept ^ 0x5000
    assert judge(old, new).code == "lost-write", "with bit 11 it is no older value"


def test_stores_tell_apart_what_the_tables_cannot() -> None:
    old, new = before(), marked(before(), tables=False)
    block = BASE + (4 << 21)
    leaf = (2, block, value(old, 2, block) | NG)
    assert judge(old, new, recording(old, [leaf])).code == "no-table-marks"
    back = [(level, BASE, value(old, level, BASE)) for level in (0, 1, 2)]
    assert judge(old, new, recording(old, [*back, leaf])).code == "toggle-write-back"
    part = judge(old, new, recording(old, [leaf], whole=False))
    assert part.code == "unknown", "a part of the stores proves nothing"


def test_a_store_that_did_not_last_is_found_without_a_snapshot_from_before() -> None:
    old, new = before(), marked(before())
    stored = [(level, BASE, value(old, level, BASE) | NG) for level in (0, 1, 2)]
    assert judge(None, new, recording(old, stored)).code == "normal"
    row, slot = place(new, 0, BASE)
    new.tables.raw[row, slot] &= ~np.uint64(NG)
    found = judge(None, new, recording(old, stored))
    assert found.code in ("lost-write", "unknown")
    new.tables.raw[row, slot] ^= np.uint64(0x3000)
    found = judge(None, new, recording(old, stored))
    assert found.code == "reverted-entry" and f"stored {stored[0][2]:#x}" in found.evidence[0]


def test_tables_made_later_are_no_miss_unless_the_walk_has_just_ended() -> None:
    old, new = before(), marked(before())
    row, slot = place(new, 2, FAR)
    new.tables.raw[row, slot] &= ~np.uint64(NG)
    changed = dataclasses.replace(new)
    assert judge(None, changed, finished=False).code == "normal"
    assert judge(None, changed, finished=True).code == "unknown"
    assert judge(old, changed, finished=True).code in ("unknown", "lost-write")


def test_every_code_has_a_meaning() -> None:
    assert all(MEANING.values())


@pytest.mark.parametrize("algorithm", [POST, PRE])
def test_a_target_counts_what_is_stored_before_it(algorithm: str) -> None:
    old = before()
    target = by_address(old, algorithm, FAR + 0x2000)  # type: ignore[arg-type]
    assert (target.level, target.va, target.within) == (3, FAR + 0x2000, 2)
    assert target.ordinal == 8 + 2
    assert target.parent == 2, "the other subtree's table, and the block"
    block = by_address(old, algorithm, BASE + (4 << 21) + 5)  # type: ignore[arg-type]
    assert (block.level, block.ordinal) == (2, 1)
    assert by_number(old, algorithm, 3, 9).va == FAR  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", [POST, PRE])
def test_a_percentage_is_a_place_in_the_order_of_the_walk(algorithm: str) -> None:
    old = before()
    total = 13 + 2 + 2 + 2
    keys = {}
    for percent in (0, 25, 50, 75, 100):
        target = by_percent(old, algorithm, percent)  # type: ignore[arg-type]
        at = np.array([target.va], dtype=np.uint64)
        keys[percent] = int(order_keys(at, 1, target.level, REGIME, algorithm)[0, 0])  # type: ignore[arg-type]
    assert list(keys.values()) == sorted(keys.values())
    assert by_percent(old, algorithm, 0).ordinal == 0  # type: ignore[arg-type]
    assert total == 19


def test_places_that_are_done_or_not_there_are_refused() -> None:
    old, new = before(), marked(before())
    for where in (lambda s: by_address(s, POST, FAR), lambda s: by_percent(s, POST, 50)):
        with pytest.raises(UserError):
            where(new)
    with pytest.raises(UserError):
        by_address(old, POST, BASE + (1 << 30))
    with pytest.raises(UserError):
        by_address(old, POST, 0x1000)
    with pytest.raises(UserError):
        by_number(old, POST, 3, 13)


def test_a_toggle_whose_first_level_is_folded() -> None:
    """With three levels the toggle's `eor pgd` is not compiled in: only the root's tables keep their mark."""
    old = before()
    after = marked(old, tables=False)
    top = int(after.tables.level.min())
    for row in np.flatnonzero(after.tables.level == top).tolist():
        raw = after.tables.raw[row]
        raw[are_tables(raw, top)] |= np.uint64(NG)
    toggles = dataclasses.make_dataclass("Code", ["toggles", "levels", "marks_tables"])(True, (), True)
    found = judge(old, after, None, toggles)
    assert found.code == "toggle-write-back" and "folded" in found.evidence[1]
    plain = dataclasses.make_dataclass("Code", ["toggles", "levels", "marks_tables"])(False, (), True)
    assert judge(old, after, None, plain).code == "unknown"
    raw[are_tables(raw, top)] &= ~np.uint64(NG)
    low = int(np.flatnonzero(after.tables.level == top + 1)[0])
    after.tables.raw[low][are_tables(after.tables.raw[low], top + 1)] |= np.uint64(NG)
    assert judge(old, after, None, toggles).code == "unknown"


def test_a_fixmap_slot_that_another_cpu_was_patching_through_is_not_lost() -> None:
    """Seen with 4 CPUs, in a snapshot taken while another CPU was still applying alternatives."""
    slot, page = 0xFFFF_FDFF_FE5F_9000, 0xFFFF_8000_1200_0000
    made = TreeBuilder(REGIME)
    for va in (slot, page):
        made.map(va, 0x4A00_0000, size=2 << 12, level=3)
    snapshot = made.snapshot("before")
    old = dataclasses.replace(
        snapshot, meta=dataclasses.replace(snapshot.meta, extra={LAYOUT: "v5.4 to v5.10", REGIONS: ""})
    )
    after = marked(old)
    row, index = place(after, 3, slot)
    after.tables.raw[row, index] = 0
    assert judge(old, after).code == "normal"
    row, index = place(after, 3, page)
    after.tables.raw[row, index] = 0
    found = judge(old, after)
    assert found.code == "lost-write" and len(found.evidence) == 1 and f"{page:#x}" in found.evidence[0]
    assert "1 slot(s) of the fixmap" in found.unknown[0]
