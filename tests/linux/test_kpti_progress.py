"""How much the rewrite has to do, and the choice of a place in it, on tables made for the purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import NG, TreeBuilder, copy_tables
from kpti_guest import CASES, NOT_TRACKED, TOGGLED, Case, Rewrite, rewrite
from test_kpti_verdict import BASE, FAR, REGIME, before, marked, place

from ptinspect.errors import UserError
from ptinspect.linux.kpti.code import Algorithm, KptiCode
from ptinspect.linux.kpti.marks import Frontier, key_of
from ptinspect.linux.kpti.position import Position, position
from ptinspect.linux.kpti.progress import Work, by_address, by_number, by_percent, left_of, work
from ptinspect.linux.kpti.state import KptiState, state_from_tables
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.walk import walk

CODES = {case.name.split()[0]: rewrite(case).code for case in CASES[:2]}


def begun(snapshot: Snapshot, code: KptiCode | None) -> KptiState:
    """The state where nothing is written yet."""
    found = state_from_tables(snapshot, code)
    assert found.state == "before"
    return found


def state_of(guest: Rewrite, snapshot: Snapshot) -> KptiState:
    """The state by the registers, as the live one is."""
    where = position(guest.machine.state(), guest.code, guest.regime, guest.tree.memory)
    words = {"before": "before", "walking": "in-progress", "done": "after"}
    found = state_from_tables(snapshot, guest.code)
    return dataclasses.replace(found, state=words[where.phase], frontier=where.frontier, position=where)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_target_is_a_descriptor_that_is_left(code: KptiCode) -> None:
    old = before()
    state = begun(old, code)
    target = by_address(old, state, FAR + 0x2000)
    assert (target.level, target.va) == (3, FAR + 0x2000)
    at = walk(SnapshotMemory(old), FAR + 0x2000, old.root.pa, REGIME).steps[-1]
    assert target.descriptor_pa == at.descriptor_pa
    block = by_address(old, state, BASE + (4 << 21) + 5)
    assert (block.level, block.va) == (2, BASE + (4 << 21))
    assert by_number(old, state, 3, 9).va == FAR
    assert left_of(old, state, 3) == 12


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_percentage_is_a_place_in_the_order_of_the_walk(code: KptiCode) -> None:
    old = before()
    state = begun(old, code)
    algorithm: Algorithm = code.algorithm
    keys = []
    for percent in (0, 25, 50, 75, 100):
        target = by_percent(old, state, percent)
        keys.append(key_of(Frontier(target.va, target.level, None, ""), REGIME, algorithm))
    assert keys == sorted(keys)
    assert by_percent(old, state, 0).va == BASE
    assert work(old, state) == Work(19, 19, exact=True)


def test_places_that_are_done_or_not_there_are_refused() -> None:
    old, new = before(), marked(before())
    code = CODES["5.10"]
    done = state_from_tables(new, code)
    for where in (lambda: by_address(new, done, FAR), lambda: by_percent(new, done, 50)):
        with pytest.raises(UserError):
            where()
    state = begun(old, code)
    for address in (BASE + (1 << 30), 0x1000):
        with pytest.raises(UserError):
            by_address(old, state, address)
    with pytest.raises(UserError):
        by_number(old, state, 3, 13)


def with_early_leaves() -> TreeBuilder:
    """63 of 100 pages are nG before the walk begins, as up to 5.4 what was mapped while KPTI was detected."""
    tree = TreeBuilder(REGIME)
    tree.map(BASE, 0x4400_0000, size=100 << 12)
    for page in range(30, 93):
        tree.xor(BASE + (page << 12), 3, NG)
    return tree


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_percent_counts_what_the_walk_has_to_do(code: KptiCode) -> None:
    tree = with_early_leaves()
    snapshot = tree.snapshot()
    state = begun(snapshot, code)
    assert work(snapshot, state) == Work(37 + 3, 40, exact=True)
    assert work(snapshot, state).percent == 0
    half = by_percent(snapshot, state, 50)
    tables = 0 if code.algorithm == "mmu-off-post-order" else 3
    assert half.va == BASE + ((20 - tables) << 12)
    assert left_of(snapshot, state, 3) == 37
    assert by_number(snapshot, state, 3, 31).va == BASE + (93 << 12), "those that are nG are stepped over"


@pytest.mark.parametrize("case", [*CASES, *NOT_TRACKED, *TOGGLED], ids=lambda case: case.name)
def test_the_work_goes_from_nothing_to_all(case: Case) -> None:
    guest = rewrite(case)
    first = guest.tree.snapshot()
    total = work(first, state_of(guest, first)).total
    stores = seen = 0
    last = -1.0
    values = {level.store for level in guest.code.levels}
    for count, pc in enumerate(guest.machine.run()):
        stored = pc - guest.entry in values
        if count % 8009 == 0 or (stored and stores % 4 == 0):
            snapshot = guest.tree.snapshot()
            state = state_of(guest, snapshot)
            now = work(snapshot, state, total)
            assert now.total == total and now.percent >= last
            guess = work(snapshot, state)
            assert guess.left == now.left
            assert total <= guess.total <= total + 1, "the leaf that was nG before is not known to have been"
            last, seen = now.percent, seen + 1
        stores += stored
    snapshot = guest.tree.snapshot()
    assert work(snapshot, state_of(guest, snapshot), total) == Work(total, 0, exact=True)
    assert seen > 5


def test_without_the_beginning_the_share_is_an_upper_bound() -> None:
    tree = with_early_leaves()
    for page in range(30):
        tree.xor(BASE + (page << 12), 3, NG)
    tree.xor(BASE + (93 << 12), 3, NG)
    snapshot = tree.snapshot()
    state = state_from_tables(snapshot, CODES["5.10"])
    assert state.state == "in-progress"
    assert work(snapshot, state, 40) == Work(40, 9, exact=True)
    found = work(snapshot, state)
    assert (found.left, found.exact) == (9, False)
    assert found.total == 94 + 9 and found.percent > work(snapshot, state, 40).percent


def test_a_number_that_was_counted_for_another_boot_is_not_exceeded() -> None:
    old = before()
    assert work(old, begun(old, CODES["5.10"]), 3) == Work(19, 19, exact=True)
    copy = copy_tables(old, "again")
    row, slot = place(copy, 3, FAR)
    copy.tables.raw[row, slot] |= np.uint64(NG)
    assert work(copy, begun(copy, CODES["5.10"])).left == 18


def test_what_was_made_after_the_walk_is_not_its_work() -> None:
    new = marked(before())
    row, slot = place(new, 2, FAR)
    new.tables.raw[row, slot] &= ~np.uint64(NG)
    state = dataclasses.replace(state_from_tables(new, CODES["5.10"]), state="after")
    assert work(new, state) == Work(18, 0, exact=False)
    inside = dataclasses.replace(state, position=Position("done", None))
    assert work(new, inside).left == 1, "there it was missed"
