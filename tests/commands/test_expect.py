"""Expectations on the results of commands."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import declare

from ptinspect.commands.framework.command import argument
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry
from ptinspect.commands.session import expect
from ptinspect.errors import UserError
from ptinspect.output.model import Report

SUMMARY: dict[str, Any] = {
    "levels": [{"level": 2, "leaves": 7, "leaves_ng": 6}, {"level": 3, "leaves": 48, "leaves_ng": 48}],
    "root": "0xffff0000",
    "size": 4096,
}
STACK = {"cpus": [{"cpu": 0, "free": 8192, "name": "swapper/0"}, {"cpu": 1, "free": 64, "name": "init"}]}
ROOTS = {"roots": [{"name": "swapper", "pa": "0x40"}]}


SNAPS: dict[str, Any] = {"a-1.npz": {"leaves_ng": 0, "path": [{"level": 0, "raw": "0x3"}]}}
ARGUMENTS = (
    argument("--snap", type=str), argument("--cont", action="store_true"), argument("--cpu", type=int)
)  # fmt: skip


@pytest.fixture
def ctx() -> Context:
    registry = Registry()
    runs: list[str] = []

    def walk(context: Context, *, va: str, snap: str | None, cont: bool, cpu: int | None) -> Report:
        runs.append(f"walk {va} {snap} {cont} {cpu}")
        return Report({"va": va, **SNAPS.get(snap or "", {"leaves_ng": 9})})

    declare(registry, "walk", walk, arguments=(argument("va"), *ARGUMENTS), expectable=True)
    declare(registry, "save", lambda ctx, *, force: Report({}), arguments=(argument("--force"),))

    def add(name: str, result: dict[str, Any]) -> None:
        def handler(context: Context) -> Report:
            runs.append(name)
            return Report(result)

        only_looks = name in ("summary", "stack", "kpti status")
        declare(registry, name, handler, expectable=only_looks, changes=name == "poke undo")

    for name, result in {
        "summary": SUMMARY,
        "stack": STACK,
        "kpti status": ROOTS,
        "diff": {"only_bit11": True},
        "kpti run": {"ok": True},
        "poke undo": {},
    }.items():
        add(name, result)
    registry.add_all(expect)
    made = Context(registry)
    made.guest.kept["runs"] = runs
    return made


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("stack free >= 4096", 0),
        ("stack free >= 8K", 0),
        ("stack free > 8K", 1),
        ("stack.cpus.1.free < 0x41", 0),
        ("stack init free == 64", 0),
        ("stack cpus[1].free == 64", 0),
        ("summary.level3.leaves_ng == summary.level3.leaves", 0),
        ("summary.level2.leaves_ng == summary.level2.leaves", 1),
        ("summary.level2.leaves_ng != 7", 0),
        ("summary root == 4294901760", 0),
        ("summary size in 4096,16384", 0),
        ("summary size in 1, 2", 1),
        ("kpti.status.roots.swapper.pa == 0x40", 0),
        ("kpti status roots pa == 64", 0),
        ("stack init name contains ni", 0),
    ],
)
def test_values_are_compared(ctx: Context, line: str, code: int) -> None:
    assert ctx.registry.run(ctx, f"expect {line}").exit_code == code


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("", "nothing"),
        ("stack fre > 1", "cpus"),
        ("summary.level1.leaves == 0", "level1"),
        ("nonsense x == 1", "begins with no command"),
        ("stack free >", "OPERATOR"),
        ("stack free = 1", "'=' is none"),
        ("stack free==1", "spaces around"),
        ("stack free>=1K", "spaces around"),
        ("stack free == 1 == 2", "OPERATOR"),
        ("stack init name > 3", "not a number"),
        ("diff.only_bit11 == true", "has not run"),
        ("kpti run ok", "has not run"),
        ("guard quiet", "stack guard"),
        ("stack 'free", "quot"),
    ],
)
def test_what_cannot_be_answered_is_the_users_error(ctx: Context, line: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        ctx.registry.run(ctx, f"expect {line}")
    assert word in f"{caught.value.message} {caught.value.hint}"


def test_the_last_answer_is_used_until_something_changes(ctx: Context) -> None:
    runs = ctx.guest.kept["runs"]
    ctx.registry.run(ctx, "diff")
    assert ctx.registry.run(ctx, "expect diff.only_bit11 == true").exit_code == 0
    assert ctx.registry.run(ctx, "expect diff.only_bit11 == 1").exit_code == 1
    ctx.registry.run(ctx, "expect stack free > 1")
    ctx.registry.run(ctx, "expect stack free > 1")
    assert runs == ["diff", "stack"]
    ctx.registry.run(ctx, "poke undo")
    ctx.registry.run(ctx, "expect stack free > 1")
    assert runs == ["diff", "stack", "poke undo", "stack"]


@pytest.mark.parametrize(
    "line",
    [
        "walk $pc --snap a-1.npz leaves_ng == 0",
        "walk --cont $pc --snap=a-1.npz leaves_ng == 0",
        "walk $pc va == $pc",
        "walk $pc --cpu 1 --snap a-1.npz path.level0.raw == 3",
        "walk $pc --snap a-1.npz leaves_ng < walk $pc leaves_ng",
        "walk $pc --cpu -1 leaves_ng == 9",
    ],
)
def test_a_command_with_arguments_is_run_with_them(ctx: Context, line: str) -> None:
    ctx.registry.run(ctx, "walk other --snap x")
    if "--" not in line:
        ctx.guest.kept["results"].clear()
    assert ctx.registry.run(ctx, f"expect {line}").exit_code == 0
    runs = ctx.guest.kept["runs"]
    assert len(runs) == 1 + line.count("walk") and all("$pc" in run for run in runs[1:])


def test_the_answer_to_arguments_of_expect_is_not_the_last_one(ctx: Context) -> None:
    ctx.registry.run(ctx, "walk $pc")
    assert ctx.registry.run(ctx, "expect walk $pc --snap a-1.npz leaves_ng == 0").exit_code == 0
    assert ctx.registry.run(ctx, "expect walk leaves_ng == 9").exit_code == 0
    assert len(ctx.guest.kept["runs"]) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("walk $pc --snpa a leaves_ng == 0", "walk: unrecognized arguments: --snpa a leaves_ng"),
        ("walk --snap a == 0", "walk: the following arguments are required: va"),
        ("walk $pc --snap == 0", "walk: argument --snap: expected one argument"),
        ("save --force x == 0", "expect does not run 'save'"),
        ("diff --limit 3 only_bit11 == true", "expect does not run 'diff'"),
        ("walk $pc --snap a-1.npz leaves == 0", "walk has no field 'leaves'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(ctx: Context, line: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        ctx.registry.run(ctx, f"expect {line}")
    assert caught.value.message == said


def test_both_values_are_told(ctx: Context) -> None:
    report = ctx.registry.run(ctx, "expect stack free > 9000")
    assert (report.result["left"], report.result["right"], report.result["ok"]) == (8192, 9000, False)


def test_the_last_guard(ctx: Context) -> None:
    ctx.guest.kept[expect.GUARD] = {"quiet": False}
    assert ctx.registry.run(ctx, "expect guard quiet").exit_code == 1
    ctx.guest.kept[expect.GUARD] = {"quiet": True}
    assert ctx.registry.run(ctx, "expect guard quiet").exit_code == 0
