"""Expectations on the results of commands."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import declare

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


@pytest.fixture
def ctx() -> Context:
    registry = Registry()
    runs: list[str] = []

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


def test_both_values_are_told(ctx: Context) -> None:
    report = ctx.registry.run(ctx, "expect stack free > 9000")
    assert (report.result["left"], report.result["right"], report.result["ok"]) == (8192, 9000, False)


def test_the_last_guard(ctx: Context) -> None:
    ctx.guest.kept[expect.GUARD] = {"quiet": False}
    assert ctx.registry.run(ctx, "expect guard quiet").exit_code == 1
    ctx.guest.kept[expect.GUARD] = {"quiet": True}
    assert ctx.registry.run(ctx, "expect guard quiet").exit_code == 0
