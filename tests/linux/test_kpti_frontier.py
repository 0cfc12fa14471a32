"""The frontier: a machine runs real code over small tables, and at every instruction all must agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import NG, TreeBuilder, regime_4k, snapshot_of
from kpti_guest import CASES, NOT_TRACKED, TOGGLED, Case, Rewrite, patched, rewrite
from kpti_patches import apply, not_tracked, written_back

from ptinspect.linux.kpti.code import POST_ORDER, PRE_ORDER
from ptinspect.linux.kpti.marks import reached
from ptinspect.linux.kpti.position import agrees, cursors, frontier_of, position
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import K_BLOCK, K_PAGE, K_TABLE, kinds
from ptinspect.tables.walk import walk


def capture(guest: Rewrite) -> Snapshot:
    return snapshot_of(guest.tree.memory, guest.tree.root, guest.regime)


def descriptors(snapshot: Snapshot) -> dict[tuple[int, int], int]:
    """All valid descriptors: (level, address) -> raw."""
    found = {}
    tables = snapshot.tables
    for row in range(len(tables)):
        level = int(tables.level[row])
        kind = kinds(tables.raw[row], level, snapshot.regime)
        for slot in np.flatnonzero(np.isin(kind, (K_TABLE, K_BLOCK, K_PAGE))).tolist():
            found[level, int(tables.pa[row]) + 8 * slot] = int(tables.raw[row, slot])
    return found


def interesting(guest: Rewrite, count: int) -> bool:
    """Most of the time the walk steps over empty slots: look there only now and then."""
    state, code = guest.machine.state(), guest.code
    open_ = cursors(state, code, guest.regime)
    if not open_:
        return True
    offset = state.pc - guest.entry
    level = code.levels_of(guest.regime)[len(open_) - 1]
    loaded = open_[-1].descriptor & 1 and level.load < offset <= level.closing
    beside = not level.begin <= offset <= level.closing
    return bool(loaded) or beside or open_[-1].index in (0, open_[-1].entries) or count % 509 == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_registers_and_tables_agree_at_every_instruction(case: Case) -> None:
    guest = rewrite(case)
    before = descriptors(capture(guest))
    phases, last_va, seen = [], -1, 0
    for count, pc in enumerate(guest.machine.run()):
        if not interesting(guest, count):
            continue
        state = guest.machine.state()
        where = position(state, guest.code, guest.regime, guest.tree.memory)
        if not phases or phases[-1] != where.phase:
            phases.append(where.phase)
        if where.frontier is None:
            continue
        seen += 1
        snapshot = capture(guest)
        assert agrees(snapshot, guest.code.algorithm, where) == [], f"+{pc - guest.entry:#x}"
        here = where.frontier
        steps = walk(guest.tree.memory, here.va, guest.tree.root, guest.regime).steps
        assert here.descriptor_pa in [step.descriptor_pa for step in steps if step.level == here.level]
        marks = reached(snapshot, guest.code.algorithm)
        assert marks.gaps == 0
        if marks.frontier is not None and guest.code.algorithm == "temp-pgd-pre-order":
            assert marks.frontier.va >= here.va
        assert here.va >= last_va or guest.code.algorithm == "mmu-off-post-order"
        last_va = here.va
    assert phases == ["before", "walking", "done"]
    assert seen > 200
    after = descriptors(capture(guest))
    assert after == {key: raw | NG for key, raw in before.items()}
    assert reached(capture(guest), guest.code.algorithm).frontier is None
    final = {pa for pa, value in guest.machine.stores if value & NG and pa in {pa for _, pa in before}}
    assert final == {pa for (_, pa), raw in before.items() if not raw & NG}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_points_are_where_they_say(case: Case) -> None:
    guest = rewrite(case)
    points = guest.code.points
    total = len(descriptors(capture(guest)))
    marked: dict[str, int] = {}
    for pc in guest.machine.run():
        for name in ("before_first_write", "after_writes", "flag_cleared", "return"):
            if pc == guest.entry + points[name]:
                assert name not in marked, "each point is passed once"
                marked[name] = sum(1 for raw in descriptors(capture(guest)).values() if raw & NG)
                if name == "flag_cleared":
                    assert guest.tree.memory.read(guest.code.flag_va or 0, 4) == b"\1\0\0\0"
    assert list(marked.items()) == [
        ("before_first_write", 1),
        *((n, total) for n in ("after_writes", "flag_cleared", "return")),
    ]
    assert guest.tree.memory.read(guest.code.flag_va or 0, 4) == bytes(4)


PATCHED = [pytest.param(case, True, id=case.name) for case in CASES]


def compiled(cases: tuple[Case, ...]) -> list[object]:
    return [pytest.param(case, False, id=f"{case.name} compiled") for case in cases]


@pytest.mark.parametrize(("case", "patch"), PATCHED + compiled(NOT_TRACKED))
def test_code_that_tracks_no_tables_leaves_them_unmarked(case: Case, patch: bool) -> None:
    raw = patched(case)
    guest = rewrite(case, apply(raw, not_tracked(rewrite(case).code, raw)) if patch else raw)
    for _ in guest.machine.run():
        pass
    for (level, _), value in descriptors(capture(guest)).items():
        assert bool(value & NG) == (value & 3 == 1 or level == 3)
    assert guest.code.tables == "never-written"


@pytest.mark.parametrize(("case", "patch"), PATCHED + compiled(TOGGLED))
def test_code_that_writes_tables_back_is_told_from_code_that_does_not(case: Case, patch: bool) -> None:
    raw = patched(case)
    guest = rewrite(case, apply(raw, written_back(rewrite(case).code, raw)) if patch else raw)
    before = descriptors(capture(guest))
    for _ in guest.machine.run():
        pass
    # the compiled patch takes the root's bit out again only where there are four levels
    top = min(level for level, _ in before) + (not patch and guest.regime.va_bits == 39)
    tables = {key for key, value in before.items() if value & 3 == 3 and top <= key[0] < 3}
    after = descriptors(capture(guest))
    assert tables and all(after[key] == before[key] for key in tables)
    assert all(value & NG for key, value in after.items() if key not in tables)
    assert guest.code.tables == "written-back"
    assert {pa for pa, _ in guest.machine.stores} >= {pa for _, pa in tables}


def stopped(case: Case, store: int, count: int) -> tuple[Rewrite, Snapshot]:
    """Run to the `count`-th store of the loop `store` (0: the root's)."""
    guest = rewrite(case)
    site = guest.code.levels_of(guest.regime)[store].store
    assert site is not None
    hits = 0
    for pc in guest.machine.run():
        hits += pc == guest.entry + site
        if hits == count:
            return guest, capture(guest)
    raise AssertionError("not reached")


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_a_lost_mark_contradicts_the_registers(case: Case) -> None:
    guest, snapshot = stopped(case, -1, 9)
    where = position(guest.machine.state(), guest.code, guest.regime, guest.tree.memory)
    first = guest.regime.va_min
    guest.tree.xor(first, 3, NG)
    assert agrees(capture(guest), guest.code.algorithm, where) == [
        "1 descriptor that the walk has passed not marked"
    ]
    assert reached(capture(guest), guest.code.algorithm).gaps == 1
    guest.tree.xor(first, 3, NG)
    guest.tree.xor((guest.regime.va_min + guest.regime.va_max) // 2 + 1, 1, NG)
    assert agrees(capture(guest), guest.code.algorithm, where) == [
        "1 table that the walk has not reached marked"
    ]
    assert agrees(snapshot, guest.code.algorithm, where) == []


def test_cursors_say_which_tables_are_open() -> None:
    guest, _ = stopped(CASES[0], -1, 9)
    found = cursors(guest.machine.state(), guest.code, guest.regime)
    assert [(c.level, c.index, c.entries, c.written) for c in found] == [
        (0, 0, 512, False), (1, 0, 512, False), (2, 4, 512, False), (3, 7, 512, False),
    ]  # fmt: skip
    assert frontier_of(found, guest.regime) == guest.regime.va_min + 4 * (2 << 20) + 7 * 4096
    guest, _ = stopped(CASES[1], -1, 9)
    found = cursors(guest.machine.state(), guest.code, guest.regime)
    assert [(c.level, c.index, c.written) for c in found] == [
        (0, 0, True),
        (1, 0, True),
        (2, 4, True),
        (3, 7, False),
    ]
    assert found[3].descriptor & NG, "set in the register, not stored yet"


def test_a_position_in_the_middle_of_the_old_walk_knows_that_only_the_entry_is_left() -> None:
    guest, _ = stopped(CASES[0], 2, 1)
    where = position(guest.machine.state(), guest.code, guest.regime, guest.tree.memory)
    assert where.subtree_done
    assert where.frontier is not None
    assert (where.frontier.va, where.frontier.level) == (guest.regime.va_min, 2)


def test_the_first_descriptor_without_a_mark_is_the_frontier() -> None:
    tree = TreeBuilder(regime_4k(39))
    low = tree.regime.va_min
    tree.map(low, 0x4200_0000, size=4 * 4096)
    tree.map(low + (2 << 20), 0x4400_0000, level=2)
    tree.xor(low, 3, NG)
    tree.xor(low + 4096, 3, NG)
    found = reached(tree.snapshot(), POST_ORDER)
    assert (found.gaps, found.ahead) == (0, 0)
    assert found.frontier is not None
    assert (found.frontier.va, found.frontier.level, found.frontier.source) == (low + 2 * 4096, 3, "tables")
    assert found.frontier.descriptor_pa == tree.slot(low + 2 * 4096, 3)
    pre = reached(tree.snapshot(), PRE_ORDER)
    assert pre.frontier is not None
    assert (pre.frontier.va, pre.frontier.level, pre.gaps) == (low, 1, 0), "tables come first there"
    assert pre.ahead == 2
    tree.xor(low + 3 * 4096, 3, NG)
    assert reached(tree.snapshot(), POST_ORDER).ahead == 1


def test_two_cpus_at_different_points_have_different_positions() -> None:
    guest, _ = stopped(CASES[1], -1, 3)
    state = guest.machine.state()
    early = dataclasses.replace(state, pc=guest.entry + 0x10)
    late = dataclasses.replace(state, pc=guest.entry + guest.code.points["return"])
    assert [position(s, guest.code, guest.regime, guest.tree.memory).phase for s in (early, state, late)] == [
        "before", "walking", "done",
    ]  # fmt: skip
