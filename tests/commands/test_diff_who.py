"""`diff --who`: who made the changes, as commands show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import context, kernel_tree, run, text

from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.guest.recordings import last_writes
from ptinspect.guest.recordings.writers import Write

PC = 0xFFFF_8000_1003_F8F4


def write(position: int, before: int, after: int) -> Write:
    return Write(
        PhysAddr(0x4100_0018), position, before, after, "store", PC, f"{PC:#x} (pmd_clear_huge+0x24)",
        "str xzr, [x2]", 0xFFFF_0000_0000_0018, 0, 1, True, "swapper/0", 1,
        ("0xffff8000102c0be4 (unmap_kernel_range+0x15c)",),
    )  # fmt: skip


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch) -> Context:
    """Three entries are lost between the snapshots a and b; nothing wrote the last of them."""
    tree = kernel_tree()
    made = context(tree)
    monkeypatch.setattr(last_writes, "searched", lambda guest: None)

    def of_changes(guest: Any, changes: Any, a: Any, b: Any, seconds: float) -> list[Write | None]:
        return [None if c.va_start & 0xF000 == 0x5000 else write(7_000_000, c.before, 0) for c in changes]

    monkeypatch.setattr(last_writes, "of_changes", of_changes)
    run(made, "snap a")
    table = tree.table_at(0xFFFF_0000_0000_0000, 3)
    for slot in (3, 4, 5):
        tree.set_word(table + 8 * slot, 0)
    run(made, "snap b")
    return made


def test_each_change_tells_who_wrote_it(ctx: Context) -> None:
    report = run(ctx, "diff a b --who")
    by = [change["written"] for change in report.result["changes"]]
    assert [None if w is None else (w["position"], w["changes"], w["pc"]) for w in by] == [
        (7_000_000, ["lost"], hex(PC))
    ] * 2 + [None]
    assert report.result["writers_left_out"] == 0
    said = text(report)
    assert said.count(f"written at 7,000,000 by {PC:#x} (pmd_clear_huge+0x24): str xzr, [x2]") == 2
    assert said.count("called by 0xffff8000102c0be4 (unmap_kernel_range+0x15c)") == 2
    assert said.count("swapper/0 (pid 1)") == 2 and said.count("nothing wrote it") == 1


def test_as_many_are_searched_as_are_listed(ctx: Context) -> None:
    report = run(ctx, "diff a b --who --limit 1")
    assert [("written" in change) for change in report.result["changes"]] == [True]
    assert report.result["writers_left_out"] == 2 and "… and 2 more (--limit N" in text(report)
    report = run(ctx, "diff a b --who --at 0xffff000000004008")
    assert [("written" in change) for change in report.result["changes"]] == [False, True, False]
    assert text(report).count("written at") == 1 and "pte 3" in text(report)
    assert "written" not in run(ctx, "diff a b").result["changes"][0]


def test_files_hold_them_too(ctx: Context, tmp_path: Path) -> None:
    run(ctx, f"diff a b --who -o {tmp_path}/d.csv")
    rows = [line for line in (tmp_path / "d.csv").read_text().splitlines() if line.startswith("0xffff0000")]
    assert [("written at 7,000,000" in row, "nothing wrote it" in row) for row in rows] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip
    run(ctx, f"diff a b --who -o {tmp_path}/d.json")
    assert json.loads((tmp_path / "d.json").read_text())["changes"][0]["written"]["task"] == "swapper/0"


def test_only_a_replay_tells(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for line in ("diff a b --who", "diff a --who"):
        with pytest.raises(UserError, match="not the replay of a recording"):
            run(ctx, line)
    alone = context()
    alone.guest.snapshots = ctx.guest.snapshots
    with pytest.raises(UserError, match="only a recorded boot tells who wrote it"):
        run(alone, "diff a b --who")
