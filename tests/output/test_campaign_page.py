"""A campaign and stack traces on the HTML page, as a person meets them in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from test_page import CONTRAST, data_of, lost_table

from ptinspect.campaign.plan import RECORDING, Plan, cells_of
from ptinspect.campaign.results import Record, append, begin
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.stack.trace import trace_report
from ptinspect.commands.stack.trace_view import picture
from ptinspect.output.html import Page
from ptinspect.snapshot.store import save
from ptinspect.stack.trace import STEP, Deepest, Part, Point, Trace, TracedStack

EVIL = "<img src=x onerror=alert(1)><b>no</b>"
PLAN = Plan("s.pti", "0", 8, cells_of(["mem=512,1024"]))


def campaign(folder: Path) -> Path:
    """Of eight runs in two cells two fail alike, with their snapshots, one hangs, and one is missing."""
    path = folder / "out"
    path.mkdir()
    begin(path, PLAN, (1, 1), {})
    ends: dict[int, dict[str, Any]] = {
        3: {"outcome": "hang", "message": f"the time was over {EVIL}", "panic": EVIL},
        4: {
            "outcome": "fail",
            "where": "/tmp/s.pti:4",
            "message": "expect: check.ok",
            "verdict": "lost-entry",
            "lost": 1,
        },
        6: {"outcome": "fail", "where": "/tmp/s.pti:4", "message": "expect: check.ok", "lost": 1},
    }
    for number in range(1, 8):
        cell = dict(PLAN.all_runs()[number - 1].cell.values)
        append(
            path,
            Record(
                number,
                cell,
                1,
                **{
                    "outcome": "pass",
                    "seconds": number / 2,
                    "deepest": 800,
                    "least_free": 15584,
                    **ends.get(number, {}),
                },
            ),
        )
    kept = path / "runs" / "00004"
    kept.mkdir(parents=True)
    (kept / RECORDING).mkdir()
    before, after, _ = lost_table()
    save(before, kept / "before.npz")
    save(after, kept / "failed.npz")
    return path


def written(folder: Path) -> Path:
    ctx = Context(build_registry())
    page = folder / "campaign.html"
    report = ctx.registry.run(ctx, f"campaign report {campaign(folder)} -o {page}")
    assert report.exit_code == 1
    return page


def test_a_campaign_begins_with_its_verdict_and_the_ways_to_fail(tmp_path: Path) -> None:
    data = data_of(written(tmp_path))
    (shown,) = data["campaigns"]
    assert shown["verdict"] == "8 runs of s.pti: 4 passed, 2 fail, 1 hang, 1 not run" and not shown["good"]
    hang, fail = (way["words"].split("\n") for way in shown["ways"])
    assert hang[0] == "hang: mem=512, run 3" and EVIL in hang[2]
    assert fail[:3] == ["fail: mem=1024, runs 4, 6", "s.pti:4: expect: check.ok", "verdict: lost-entry"]
    assert fail[-2].startswith("run 4, recorded: timeline open /") and fail[-2].endswith(f"00004/{RECORDING}")
    assert fail[-1] == "a click leads to the tables of run 4"
    assert [way["diff"] for way in shown["ways"]] == [None, 0]
    assert [(each["a"], each["b"], each["changes_total"]) for each in data["diffs"]] == [
        ("before, run 4", "after, run 4", 1)
    ]


def test_damaged_snapshots_of_a_run_are_not_drawn(tmp_path: Path) -> None:
    path = campaign(tmp_path)
    (path / "runs" / "00004" / "failed.npz").write_bytes(b"none")
    ctx = Context(build_registry())
    ctx.registry.run(ctx, f"report {tmp_path / 'x.html'} --campaign {path}")
    data = data_of(tmp_path / "x.html")
    assert data["campaigns"][0]["ways"][1]["diff"] is None
    assert (data["diffs"], data["maps"]) == ([], [])


def test_a_snapshot_beside_a_campaign_leads_to_its_own_map(tmp_path: Path) -> None:
    alone, _, _ = lost_table()
    save(alone, tmp_path / "alone.npz")
    ctx = Context(build_registry())
    ctx.registry.run(
        ctx, f"report {tmp_path / 'x.html'} {tmp_path / 'alone.npz'} --campaign {campaign(tmp_path)}"
    )
    data = data_of(tmp_path / "x.html")
    assert [data["maps"][space["map"]]["title"] for space in data["spaces"]] == [
        "before, run 4 → after, run 4",
        "before",
    ]


@pytest.mark.live
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_cells_and_leads_from_a_failure_to_its_lost_entry(
    dark: bool, tmp_path: Path, tab: Browser
) -> None:
    path = written(tmp_path)
    assert path.stat().st_size < 200_000
    tab.open(path, dark=dark)
    heads = tab.ask("[...document.querySelectorAll('#campaign0 h3')].map((each) => each.textContent)")
    assert heads == ["what did not pass, in 2 ways", "cells"]
    lines = "document.querySelectorAll('#campaign0 tbody tr')"
    rows = tab.ask(f"[...{lines}].map((row) => [...row.children].map((c) => c.textContent))")
    assert rows[0] == ["mem=512", "4", "", "3 pass, 1 hang", "800 used, 15584 free", "-", "0.5 / 2.0 / 3.5"]
    assert rows[1] == [
        "mem=1024",
        "4",
        "",
        "1 pass, 2 fail, 1 missing",
        "800 used, 15584 free",
        "2",
        "1.0 / 2.0 / 3.0",
    ]
    bars = "document.querySelectorAll('#campaign0 tbody tr:first-child .bar i')"
    widths = tab.ask(f"[...{bars}].map((part) => part.offsetWidth)")
    assert len(widths) == 2 and abs(widths[0] - 3 * widths[1]) <= 4
    assert tab.ask("document.querySelectorAll('main img, main ol b, h2 b').length") == 0
    assert tab.ask(CONTRAST) == []
    tab.click("#campaign0 input")
    tab.type("1024 expect")
    assert tab.ask("document.querySelectorAll('#campaign0 .changes li').length") == 1
    tab.click("#campaign0 .changes button")
    top = tab.ask("document.getElementById('diff0').getBoundingClientRect().top / innerHeight")
    assert 0 < top < 0.5
    tab.click("#diff0 .changes button")
    assert "lost: level 2" in tab.ask("document.querySelector('#map2 aside').textContent")
    tab.click("#map2 aside button")
    assert tab.ask("document.activeElement === window.ptinspect.maps[0].canvas")


def traced() -> Trace:
    """SP goes down on a task's stack, is on the interrupt's for a while, and comes back."""
    stacks = (
        TracedStack("task", f"init {EVIL}", 0x10000, 0x14000),
        TracedStack("irq", "cpu 0", 0x20000, 0x24000),
    )
    rows = ((0, 0, 0x100), (10, 0, 0x200), (20, 1, 0x40), (30, 1, 0x3000), (40, 0, 0x200), (50, 0, 0x80))
    points = tuple(
        Point(at, stack, stacks[stack].top - used, 0xFFFF_8000_1000_0000 + at) for at, stack, used in rows
    )
    deepest = (
        Deepest(1, 0x3000, 30, 0, "handler+0x4", (Part("handler", 0x3000),)),
        Deepest(0, 0x200, 10, 0, "work+0x8"),
    )
    return Trace(STEP, "Linux", "a", "b", 6, 1.0, stacks, points, deepest)


@pytest.mark.live
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_the_depth_of_stacks_and_looks_closer(
    dark: bool, tmp_path: Path, tab: Browser
) -> None:
    trace = traced()
    page = Page("traces", traces=[picture(trace, trace_report(trace), "a.trace")])
    path = tmp_path / "trace.html"
    path.write_text(page.text())
    tab.open(path, dark=dark)
    assert tab.ask("document.querySelectorAll('.curve').length") == 2
    places = tab.ask("[...document.querySelectorAll('text.place')].map((each) => each.textContent)")
    assert places == ["12288: handler+0x4", "512: work+0x8"]
    assert tab.ask("document.querySelectorAll('main b, main img').length") == 0
    assert tab.ask("document.querySelectorAll('line.limit').length") == 0, "the ends are far away"
    tab.click(".legend button")
    assert tab.ask("document.querySelectorAll('line.limit').length") == 2
    assert tab.ask(CONTRAST) == []
    said = "document.querySelector('#trace0 .mono').textContent"
    left = tab.ask(
        "window.ptinspect.data.traces[0].chart.left / document.querySelector('.chart').clientWidth"
    )

    def at(time: float) -> float:
        return left + time / 50 * (1 - left - 12 / tab.ask("document.querySelector('.chart').clientWidth"))

    tab.point(".chart", at(35))
    assert (
        tab.ask(said) == "30 instructions: 12288 bytes used on the irq stack of cpu 0, pc 0xffff80001000001e"
    )
    tab.click(".chart", at(35))
    tab.press("ArrowRight")
    assert tab.ask(said).startswith("40 instructions: 512 bytes used on the task stack")
    ends = "const { from, to } = window.ptinspect.data.traces[0].chart; return [from, to]"
    tab.drag(".chart", at(5), at(15))
    start, end = tab.ask(ends)
    assert abs(start - 5) < 1 and abs(end - 15) < 1
    tab.press("0")
    assert tab.ask(ends) == [0, 50]
    tab.press("+")
    start, end = tab.ask(ends)
    assert abs(end - start - 25) <= 1
    tab.click("#trace0 label:nth-child(2) input")
    assert tab.ask("document.querySelectorAll('.curve').length") == 1
