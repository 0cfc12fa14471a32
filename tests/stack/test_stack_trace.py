"""Traces of the stack pointer: who takes what, what is deepest, files, and comparisons."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.commands.stack.trace import diff_report, trace_report
from ptinspect.commands.stack.trace_view import WIDTH, chart, picture
from ptinspect.errors import SnapshotError
from ptinspect.link.gdb.recorder import TRACE_RECORD
from ptinspect.output.text import render
from ptinspect.stack.trace import (
    LADDER,
    STEP,
    Compared,
    Contributions,
    Finder,
    Part,
    Point,
    Series,
    Trace,
    TracedStack,
    compare,
    thin,
)
from ptinspect.stack.trace_file import dumps, load

TASK = TracedStack("task", "init (1)", 0x10000, 0x14000)
IRQ = TracedStack("irq", "cpu 0", 0x20000, 0x24000)
FUNCTIONS = {0x1000: "main", 0x2000: "middle", 0x3000: "leaf", 0x4000: "irq"}
EL1 = 5


def function(pc: int) -> tuple[str, int]:
    return FUNCTIONS[pc & ~0xFFF], pc & ~0xFFF


def place(pc: int) -> str:
    name, start = function(pc)
    return f"{name}+{pc - start:#x}"


def records(*rows: tuple[int, int, int]) -> Any:
    found = np.zeros(len(rows), dtype=TRACE_RECORD)
    for name, column in zip(("pc", "sp", "pstate"), zip(*rows, strict=True), strict=True):
        found[name] = column
    return found


WAY = (
    (0x1010, 0x13F00, EL1),
    (0x2000, 0x13F00, EL1),
    (0x2004, 0x13EC0, EL1),
    (0x3000, 0x13EC0, EL1),
    (0x3004, 0x13E40, EL1),
    (0x4000, 0x23FF0, EL1),
    (0x4004, 0x23F00, EL1),
    (0x3008, 0x13E40, EL1),
    (0x300C, 0x13EC0, EL1),
    (0x2008, 0x13EC0, EL1),
    (0x200C, 0x13F00, EL1),
    (0x1014, 0x13F00, EL1),
    (0x3000, 0x13F00, EL1),
    (0x3004, 0x13E80, EL1),
    (0x3008, 0x13E80, 0),
)
"""main calls middle, which calls leaf; an interrupt comes in the leaf; then main calls leaf, then EL0."""


def stepped() -> Trace:
    series = Series(Finder([IRQ, TASK]), function, place, [(0x13F00, "main", 0x20), (0x13F20, "start", 0xE0)])
    series.add_steps(records(*WAY), 0)
    return Trace(
        STEP, "Linux", "a", "b", 14, 0.5, tuple(series.finder.used), tuple(series.points), series.deepest(),
        series.functions(),
    )  # fmt: skip


def test_steps_give_the_deepest_point_of_each_stack_and_the_chain_there() -> None:
    trace = stepped()
    task, irq = trace.deepest
    assert (trace.stacks[task.stack], task.used, task.at, task.place) == (TASK, 0x1C0, 4, "leaf+0x4")
    assert task.chain == (
        Part("leaf", 0x80), Part("middle", 0x40), Part("main", 0), Part("main", 0x20), Part("start", 0xE0),
    )  # fmt: skip
    assert (trace.stacks[irq.stack], irq.used) == (IRQ, 0x100)
    assert sum(part.size for part in task.chain) == task.used
    assert {p.function: p.size for p in trace.functions} == {
        "leaf": 0x80, "middle": 0x40, "irq": 0xF0, "main": 0,
    }  # fmt: skip
    assert trace.points[-1].stack == -1, "user code has no kernel stack"


def test_recursion_and_tail_calls_are_told_apart() -> None:
    own = Contributions(function)
    for pc, sp in ((0x1000, 100), (0x1004, 80), (0x1000, 80), (0x1004, 60)):
        own.step(pc, sp)
    assert own.chain(60) == (Part("main", 20), Part("main", 20))
    own.step(0x2010, 60)  # a jump into the middle of another function
    assert sum(part.size for part in own.chain(60)) == 40
    assert own.most["main"] == 20


@given(st.lists(st.tuples(st.sampled_from(sorted(FUNCTIONS)), st.integers(0, 40)), max_size=60))
def test_chains_always_sum_up_to_the_depth(moves: list[tuple[int, int]]) -> None:
    own, top = Contributions(function), 10_000
    for base, words in moves:
        sp = top - 16 * words
        own.step(base + (words % 3) * 4, sp)
        chain = own.chain(sp)
        assert all(part.size >= 0 for part in chain)


def test_thinned_points_keep_the_extremes() -> None:
    points = [Point(at, at % 2, 1000 - (at * 7919) % 997, at) for at in range(5000)]
    kept, thinned = thin(points, 500)
    assert thinned and len(kept) < 1200
    for stack in (0, 1):
        assert min(p.sp for p in kept if p.stack == stack) == min(p.sp for p in points if p.stack == stack)
    assert [p.at for p in kept] == sorted(p.at for p in kept)
    assert thin(points[:10], 500) == (tuple(points[:10]), False)


def test_stacks_are_found_by_their_bounds() -> None:
    finder = Finder([TASK, IRQ])
    assert finder.find(0x9FFF) == finder.find(0x15000) == -1
    assert finder.used[finder.find(0x14000)] == TASK, "the top is an empty stack"
    assert finder.used[finder.find(0x20000)] == IRQ
    assert len(finder.used) == 2


def test_a_file_gives_the_same_trace(tmp_path: Path) -> None:
    trace = stepped()
    path = tmp_path / "a.trace"
    path.write_text(dumps(trace))
    assert load(path) == trace


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format="x"), "not a stack trace"),
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(method="magic"), "damaged"),
        (lambda d: d.pop("points"), "damaged"),
        (lambda d: d["points"].append([1, 99, "0x0", "0x0"]), "damaged"),
        (lambda d: d["points"].append([1, 0, "zz", "0x0"]), "damaged"),
        (lambda d: d["stacks"].clear(), "damaged"),
        (lambda d: d.update(began=5), "damaged"),
        (lambda d: d.update(steps=True), "damaged"),
        (lambda d: d.update(functions=[["f"]]), "damaged"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, change: Any, said: str) -> None:
    document = json.loads(dumps(stepped()))
    change(document)
    path = tmp_path / "a.trace"
    path.write_text(json.dumps(document))
    with pytest.raises(SnapshotError, match=said):
        load(path)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"[" * 100_000, b"{}"])
def test_what_is_no_trace_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(data)
    with pytest.raises(SnapshotError):
        load(path)
    with pytest.raises(SnapshotError, match="cannot read"):
        load(tmp_path / "none")


def test_two_traces_are_compared_by_owner_and_function() -> None:
    a = stepped()
    deeper = Trace(**{**vars(a), "functions": (Part("leaf", 0x90), Part("new", 8))})
    stacks, functions = compare(a, deeper)
    assert all(row.grown == 0 for row in stacks)
    assert functions[0] == Compared("leaf", 0x80, 0x90)
    assert Compared("new", None, 8) in functions and Compared("irq", 0xF0, None) in functions
    report = diff_report(a, deeper, ("a", "b"), stacks, functions)
    assert report.result["deepest_grown"] == 0
    assert "+16" in render(report)


def test_the_report_draws_within_a_terminal() -> None:
    trace = stepped()
    text = render(trace_report(trace))
    assert max(map(len, text.splitlines())) <= 80
    lines = [note.text for note in chart(trace, trace.deepest[0])]
    assert lines[1].startswith(f"{0x1C0:>7} |") and "#" in lines[1]
    assert lines[8].count("#") > lines[1].count("#")
    ladder = Trace(**{**vars(trace), "method": LADDER})
    assert len(chart(ladder, trace.deepest[0])[8].text) == 9 + WIDTH, "a new depth stays the deepest"
    shown = picture(trace, trace_report(trace), "t")
    points = json.loads(zlib.decompress(base64.b64decode(shown["points"])))
    assert points[0][:3] == [trace.points[0].at, 0, 0x100]
    assert shown["places"][points[0][3]] == f"{trace.points[0].pc:#x}"


def test_hostile_names_are_escaped() -> None:
    trace = stepped()
    evil = Trace(**{**vars(trace), "began": "\x1b[31m", "functions": (Part("\x1b]0;x\x07", 1),)})
    assert "\x1b" not in render(trace_report(evil))
