"""The page beside the kernel's own text of its page tables: the same regions, sizes and attributes.

The pairs in tests/data/ptdump are of guests whose kernels were built with CONFIG_PTDUMP_DEBUGFS: a
snapshot, and what /sys/kernel/debug/kernel_page_tables of the same guest said a moment before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser
from builders import NG, REGIMES, TreeBuilder
from test_page import CONTRAST, data_of, page

from ptinspect.commands.pages import ptdump_text
from ptinspect.commands.pages.space import space
from ptinspect.linux.ptdump.kernel_text import TextRun
from ptinspect.linux.ptdump.kernel_text import load as load_text
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.store import load

PAIRS = sorted((Path(__file__).parent.parent / "data" / "ptdump").glob("*.npz"))
Kind = tuple[str, bool]


def kind(run: TextRun) -> Kind:
    """What EL1 and EL0 may do, as the page has it, and nG: by the kernel's own words."""
    writes, user = "RW" in run.words, "USR" in run.words
    el1 = "r" + "-w"[writes] + ("-" if "NX" in run.words else "x")
    el0 = ("r" + "-w"[writes] if user else "--") + ("-" if "UXN" in run.words else "x")
    return el1 + el0, "NG" in run.words


@pytest.mark.parametrize("file", PAIRS, ids=lambda path: path.stem)
def test_regions_hold_what_the_kernels_own_text_has_there(file: Path) -> None:
    runs = [run for run in load_text(file.with_suffix(".txt")).runs if run.mapped]
    shown = space(load(file))
    assert not shown["left_out"] and len(shown["areas"]) > 5
    left = sum(run.end - run.start for run in runs)
    for area in shown["areas"]:
        first, end = int(area["va_start"], 16), int(area["va_end"], 16) + 1
        wanted: Counter[Kind] = Counter()
        for run in runs:
            if (size := min(run.end, end) - max(run.start, first)) > 0:
                wanted[kind(run)] += size
        found: Counter[Kind] = Counter()
        for share in area["shares"]:
            found[share["may"], share["ng"]] += share["bytes"]
        ragged = 2 * 65536  # a region can begin within a page: the page counts where it begins
        for each in found.keys() | wanted.keys():
            assert abs(found[each] - wanted[each]) <= ragged, (area["name"], each)
        left -= found.total()
    assert left == 0, "no byte is missing or counted twice"
    assert [text for _, text in shown["ptdump"]["lines"]] == file.with_suffix(".txt").read_text().splitlines()


def pair() -> tuple[Snapshot, Snapshot]:
    made = TreeBuilder(REGIMES["4k-48"])
    base = int(made.regime.va_min)
    made.map(base, 0x4400_0000, size=0x4000, level=3)
    made.map(base + 0x8000, 0x4800_0000, size=0x2000, level=3)
    before = made.snapshot("before")
    made.xor(base, 3, NG)
    found = before, made.snapshot("after")
    metas = [replace(each.meta, kernel="Linux version 5.10.0 (x@y) #1") for each in found]
    return replace(before, meta=metas[0]), replace(found[1], meta=metas[1])


def test_a_text_of_too_many_lines_or_none_is_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = pair()
    monkeypatch.setattr(ptdump_text, "MAX_LINES", 3)
    shown = ptdump_text.ptdump_text(after, before)
    assert shown["lines"] == [] and "more than 3 lines" in shown["notes"][0]


@pytest.mark.live
def test_each_line_of_the_kernels_text_leads_to_its_entry(tmp_path: Path, tab: Browser) -> None:
    before, after = pair()
    path = page(tmp_path, before, after)
    told = [
        (sign, text.split()[0], text.split()[2])
        for sign, text in data_of(path)["spaces"][0]["ptdump"]["lines"]
        if "AF" in text
    ]
    base = "0xffff00000000"
    assert told == [
        ("-", f"{base}0000-{base}4000", "PTE"),
        ("+", f"{base}0000-{base}1000", "PTE"),
        ("+", f"{base}1000-{base}4000", "PTE"),
        (" ", f"{base}8000-{base}a000", "PTE"),
    ]
    tab.open(path, dark=True)
    tab.click("#space0 summary")
    assert tab.ask(CONTRAST) == []
    tab.click("#space0 .ptdump .gone")
    side = tab.ask("document.querySelector('#map0 aside').textContent")
    assert f"{base}0000" in side and "leaf, global" in side
    tab.click("#space0 .ptdump .come")
    assert "became nG" in tab.ask("document.querySelector('#map2 aside').textContent")
