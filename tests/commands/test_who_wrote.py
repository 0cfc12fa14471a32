"""`diff --who`, `check --who`: who made what was found, as commands show it and snapshots keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import context, kernel_tree, run, text

from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables import check
from ptinspect.dataclass import replace
from ptinspect.errors import UserError
from ptinspect.guest.recordings import last_writes
from ptinspect.guest.recordings.kept_writes import keep, kept
from ptinspect.guest.recordings.writers import Write
from ptinspect.snapshot.fact_names import WRITERS

PC = 0xFFFF_8000_1003_F8F4


def write(position: int, before: int, after: int, pa: int = 0x4100_0018) -> Write:
    return Write(
        PC, f"{PC:#x} (pmd_clear_huge+0x24)", "str xzr, [x2]", 0, 1, True, "swapper/0", 1,
        ("0xffff8000102c0be4 (unmap_kernel_range+0x15c)",), "",
        PhysAddr(pa), position, before, after, "store", 0xFFFF_0000_0000_0018,
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
    assert said.count(f"written at position 7,000,000 by {PC:#x} (pmd_clear_huge+0x24): str xzr, [x2]") == 2
    assert said.count("called by unmap_kernel_range+0x15c") == 2
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
    assert [("written at position 7,000,000" in row, "nothing wrote it" in row) for row in rows] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip
    run(ctx, f"diff a b --who -o {tmp_path}/d.json")
    assert json.loads((tmp_path / "d.json").read_text())["changes"][0]["written"]["task"] == "swapper/0"


def test_a_page_names_them(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(ctx, f"report {tmp_path}/p.html a b --who")
    page = (tmp_path / "p.html").read_text()
    assert page.count("written at position 7,000,000 by") == 2 and page.count("nothing wrote it in this") == 1
    run(ctx, f"report {tmp_path}/p.html a b")
    assert "written at position" not in (tmp_path / "p.html").read_text()
    monkeypatch.undo()
    with pytest.raises(UserError, match="not the replay of a recording"):
        run(ctx, f"report {tmp_path}/p.html a b --who")


def test_only_a_replay_tells(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for line in ("diff a b --who", "diff a --who"):
        with pytest.raises(UserError, match="not the replay of a recording"):
            run(ctx, line)
    alone = context()
    alone.guest.snapshots = ctx.guest.snapshots
    with pytest.raises(UserError, match="only a recorded boot tells who wrote it"):
        run(alone, "diff a b --who")


def test_what_was_found_is_kept_in_the_snapshot_and_told_without_a_guest(
    ctx: Context, tmp_path: Path
) -> None:
    (first, second, _) = run(ctx, "diff a b").result["changes"]
    known = [
        write(7_000_000, 3, 0, int(first["descriptor_pa"], 16)),
        write(8_000_000, 3, 4, int(second["descriptor_pa"], 16)),  # not the value that b has
    ]
    keep(ctx.guest, ctx.guest.snapshots["b"], known[:1])
    keep(ctx.guest, ctx.guest.snapshots["b"], known[1:])
    for name in "ab":
        run(ctx, f"save {name} {tmp_path}/{name}.npz")
    assert "timeline.writers" not in run(ctx, f"load {tmp_path}/b.npz --as c").result["extra"]
    report = run(context(), f"diff {tmp_path}/a.npz {tmp_path}/b.npz")
    by = [change.get("written") for change in report.result["changes"]]
    assert [w and (w["position"], w["changes"]) for w in by] == [(7_000_000, ["lost"]), None, None]
    assert (
        "writers_left_out" not in report.result and text(report).count("written at position 7,000,000") == 1
    )
    run(context(), f"report {tmp_path}/p.html {tmp_path}/a.npz {tmp_path}/b.npz")
    assert (tmp_path / "p.html").read_text().count("written at position 7,000,000 by") == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"pa": -1}, {"pa": "1"}, {"position": 1 << 64}, {"how": "by magic"}, {"calls": [1]}, {"calls": 7},
        {"mmu_on": 1}, {"pid": "x"}, {"source": 1},
    ],
)  # fmt: skip
def test_writes_that_a_file_holds_are_what_they_should_be(ctx: Context, damage: dict[str, Any]) -> None:
    b = ctx.guest.snapshots["b"]
    keep(ctx.guest, b, [write(7, 3, 0)])
    b = ctx.guest.snapshots["b"]
    assert list(kept(b).values()) == [write(7, 3, 0)]
    (item,) = json.loads(b.meta.extra[WRITERS])
    older = {name: value for name, value in item.items() if name != "source"}
    newer = replace(b, meta=replace(b.meta, extra={WRITERS: json.dumps([{**older, "more": 1}])}))
    assert list(kept(newer).values()) == [write(7, 3, 0)]
    several = (json.dumps([{**item, **damage}]), '{"a": 1}', "7", "[[]]", "[1]", "{", "[" * 100_000)
    for kind in several:
        assert kept(replace(b, meta=replace(b.meta, extra={WRITERS: kind}))) == {}


def test_findings_tell_who_wrote_what_is_wrong(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[PhysAddr, int]] = []

    def of_descriptors(guest: Any, values: Any, snapshot: Any, seconds: float) -> Any:
        asked.append(values)
        pa, value = next(iter(values.items()))
        return {pa: write(7_000_000, 3, value, pa)}

    monkeypatch.setattr(last_writes, "of_descriptors", of_descriptors)
    monkeypatch.setattr(check, "SEARCHED", 2)
    report = run(ctx, "check --snap b --against a --who")
    by = [finding.get("written", "") for finding in report.result["findings"]]
    assert len(asked[0]) == 2 and report.result["writers_left_out"] == len(by) - 2 > 0
    assert [w and w["position"] for w in by[:3]] == [7_000_000, None, ""]
    said = " ".join(text(report).split())
    assert (
        "written at position 7,000,000" in said and "nothing wrote it" in said and "who pa:DESCRIPTOR" in said
    )
    assert "written" not in run(ctx, "check --snap b --against a").result["findings"][0]
    monkeypatch.undo()
    with pytest.raises(UserError, match="not the replay of a recording"):
        run(ctx, "check --who")
