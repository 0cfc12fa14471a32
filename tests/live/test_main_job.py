"""The main job on real kernels: every table before, during and after the rewrite, against other walkers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from session import NEWER, Live, launched

from ptinspect.analysis.descriptor_batches import sample_leaves
from ptinspect.arch.bits import MASK64
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.kinds import K_BLOCK, K_PAGE, kinds

MATRIX = [
    ("5.10-cloud", "--memory 1024"),
    ("5.10-cloud", f"--memory 512 --smp 4 --cpu cortex-a57 {NEWER}"),
    ("5.10", "--memory 2048 --cpu neoverse-n1"),
    ("6.1-cloud", "--memory 1024 --smp 2"),
    ("6.12-cloud", "--memory 1024 --cpu cortex-a72"),
    ("6.12-cloud", "--memory 1024 --cpu max --smp 2"),
    ("6.12-16k", f"--memory 1024 --cpu max {NEWER}"),
    ("6.18-cloud", "--memory 1024"),
    ("7.3-cloud", "--memory 1024"),
    ("7.3-cloud", f"--memory 1024 --cpu max --smp 2 {NEWER}"),
]


def total(result: dict[str, Any], key: str) -> int:
    return sum(level[key] for level in result["levels"])


def leaves(snapshot: Snapshot) -> list[tuple[int, int, int]]:
    """Return (va, pa, level) of every leaf, decoded one by one."""
    tables, regime = snapshot.tables, snapshot.regime
    found = []
    for row in range(len(tables)):
        level = int(tables.level[row])
        kind = kinds(tables.raw[row], level, regime)
        for slot in np.flatnonzero((kind == K_BLOCK) | (kind == K_PAGE)):
            va = (int(tables.va[row]) + (int(slot) << regime.shift(level))) & MASK64
            found.append((va, regime.output_address(int(tables.raw[row, slot]), level), level))
    return found


@pytest.fixture(scope="module", params=MATRIX, ids=lambda p: f"{p[0]} {p[1]}")
def rewritten(request: pytest.FixtureRequest) -> Any:
    guest, options = request.param
    with launched(guest, options) as live:
        ran = live("kpti run")
        assert ran["reached"], ran["reason"]
        yield live


def test_everything_is_marked_and_nothing_else_changes(rewritten: Live) -> None:
    before, after = rewritten("summary --snap before"), rewritten("summary --snap after")
    assert total(before, "leaves") > 1000
    assert total(before, "leaves_ng") == total(before, "table_descriptors_marked") == 0
    assert total(after, "leaves_ng") == total(after, "leaves") == total(before, "leaves")
    assert total(after, "table_descriptors_marked") == total(before, "table_descriptors")
    diff = rewritten("diff before after --expect-only-bit11")
    assert diff["only_bit11"] is True
    assert diff["changes"] == []
    assert total(diff, "changed") == total(before, "leaves") + total(before, "table_descriptors")
    assert total(diff, "marked") == total(before, "table_descriptors")
    assert total(diff, "ng_set") == total(before, "leaves")
    assert rewritten("kpti verdict")["code"] == "normal"


def test_during_is_in_the_middle(rewritten: Live) -> None:
    tables = rewritten.ctx.guest.snapshots["during"].tables
    raw = tables.raw[tables.level == 2]
    valid, stored = (int(np.count_nonzero((raw & np.uint64(bits)) == bits)) for bits in (0x1, 0x801))
    assert stored == valid // 2 > 0


def test_during_shows_the_frontier(rewritten: Live) -> None:
    during = rewritten("summary --snap during")
    assert 0 < total(during, "leaves_ng") < total(during, "leaves")
    status = rewritten("kpti status --snap during")
    assert status["state"] == "in-progress"
    snapshot = rewritten.ctx.guest.snapshots["during"]
    tables, regime = snapshot.tables, snapshot.regime
    frontier, level = int(status["frontier"]["va"], 16), status["frontier"]["level"]
    if status["algorithm"] == "mmu-off-post-order" and level < 3:
        frontier += regime.entry_size(level)  # all below that table is done, only its descriptor is left
    before_it = np.uint64(frontier)
    for level in np.unique(tables.level).tolist():
        rows = np.flatnonzero(tables.level == level)
        kind = kinds(tables.raw[rows], level, regime)
        at, slots = np.nonzero((kind == K_BLOCK) | (kind == K_PAGE))
        va = tables.va[rows[at]] + (slots.astype(np.uint64) << np.uint64(regime.shift(level)))
        ng = (tables.raw[rows[at], slots] & np.uint64(0x800)) != 0
        assert np.array_equal(ng, va < before_it)


def test_qemus_mmu_agrees(rewritten: Live) -> None:
    session = rewritten.ctx.guest.stopped
    asked = sample_leaves(rewritten.ctx.guest.snapshots["after"], 100)
    assert len(asked) >= 100
    for n, (va, pa) in enumerate(asked):
        assert session.gva2gpa(va) == pa, hex(va)
        if n % 10 == 0:
            assert int(rewritten(f"walk {va:#x}")["pa"], 16) == pa


def test_drgn_agrees_on_every_leaf(rewritten: Live, tmp_path: Path) -> None:
    from drgn_oracle import DrgnOracle

    snapshot = rewritten.ctx.guest.snapshots["after"]
    hits = rewritten(f"find pa:{snapshot.root.pa:#x} --snap after")["hits"]
    images = [int(hit["va"], 16) for hit in hits]
    assert images
    oracle = DrgnOracle(snapshot, max(images), tmp_path)
    found = leaves(snapshot)
    assert len(found) == total(rewritten("summary --snap after"), "leaves")
    wrong = 0
    for va, pa, _ in found:
        if oracle.is_table(pa):
            assert oracle.table_bytes(va) == oracle.row(pa & -snapshot.regime.granule).tobytes(), hex(va)
        else:
            wrong += oracle.translate(va) != pa
    assert wrong == 0


def test_the_walk_works_at_the_end_of_the_rewrite_and_status_says_after(rewritten: Live) -> None:
    assert rewritten("kpti status")["state"] == "after"
    walk = rewritten("walk $pc") if rewritten.ctx.guest.stopped.cpu_state(0).pc >> 63 else None
    assert walk is None or walk["outcome"] == "mapped"


def test_what_the_rewrite_left_is_as_expected(rewritten: Live) -> None:
    for expected in (
        "status.state == stopped", "kpti.run.reached == true", "stack free >= 4096",
        "summary.level3.leaves_ng == summary.level3.leaves", "summary --snap before leaves_ng == 0",
        "walk $sp --snap after outcome == mapped",
    ):  # fmt: skip
        assert rewritten.exit_code(f"expect {expected}") == 0, expected
    assert rewritten.exit_code("expect stack.free > 1M") == 1


def test_a_zeroed_pmd_entry_is_named(tmp_path: Path) -> None:
    with launched("5.10-cloud") as live:
        assert live("kpti run")["reached"]
        snapshot = live.ctx.guest.snapshots["after"]
        tables = snapshot.tables
        row = int(np.flatnonzero(tables.level == 2)[0])
        slot = int(np.flatnonzero((tables.raw[row] & np.uint64(3)) == 3)[5])
        descriptor = int(tables.pa[row]) + 8 * slot
        va = (int(tables.va[row]) + (slot << 21)) & MASK64
        live.ctx.guest.stopped.write_physical((descriptor, bytes(8)))
        live("snap broken")
        live(f"save after {tmp_path / 'after.npz'}")
        live(f"save broken {tmp_path / 'broken.npz'}")
        assert live("walk " + hex(va))["outcome"] == "fault"
        assert live.exit_code("diff after broken --expect-only-bit11") == 1
    ctx_free = Live(type(live.ctx)(live.ctx.registry))
    diff = ctx_free(f"diff {tmp_path / 'after.npz'} {tmp_path / 'broken.npz'}")
    assert [c["kinds"] for c in diff["changes"]] == [["lost"]]
    change = diff["changes"][0]
    assert (int(change["va_start"], 16), change["level"]) == (va, 2)
    assert int(change["va_end"], 16) in (va + 0x1F_FFFF, va + 0x20_0000)
    assert int(change["descriptor_pa"], 16) == descriptor
    assert total(diff, "lost") == 1


def test_the_walk_works_with_the_mmu_off() -> None:
    with launched("5.10-cloud") as live:
        from ptinspect.guest.rewrite.rewrite import Runner

        runner = Runner(live.ctx.guest, 300.0)
        runner.place_kernel()
        assert runner.enter()
        sp = live.ctx.guest.stopped.cpu_state(0).sp
        expected = live("walk " + hex(sp))["pa"]
        runner.run_to([runner.point("after_writes")])
        state = live.ctx.guest.stopped.cpu_state(0)
        assert not state.system["SCTLR_EL1"] & 1
        assert live.ctx.guest.stopped.gva2gpa(sp) in (None, sp)
        walk = live("walk " + hex(sp))
        assert (walk["outcome"], walk["pa"], walk["mmu_on"]) == ("mapped", expected, False)
