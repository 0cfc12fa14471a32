"""Verdicts about the rewrite, and the choice of a place in it, on tables made for the purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import KERNEL_DATA, NG, OUTSIDE, REGIMES, TreeBuilder, copy_tables, cpu_state
from kpti_guest import CASES, NOT_TRACKED, TOGGLED, Case, patched, rewrite

from ptinspect.arch.bits import PhysAddr
from ptinspect.linux.kpti.code import KptiCode, TablesAre, recognise_code
from ptinspect.linux.kpti.state import KptiState, state_from_tables
from ptinspect.linux.kpti.stores import Recording
from ptinspect.linux.kpti.verdict import MEANING, Verdict
from ptinspect.linux.kpti.verdict import judge as judge_state
from ptinspect.memory.source import RamBlock
from ptinspect.snapshot.fact_names import LAYOUT, REGIONS
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import are_leaves, are_tables

POST = "mmu-off-post-order"
REGIME = REGIMES["4k-48"]
BASE = int(REGIME.va_min)
FAR = BASE + (1 << 39)


def code_of(case: Case) -> KptiCode:
    return recognise_code(patched(case), case.in_page)


MARKS = code_of(CASES[0])
CODES: dict[TablesAre, KptiCode] = {
    "marked": MARKS,
    "never-written": code_of(NOT_TRACKED[0]),
    "written-back": code_of(TOGGLED[0]),
}


def judge(
    old: Snapshot | None,
    new: Snapshot,
    recording: Recording | None = None,
    code: KptiCode | None = None,
    *,
    finished: bool = True,
    state: KptiState | None = None,
) -> Verdict:
    """Judge two snapshots, by the tables alone unless the code or the state is given."""
    return judge_state(old, new, state or state_from_tables(new, code), recording, finished=finished)


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
    assert judge(old, copy_tables(old, "after"), finished=False).code == "not-run"
    nothing = judge(old, marked(old, tables=False))
    assert nothing.code == "unknown" and "toggle-write-back" in nothing.unknown[0]
    early = marked(old, tables=False, name="before")
    kaslr = judge(early, copy_tables(early, "after"), finished=False)
    assert kaslr.code == "not-run" and "nG from the start" in kaslr.evidence[-1]
    assert judge(old, marked(old, leaves=False)).code == "unknown"


def test_snapshots_that_do_not_belong_together_prove_nothing() -> None:
    old, new = before(), marked(before())
    swapped = judge(new, old, finished=False)
    assert swapped.code == "unknown" and "wrong order" in swapped.unknown[0]
    for tables in (True, False):
        assert judge(marked(old, tables=tables), old, finished=False).code == "unknown"
    kernels = [
        dataclasses.replace(one, meta=dataclasses.replace(one.meta, kernel=f"Linux version 6.{n}.0 (x) #1"))
        for n, one in enumerate((old, new))
    ]
    other = judge(*kernels)
    assert (other.code, other.evidence) == (
        "unknown",
        ("the kernels differ: Linux version 6.0.0 and Linux version 6.1.0",),
    )
    moved = dataclasses.replace(new, root=dataclasses.replace(new.root, pa=PhysAddr(0x5000_0000)))
    assert judge(old, moved).code == "unknown"


def test_in_the_walk_only_damage_is_told() -> None:
    old, new = before(), marked(before())
    row, slot = place(new, 2, BASE)
    new.tables.raw[row, slot] ^= NG
    walking = dataclasses.replace(state_from_tables(new), state="in-progress")
    found = judge(old, new, finished=False, state=walking)
    assert (found.code, len(found.unknown)) == ("unknown", 1)
    new.tables.raw[row, slot] = 0
    assert judge(old, new, finished=False, state=walking).code == "lost-write"


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
    new.tables.raw[row, slot] = 0x60_DEAD_B003
    outside = dataclasses.replace(new, ram=(RamBlock(PhysAddr(0x4000_0000), 0x4000_0000),))
    assert judge(old, outside).code == "lost-write", "what leads out of RAM is garbage"


def test_stores_tell_apart_what_the_tables_cannot() -> None:
    old, new = before(), marked(before(), tables=False)
    block = BASE + (4 << 21)
    leaf = (2, block, value(old, 2, block) | NG)
    assert judge(old, new, recording(old, [leaf])).code == "no-table-marks"
    back = [(level, BASE, value(old, level, BASE)) for level in (0, 1, 2)]
    assert judge(old, new, recording(old, [*back, leaf])).code == "toggle-write-back"
    for code in CODES.values():
        seen = judge(old, new, recording(old, [*back, leaf]), code)
        assert seen.code == "toggle-write-back", "stores that were seen outrank the code"
        assert len(seen.evidence) == 4 + (code.tables == "written-back")
    part = judge(old, new, recording(old, [leaf], whole=False))
    assert part.code == "unknown", "a part of the stores proves nothing"


def test_a_mark_that_is_taken_back_by_a_second_store_is_a_toggle() -> None:
    old, new = before(), marked(before(), tables=False)
    block = BASE + (4 << 21)
    stored = [(level, BASE, value(old, level, BASE)) for level in (0, 1, 2)]
    seen = recording(old, [*stored, (2, block, value(old, 2, block) | NG)])
    seen.old[:3] |= np.uint64(NG)  # by a store that is none of the code's own
    assert all(level.tables_changed == level.tables == 1 for level in seen.by_level())
    marks = [(level, BASE, value(old, level, BASE) | NG) for level in (0, 1, 2)]
    both = recording(old, [*marks, *stored, (2, block, value(old, 2, block) | NG)])
    both.old[3:6] |= np.uint64(NG)
    for code in (None, *CODES.values()):
        assert judge(old, new, seen, code).code == "toggle-write-back"
        assert judge(old, new, both, code).code == "toggle-write-back"


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


def test_a_table_without_a_mark_was_made_later_only_if_it_was_not_there_before() -> None:
    old, new = before(), marked(before())
    row, slot = place(new, 2, FAR)
    new.tables.raw[row, slot] &= ~np.uint64(NG)
    pa = int(new.tables.pa[row]) + 8 * slot
    for code in (None, MARKS):
        guess = judge(None, new, None, code, finished=False)
        assert guess.code == "unknown" and "made later, or missed" in guess.unknown[0]
        for found in (judge(None, new, None, code), judge(old, new, None, code, finished=False)):
            assert found.code == "unknown" and "the walk has passed" in found.unknown[0]
            assert f"level 2, descriptor pa:{pa:#x} for {FAR:#x}" in found.evidence[1]
    old.tables.raw[row, slot] = 0
    found = judge(old, new, None, MARKS, finished=False)
    assert found.code == "normal"
    assert found.evidence[1] == "1 descriptor without bit 11 made later: not in before"


def test_a_leaf_that_the_walk_left_out_is_named() -> None:
    old, new = before(), marked(before())
    row, slot = place(new, 3, FAR)
    new.tables.raw[row, slot] &= ~np.uint64(NG)
    found = judge(old, new)
    assert found.code == "unknown" and f"for {FAR:#x}" in found.evidence[2]


def test_the_code_decides_what_the_tables_do_not_tell() -> None:
    old, new = before(), marked(before(), tables=False)
    for known, code in (("no-table-marks", "never-written"), ("toggle-write-back", "written-back")):
        for first in (old, None):
            assert judge(first, new, None, CODES[code]).code == known  # type: ignore[index]
    kaslr = judge(None, new, None, MARKS, finished=False)
    assert kaslr.code == "not-run" and "nG from the start (KASLR)" in kaslr.evidence[0]
    unknown = judge(None, new, finished=False)
    assert unknown.code == "unknown" and "not-run (KASLR)" in unknown.unknown[0]
    both = marked(before())
    for code in ("never-written", "written-back"):
        found = judge(None, both, None, CODES[code], finished=False)  # type: ignore[index]
        assert found.code == "unknown" and "who marked tables" in found.unknown[0]


def test_some_leaves_were_ng_before_kernels_up_to_5_4_detect_kpti() -> None:
    early = before()
    row, _ = place(early, 3, FAR)
    early.tables.raw[row][:4] |= np.uint64(NG)
    found = judge(None, early, None, MARKS, finished=False)
    assert found.code == "not-run" and "would have marked tables too" in found.evidence[0]


@pytest.mark.parametrize("with_before", [False, True])
def test_a_toggle_with_three_levels_is_known_by_its_code(with_before: bool) -> None:
    """The toggle's `eor pgd` is not compiled in there: only the root's tables keep their mark."""
    guest = rewrite(TOGGLED[1])
    old = guest.tree.snapshot("before")
    for _ in guest.machine.run():
        pass
    new = guest.tree.snapshot("after")
    for finished in (False, True):
        found = judge(old if with_before else None, new, None, guest.code, finished=finished)
        assert found.code == "toggle-write-back"
        assert "folded" in found.evidence[1] and found.evidence[2] == "the kernel's code toggles bit 11 twice"


@pytest.mark.parametrize("case", [*CASES, *NOT_TRACKED, *TOGGLED], ids=lambda case: case.name)
def test_before_and_after_the_walk_of_each_kernel(case: Case) -> None:
    guest = rewrite(case)
    old = guest.tree.snapshot("before")
    early = "not-run" if guest.code.tables == "marked" else "unknown"  # a leaf is nG already
    assert judge(None, old, None, guest.code, finished=False).code == early
    for _ in guest.machine.run():
        pass
    new = guest.tree.snapshot("after")
    meant = {"marked": "normal", "never-written": "no-table-marks", "written-back": "toggle-write-back"}
    for first in (old, None):
        assert judge(first, new, None, guest.code).code == meant[guest.code.tables]


def test_what_was_not_captured_is_said_and_nothing_is_claimed_of_it() -> None:
    made = TreeBuilder(REGIME)
    made.map(BASE, 0x4400_0000, size=8 << 12)
    made.map(FAR, 0x4900_0000, size=4 << 12)
    old = made.snapshot("before")
    for va, size in ((BASE, 8), (FAR, 4)):
        for level in (0, 1, 2):
            made.xor(va, level, NG)
        for page in range(size):
            made.xor(va + (page << 12), 3, NG)
    assert judge(old, made.snapshot("after"), None, MARKS).code == "normal"
    part = made.snapshot("after", va_range=(BASE, BASE + (1 << 39) - 1))
    few = made.snapshot("after", max_tables=4)
    made.point(FAR + (1 << 40), 0, OUTSIDE, NG)
    unread = made.snapshot("after")
    for cut, lack in ((part, "was captured"), (few, "more than 4 tables"), (unread, "could not be read")):
        for first in (None, old):
            for code in (None, MARKS):
                found = judge(first, cut, None, code)
                assert found.code == "unknown", (found, lack)
                assert any(lack in text for text in found.unknown), found
    whole = marked(old)
    cut_before = dataclasses.replace(old, truncated="more than 4 tables: stopped at level 2")
    assert judge(cut_before, whole, None, MARKS).code == "unknown"
    assert judge(None, part, None, MARKS, finished=False).code == "unknown"
    untouched = dataclasses.replace(old, truncated="more than 4 tables: stopped at level 2")
    assert judge(None, untouched, None, MARKS, finished=False).code == "unknown", "not seen to be not run"


def test_every_code_has_a_meaning() -> None:
    assert all(MEANING.values())


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
    assert "1 slot of the fixmap" in found.unknown[0]


def test_user_tables_tell_nothing_of_the_rewrite() -> None:
    made = TreeBuilder(REGIMES["4k-48-user"])
    made.map(0x40_0000, 0x4400_0000, size=8 << 12, attributes=KERNEL_DATA | NG)
    found = judge(None, made.snapshot(), None, MARKS, finished=False)
    assert found.code == "unknown" and "lower half" in found.unknown[0]


def test_what_the_kernel_unmapped_after_its_boot_is_no_damage_of_the_rewrite() -> None:
    """Seen on a healthy 5.10: the memory of the init code is gone when the shell runs."""
    old, new = before(), marked(before())
    row, slot = place(new, 2, BASE)
    new.tables.raw[row, slot] = 0
    assert judge(old, new, finished=False).code == "lost-write"
    user = dataclasses.replace(cpu_state(), pstate=0)
    found = judge(old, dataclasses.replace(new, cpus=(user,)), finished=False)
    assert found.code == "unknown" and "cpu 0 runs user code" in found.unknown[0]
    assert "8 leaves hung below it" in found.evidence[0]


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=lambda case: case.name)
def test_a_walk_that_is_almost_over_is_not_over(case: Case) -> None:
    """Its place tells, not its share; what was made later lies among what is marked."""
    made = TreeBuilder(REGIME)
    made.map(BASE, 0x4400_0000, size=4096 << 12)
    made.map(FAR, 0x4900_0000, size=16 << 12)
    post, code = case is CASES[0], code_of(case)
    for table in range(8):
        made.xor(BASE + (table << 21), 2, NG)
    for level, va in ((1, BASE), (0, BASE), *(() if post else ((0, FAR), (1, FAR), (2, FAR)))):
        made.xor(va, level, NG)
    for va in (*(BASE + (page << 12) for page in range(4096)), *(FAR + (page << 12) for page in range(6))):
        made.xor(va, 3, NG)
    for known in (code, None):
        found = state_from_tables(made.snapshot(), known)
        assert found.mostly_ng and found.state == "in-progress"
        assert found.frontier is not None and (found.frontier.va, found.frontier.level) == (FAR + 0x6000, 3)
        assert judge(None, made.snapshot(), None, known, finished=False).code == "unknown"
    for page in range(6, 16):
        made.xor(FAR + (page << 12), 3, NG)
    for level in (0, 1, 2) if post else ():
        made.xor(FAR, level, NG)
    made.map(BASE + (100 << 21), 0x4A00_0000, size=8 << 12)
    assert state_from_tables(made.snapshot(), code).state == "after"
