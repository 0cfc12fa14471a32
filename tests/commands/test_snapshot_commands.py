"""Snapshots and what looks at tables, live and offline."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from builders import NG, TreeBuilder
from fakes import IMAGE, KERNEL, FakeKernel, context, cpu, kernel_tree, run, text

from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, SnapshotError, UserError


@pytest.fixture
def tree() -> TreeBuilder:
    return kernel_tree()


@pytest.fixture
def ctx(tree: TreeBuilder) -> Context:
    return context(tree)


def offline(ctx: Context) -> Context:
    """The same snapshots with no guest."""
    other = context()
    other.guest.snapshots = ctx.guest.snapshots
    return other


# -- snapshots ----------------------------------------------------------------------------------


def test_snap_keeps_tables_registers_and_where(ctx: Context) -> None:
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    result = run(ctx, "snap before --note 'a note'").result
    assert result["root"]["provenance"] == "TTBR1_EL1 of cpu 0"
    assert result["note"] == "a note"
    assert result["kernel"] == "Linux version 5.10.0-test"
    snapshot = ctx.guest.snapshots["before"]
    assert len(snapshot.tables) == result["tables"]
    assert snapshot.meta.where == f"cpu 0 at {KERNEL + 0x1_0000:#x} (start_kernel+0xf000)"
    assert snapshot.cpus[0].system["SCTLR_EL1"] == 1
    assert "before" in text(run(ctx, "snaps"))


def test_what_is_no_table_is_not_captured(ctx: Context, tree: TreeBuilder) -> None:
    """Of other bytes taken for descriptors most lead out of memory."""
    code = IMAGE + 0x1000
    for slot in range(8):
        tree.set_word(code + 8 * slot, 0x9_0000_0003 + (slot << 16))
    for line in ("snap x", "map", "summary", "check"):
        with pytest.raises(GuestError, match=f"pa:{code:#x} .*is no root table: 8 of the 9 tables"):
            run(ctx, f"{line} --root pa:{code:#x}")
    assert "x" not in ctx.guest.snapshots
    for slot in range(3, 8):
        tree.set_word(code + 8 * slot, 0)
    assert run(ctx, f"snap x --root pa:{code:#x}").result["tables"] == 4


def test_a_name_is_not_taken_twice(ctx: Context) -> None:
    run(ctx, "snap a")
    first = ctx.guest.snapshots["a"]
    with pytest.raises(UserError, match="already"):
        run(ctx, "snap a")
    assert ctx.guest.snapshots["a"] is first
    run(ctx, "snap a --replace")
    assert ctx.guest.snapshots["a"] is not first


@pytest.mark.parametrize("name", ["a/b", "''", "'a\tb'"])
def test_names_that_are_none(ctx: Context, name: str) -> None:
    with pytest.raises(UserError, match="not a name"):
        run(ctx, f"snap {name}")


def test_a_part_is_called_a_part(ctx: Context) -> None:
    report = run(ctx, f"snap part --range {KERNEL:#x}+2M")
    assert report.result["va_range"] == [hex(KERNEL), hex(KERNEL + (2 << 20) - 1)]
    assert report.result["tables"] == 3
    assert "only 0xffff800010000000..0xffff800010200000 was captured" in text(report)


def test_too_many_tables_are_said(ctx: Context) -> None:
    report = run(ctx, "snap few --max-tables 2")
    assert report.result["truncated"]
    assert "incomplete" in text(report)


def test_save_load_drop(ctx: Context, tmp_path: Path) -> None:
    run(ctx, "snap a")
    run(ctx, f"save a {tmp_path}/a")
    assert (tmp_path / "a.npz").is_file()
    other = context()
    run(other, f"load {tmp_path}/a.npz --as b")
    assert other.guest.snapshots["b"].tables.raw.tolist() == ctx.guest.snapshots["a"].tables.raw.tolist()
    assert other.guest.snapshots["b"].name == "b"
    run(other, "drop b")
    assert other.guest.snapshots == {}
    with pytest.raises(UserError, match="no snapshot and no file 'b'"):
        run(other, "drop b")


def test_drop_is_all_or_nothing(ctx: Context) -> None:
    run(ctx, "snap a")
    with pytest.raises(UserError):
        run(ctx, "drop a nosuch")
    assert list(ctx.guest.snapshots) == ["a"]


def test_a_file_that_is_no_snapshot(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    for line in (f"load {tmp_path}/x.npz", f"walk 0x10 --snap {tmp_path}/x.npz"):
        with pytest.raises(SnapshotError):
            run(context(), line)


# -- offline ------------------------------------------------------------------------------------


def test_walk_on_a_snapshot_agrees_with_the_guest(ctx: Context) -> None:
    run(ctx, "snap a")
    for va in (KERNEL + 0x1234, 0xFFFF_0000_0000_3008, 0xFFFF_9000_0000_0000):
        live = dict(run(ctx, f"walk {va:#x}").result)
        held = dict(run(offline(ctx), f"walk {va:#x} --snap a").result)
        assert held.pop("source") == "snapshot a"
        assert live.pop("source") == "guest, cpu 0"
        assert held == live


def test_walk_on_a_file(ctx: Context, tmp_path: Path) -> None:
    run(ctx, "snap a")
    run(ctx, f"save a {tmp_path}/a.npz")
    assert run(context(), f"walk {KERNEL:#x} --snap {tmp_path}/a.npz").result["pa"] == hex(IMAGE)


def test_registers_of_a_snapshot(ctx: Context, tree: TreeBuilder) -> None:
    run(ctx, "snap a")
    held = offline(ctx)
    assert run(held, "regs ttbr1_el1 --snap a").result["registers"]["ttbr1_el1"] == hex(tree.root)
    assert run(held, "regime --snap a").result["ttbr1"]["va_bits"] == 48
    assert run(held, "walk $pc --snap a").result["va"] == hex(KERNEL + 0x1_0000)


def test_symbols_of_a_snapshot_use_the_placement_at_its_time(ctx: Context) -> None:
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    run(ctx, "snap a")
    held = offline(ctx)
    with pytest.raises(UserError, match="kernel file"):
        run(held, "walk start_kernel --snap a")
    held.guest._kernel = FakeKernel()  # type: ignore[assignment]
    assert run(held, "walk start_kernel --snap a").result["pa"] == hex(IMAGE + 0x1000)


def test_symbols_of_a_snapshot_move_with_kaslr(ctx: Context) -> None:
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    view = ctx.guest.view
    view.kaslr_offset = 0x20_0000  # type: ignore[misc]
    ctx.guest._look_at_kernel = lambda: view  # type: ignore[method-assign]
    run(ctx, "snap a")
    assert run(ctx, "walk start_kernel --snap a").result["va"] == hex(KERNEL + 0x1000 + 0x20_0000)


def test_the_other_half_is_not_in_it(ctx: Context) -> None:
    run(ctx, "snap a")
    with pytest.raises(UserError, match="not in the kernel half"):
        run(offline(ctx), "walk 0x400000 --snap a")


def test_a_name_in_memory_wins_over_a_file(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ctx, "snap a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"no snapshot")
    assert run(offline(ctx), f"walk {KERNEL:#x} --snap a").result["outcome"] == "mapped"


# -- diff ---------------------------------------------------------------------------------------


def pair(ctx: Context, tree: TreeBuilder, change: Any) -> Context:
    run(ctx, "snap before")
    change(tree)
    ctx.guest.session.stop_token += 1  # type: ignore[union-attr,misc]
    run(ctx, "snap after")
    return ctx


def mark_all(tree: TreeBuilder) -> None:
    tree.xor(KERNEL, 0, NG)
    tree.xor(KERNEL, 2, NG)


def test_diff_of_bit_11_alone(ctx: Context, tree: TreeBuilder) -> None:
    report = run(pair(ctx, tree, mark_all), "diff before after --expect-only-bit11")
    assert report.exit_code == 0
    assert report.result["only_bit11"] is True
    assert report.result["changes"] == []
    levels = {level["name"]: level for level in report.result["levels"]}
    assert (levels["pgd"]["marked"], levels["pmd"]["ng_set"], levels["pte"]["changed"]) == (1, 1, 0)
    assert "only bit 11 changed: 1 table marked, 1 leaf became nG" in text(report)
    assert max(len(line) for line in text(report).splitlines()) <= 100


def test_diff_names_what_was_lost(ctx: Context, tree: TreeBuilder) -> None:
    report = run(pair(ctx, tree, lambda t: t.set(0xFFFF_0000_0000_0000, 2, 0)), "diff before after")
    (change,) = report.result["changes"]
    assert change["kinds"] == ["lost"]
    assert (change["level"], change["va_start"], change["va_end"]) == (
        2,
        "0xffff000000000000",
        "0xffff0000001fffff",
    )
    assert change["descriptor_pa"] == hex(tree.slot(0xFFFF_0000_0000_0000, 2))
    assert (change["after"], change["leaves_before"]) == ("0x0", 16)
    assert change["before_decoded"].startswith("table -> pa:")
    shown = text(report)
    assert "lost: level 2, 0xffff000000000000..0xffff000000200000" in shown
    assert f"descriptor at pa:{tree.slot(0xFFFF_0000_0000_0000, 2):#x}; 16 leaves with 64K gone" in shown
    assert report.exit_code == 0


def test_an_expectation_that_does_not_hold_is_exit_code_1(ctx: Context, tree: TreeBuilder) -> None:
    pair(ctx, tree, lambda t: t.set(KERNEL, 2, 0))
    assert run(ctx, "diff before after --expect-only-bit11").exit_code == 1
    assert run(ctx, "diff before after").exit_code == 0
    assert run(ctx, "diff before before --expect-only-bit11").exit_code == 0


def test_diff_files(ctx: Context, tree: TreeBuilder, tmp_path: Path) -> None:
    pair(ctx, tree, lambda t: t.map(0xFFFF_0000_0000_0000, 0x4100_0000, size=16 << 12))
    for suffix in ("txt", "json", "csv", "md"):
        run(ctx, f"diff before after -o {tmp_path}/d.{suffix} --limit 3")
    document = json.loads((tmp_path / "d.json").read_text())
    assert document["changes_total"] == 16
    assert {c["kinds"][0] for c in document["changes"]} == {"retargeted"}
    rows = list(csv.reader((tmp_path / "d.csv").open(newline="")))
    heads = [row for row in rows if row[:1] == ["va_start"]]
    assert len(heads) == 1
    assert len([row for row in rows if row[:1] and row[0].startswith("0x")]) == 3
    assert "| va\\_start | va\\_end |" in (tmp_path / "d.md").read_text()
    assert "\x1b" not in (tmp_path / "d.txt").read_text()


def test_diff_limits_the_screen_and_says_so(ctx: Context, tree: TreeBuilder) -> None:
    pair(ctx, tree, lambda t: t.map(0xFFFF_0000_0000_0000, 0x4100_0000, size=16 << 12))
    shown = text(run(ctx, "diff before after --limit 2"))
    assert shown.count("retargeted: level 3") == 2
    assert "… and 14 more" in shown
    report = run(ctx, "diff before after")
    assert len(report.result["changes"]) == 16


def test_an_unknown_suffix_is_refused_at_once(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown suffix"):
        run(ctx, f"diff nosuch nosuch -o {tmp_path}/d.doc")


def test_a_pipe_and_a_directory_are_told_from_nothing(ctx: Context, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="can be read only once"):
        run(ctx, f"diff {tmp_path}/fifo {tmp_path}/fifo")
    with pytest.raises(UserError, match="is a directory"):
        run(ctx, f"summary --snap {tmp_path}")
    with pytest.raises(UserError, match="no snapshot and no file"):
        run(ctx, f"summary --snap {'a' * 5000}")


def test_diff_of_snapshots_of_different_shape(ctx: Context, tree: TreeBuilder) -> None:
    run(ctx, "snap a")
    ctx.guest.session.cpus = [cpu(tree, TCR_EL1=25 | 25 << 16 | 2 << 30)]  # type: ignore[union-attr]
    ctx.guest.session.stop_token += 1  # type: ignore[union-attr,misc]
    run(ctx, "snap b")
    with pytest.raises(SnapshotError, match="cannot be compared"):
        run(ctx, "diff a b")


def test_code_of_the_identity_map_in_a_snapshot(ctx: Context) -> None:
    """Where the image lies follows from the captured tables."""
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    run(ctx, "snap s")
    snapshot = ctx.guest.snapshots["s"]
    assert ctx.guest.place(IMAGE + 0x1004, snapshot=snapshot) == f"{IMAGE + 0x1004:#x} (start_kernel+0x4)"
    assert ctx.guest.place(0x1004, snapshot=snapshot) == "0x1004"
