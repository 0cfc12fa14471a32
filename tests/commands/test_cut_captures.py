"""Captures that are cut: every command says what it did not see, in text and in JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import OUTSIDE
from fakes import KERNEL, context, kernel_tree, run, text

from ptinspect.commands.framework.context import Context

CUTS = {
    "range": (f"--range {KERNEL:#x}+2M", "only 0xffff800010000000..0xffff800010200000 was captured"),
    "tables": ("--max-tables 3", "more than 3 tables"),
    "unreadable": ("", "1 table could not be read"),
}


@pytest.fixture(params=CUTS)
def cut(request: pytest.FixtureRequest) -> tuple[Context, str]:
    """Return a session with the snapshots `whole` and `part`, and what is to be said of the latter."""
    tree = kernel_tree()
    ctx = context(tree)
    run(ctx, "snap whole")
    options, said = CUTS[request.param]
    if request.param == "unreadable":
        tree.point(KERNEL + (64 << 30), 1, OUTSIDE)
        ctx.guest.session.stop_token += 1  # type: ignore[union-attr,misc]
    run(ctx, f"snap part {options}")
    return ctx, said


@pytest.mark.parametrize(
    "line", ["summary --snap part", "find pa:0x1234000 --snap part", "check --snap part"]
)
def test_what_was_not_captured_is_said(cut: tuple[Context, str], line: str) -> None:
    ctx, said = cut
    report = run(ctx, line)
    shown = " ".join(text(report).split())
    assert said in shown
    assert report.result["complete"] is False
    assert any(said in one for one in report.result["unseen"])
    assert "every" not in shown and "under this root" not in shown


def test_a_map_of_a_part_is_incomplete(cut: tuple[Context, str]) -> None:
    ctx, _ = cut
    report = run(ctx, "map --snap part")
    assert report.result["complete"] is False and report.result["truncated"]
    assert "incomplete: " in text(report)
    inside = run(ctx, f"map {KERNEL:#x}+64K --snap part").result
    assert inside["complete"] is not bool(inside["truncated"])
    assert run(ctx, "map --snap whole").result["complete"] is True


@pytest.mark.parametrize("names", ["part part", "whole part", "part whole"])
def test_a_diff_says_of_what_it_speaks(cut: tuple[Context, str], names: str) -> None:
    ctx, said = cut
    report = run(ctx, f"diff {names}")
    shown = " ".join(text(report).split())
    assert any(said in one for one in report.result["unseen"])
    assert "identical: " not in shown and "only bit 11 changed: " not in shown


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_of_a_part_is_said_to_be_one(cut: tuple[Context, str], suffix: str, tmp_path: Path) -> None:
    ctx, said = cut
    report = run(ctx, f"export part -o {tmp_path / f'x.{suffix}'}")
    assert report.result["complete"] is False
    assert said in " ".join(text(report).split())


def test_a_page_says_it(cut: tuple[Context, str], tmp_path: Path) -> None:
    ctx, said = cut
    report = run(ctx, f"report {tmp_path / 'x.html'} whole part")
    assert any(said in one for one in report.result["unseen"])
    assert said in " ".join(text(report).split())


def test_bars_say_it(cut: tuple[Context, str]) -> None:
    ctx, said = cut
    report = run(ctx, "map --bar --snap part --against whole")
    assert report.result["complete"] is False
    assert said in " ".join(text(report).split())


def test_whole_captures_are_complete(cut: tuple[Context, str]) -> None:
    ctx, _ = cut
    for line in ("summary", "find pa:0x1234000", "check"):
        result = run(ctx, f"{line} --snap whole").result
        assert (result["complete"], result["unseen"]) == (True, [])
