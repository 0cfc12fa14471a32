"""Names of addresses that a snapshot keeps, and what a file of anybody's may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from builders import REGIMES, TreeBuilder, regime_4k

from ptinspect.analysis.map import MapFilter, runs
from ptinspect.linux.layout.choice import decode_regions, encode_regions, layout_of
from ptinspect.linux.layout.regions import Layout, Region
from ptinspect.snapshot.fact_names import LAYOUT, LOWER, REGIONS
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.store import load, save

BASE = 0xFFFF_8000_1000_0000
STACK = Region(BASE + 0x2000, BASE + 0x4000, "task stack (1 init)")


def named(**extra: str) -> Snapshot:
    tree = TreeBuilder(regime_4k())
    tree.map(BASE, 0x4020_0000, size=0x8000)
    snapshot = tree.snapshot()
    return replace(snapshot, meta=replace(snapshot.meta, kernel="", extra=extra))


def test_names_survive_a_file(tmp_path: Path) -> None:
    snapshot = named(
        **{LAYOUT: "v5.4 to v5.10", REGIONS: encode_regions((STACK, Region(BASE, 1 << 64, "top")))}
    )
    save(snapshot, tmp_path / "a.npz")
    made = layout_of(load(tmp_path / "a.npz"))
    assert made.name(BASE + 0x3FFF) == STACK.name
    assert made.name(BASE + 0x4000) == "top"
    assert made.name((1 << 64) - 1) == "top"
    assert made.name(0xFFFF_0000_0000_0000) == "linear map"


@pytest.mark.parametrize(
    ("name", "text", "shadow"),
    [
        ("5.10-kasan", 0xFFFF_FFD0_1001_0000, 0xFFFF_FFC0_0000_0000),
        ("6.1-48-kasan", 0xFFFF_8000_0801_0000, 0xFFFF_6000_0000_0000),
    ],
)
def test_a_shadow_that_a_file_shows_has_a_name(name: str, text: int, shadow: int) -> None:
    """Files of kernels with KASAN, captured where nothing said so."""
    snapshot = load(Path(__file__).parents[1] / "data" / "ptdump" / f"{name}.npz")
    made = layout_of(snapshot)
    assert made.name(shadow) == "KASAN shadow" and made.name(shadow - 1) != "KASAN shadow"
    assert made.name(text) in ("kernel text", "vmalloc")
    found = runs(snapshot, None, made.name, made.edges)
    assert not found.truncated and len(found) < 40_000
    wide = [run for run in found if run.repeated]
    again = found.repeats  # what neighbours lead to is listed once
    assert sum(run.size for run in wide) + sum(each.times * each.span for each in again) > 1 << 34
    assert {each.region for each in (*wide, *again)} == {"KASAN shadow"}
    assert {run.permissions.el1 for run in wide} == {"r--"}


def test_no_kernel_no_linux_names() -> None:
    assert layout_of(named()).name(BASE) == "kernel"
    assert layout_of(named(**{LAYOUT: "v9"})).name(BASE) == "kernel"


def test_stacks_of_the_earlier_snapshot_count_too() -> None:
    later, earlier = named(**{LAYOUT: "v5.4 to v5.10"}), named(**{REGIONS: encode_regions((STACK,))})
    assert layout_of(later).name(STACK.start) == "vmalloc"
    assert layout_of(later, earlier).name(STACK.start) == STACK.name


def test_the_lower_half_says_what_it_is() -> None:
    snapshot = TreeBuilder(REGIMES["4k-48-user"]).snapshot()
    assert layout_of(snapshot).name(0x40_0000) == "lower half"
    idmap = replace(snapshot, meta=replace(snapshot.meta, extra={LOWER: "identity map"}))
    assert layout_of(idmap).name(0x40_0000) == "identity map"


@pytest.mark.parametrize(
    "line", ["", "x", "1-", "-1 a", "g-h a", "20-10 a", "0-1ffffffffffffffff a", "0-f", "0-f ", "-5-7 a"]
)
def test_lines_of_a_damaged_file_are_left_out(line: str) -> None:
    assert decode_regions(f"{line}\n10-1f good") == [Region(0x10, 0x20, "good")]


def test_the_first_region_wins_and_ends() -> None:
    made = Layout((Region(10, 20, "a"), Region(0, 30, "b"), Region(15, 40, "c")), "")
    assert [made.name(at) for at in (-1, 0, 9, 10, 19, 20, 29, 30, 39, 40, 99)] == (
        ["", "b", "b", "a", "a", "b", "b", "c", "c", "", ""]
    )
    assert made.edges == [0, 10, 20, 30, 40]


def test_runs_are_cut_where_a_region_begins() -> None:
    snapshot = named()
    odd = Region(BASE + 0x5800, BASE + 0x5900, "in the middle of a page")
    made = Layout((STACK, odd, Region(BASE, BASE + 0x8000, "vmalloc")), "")
    found = runs(snapshot, None, made.name, made.edges)
    assert [(r.va_start - BASE, r.va_end - BASE, r.pa_start, r.count, r.region) for r in found] == [
        (0x0, 0x1FFF, 0x4020_0000, 2, "vmalloc"),
        (0x2000, 0x3FFF, 0x4020_2000, 2, STACK.name),
        (0x4000, 0x7FFF, 0x4020_4000, 4, "vmalloc"),
    ]
    assert len(runs(snapshot, MapFilter(), made.name)) == 1
