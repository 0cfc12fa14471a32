"""What lay in a range that was lost: every part, stacks with their tasks."""

from __future__ import annotations

import dataclasses

import pytest
from builders import KERNEL_DATA, KERNEL_TEXT, REGIMES, TreeBuilder

from ptinspect.analysis import expand
from ptinspect.analysis.check import Pair, check_pair
from ptinspect.analysis.diff import diff
from ptinspect.analysis.findings import Findings
from ptinspect.commands.tables.check import check_report
from ptinspect.commands.tables.diff import diff_report
from ptinspect.linux.kpti.verdict import judge
from ptinspect.linux.layout.mapped_parts import Contents, Part, _mapped, in_words
from ptinspect.output.text import render
from ptinspect.snapshot.fact_names import LAYOUT, REGIONS
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.window import Window

VA = 0xFFFF_8000_1120_0000
STACKS = 15
NAMES = [(VA - 0x40_0000, VA + 0x5_0000, "kernel image"), (VA + 0x6_0000, VA + 0x6_4000, "IRQ stack (cpu 0)")]
NAMES += [
    (VA + 0x8_0000 + i * 0x8000, VA + 0x8_4000 + i * 0x8000, f"task stack ({i + 1} task/{i})")
    for i in range(STACKS)
]


def kernel() -> tuple[Snapshot, Snapshot]:
    """Return a kernel before and after it lost the 2 MiB of the issue: the image's end, and stacks."""
    made = TreeBuilder(REGIMES["4k-48"])
    for start, end, name in NAMES:
        text = KERNEL_TEXT if name == "kernel image" else KERNEL_DATA
        made.map(start, 0x4000_0000 + (start & 0xFFF_FFFF), size=end - start, attributes=text)
    lines = "\n".join(f"{start:x}-{end - 1:x} {name}" for start, end, name in NAMES)
    facts = {LAYOUT: "v5.4 to v5.10", REGIONS: lines, "kpti.phase": "before"}

    def named(snapshot: Snapshot, **more: str) -> Snapshot:
        meta = dataclasses.replace(snapshot.meta, extra={**facts, **more})
        return dataclasses.replace(snapshot, meta=meta)

    before = named(made.snapshot("before"))
    made.set(VA, 2, 0)
    return before, named(made.snapshot("after"), **{"kpti.phase": "during"})


def test_a_lost_range_is_named_by_all_that_lay_in_it() -> None:
    before, after = kernel()
    found = diff(before, after)
    report = diff_report(
        found, before, after, listed=range(len(found.changes)), regions=lambda va: "kernel image"
    )
    (change,) = report.result["changes"]
    names = [part["name"] for part in change["held"]]
    assert names == [name for _, _, name in NAMES]
    assert change["held_total"] == STACKS + 2
    assert [part["bytes"] for part in change["held"]] == [0x5_0000, *[0x4000] * (STACKS + 1)]
    said = "there lay: kernel image 320K; IRQ stack of cpu 0; 15 task stacks: 1 task/0, 2 task/1"
    text = " ".join(render(report).split())
    assert said in text and "and 9 more" in text


def test_check_names_what_was_lost_too() -> None:
    before, after = kernel()
    found = check_pair(Pair(before, after), Findings())
    lost = [f for f in found.kept if f.rule == "entry-lost"]
    held = Contents(before, ((f.va_start, f.va_end) for f in lost))
    report = check_report(found, "x", 1, regions=lambda va: "", contents=held)
    answer = next(f for f in report.result["findings"] if f["rule"] == "entry-lost")
    assert answer["held_total"] == STACKS + 2
    assert "15 task stacks" in " ".join(render(report).split())


def test_the_verdict_names_what_hung_below() -> None:
    told = judge(*kernel())
    assert told.code == "lost-write"
    assert "15 task stacks: 1 task/0" in told.evidence[0] and "IRQ stack of cpu 0" in told.evidence[0]


def test_what_was_not_mapped_is_not_named_and_names_stand_once() -> None:
    before, _ = kernel()
    held = Contents(before, [(VA, VA + (2 << 20) - 1)])
    assert held.of(VA + 0x5_0000, VA + 0x5_FFFF) == ()
    assert held.of(VA + 0x6_2000, VA + 0x6_FFFF) == (Part("IRQ stack (cpu 0)", 0x2000),)
    assert Contents(before, []).of(VA, VA + 0xFFF) == ()


def shared(times: int, holes: tuple[int, ...] = ()) -> TreeBuilder:
    """Return tables of two levels that so many neighbours lead to, the lower ones with holes, and a block."""
    made = TreeBuilder(REGIMES["4k-48"])
    low = int(made.regime.va_min)
    made.map(low, 0x4400_0000, size=1 << 21)
    for slot in holes:
        made.set(low + (slot << 12), 3, 0)
    for number in range(1, times):
        made.share(low + (number << 21), 2, low)
    for number in range(1, times):
        made.share(low + (number << 30), 1, low)
    made.map(low + ((times + 1) << 30), 0x8000_0000, level=2)
    return made


@pytest.mark.parametrize("holes", [(), (0,), (3, 4, 90, 511)])
def test_what_many_neighbours_lead_to_is_held_as_often(
    holes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = shared(6, holes).snapshot()
    low = int(snapshot.regime.va_min)
    ranges = [(low, low + (1 << 34)), (low + (3 << 21) + 0x5000, low + (4 << 30) + (2 << 21) + 0x7FFF)]
    expected = [_mapped(snapshot, Window.of(r, snapshot.regime)) for r in ranges]
    monkeypatch.setattr(expand, "NEIGHBOURS", 3)
    assert [_mapped(snapshot, Window.of(r, snapshot.regime)) for r in ranges] == expected


def test_terabytes_of_shadow_are_held_in_a_moment() -> None:
    made = shared(512)
    snapshot = made.snapshot()
    low = int(snapshot.regime.va_min)
    held = Contents(snapshot, [(low, low + (1 << 39) - 1)])
    assert sum(part.size for part in held.of(low, low + (1 << 39) - 1)) == 1 << 39
    made.xor(low, 3, 1 << 11)  # not one page in all entries any more
    assert len(_mapped(made.snapshot(), Window.of(None, snapshot.regime))[0]) == 2


def test_sentences_are_bounded() -> None:
    many = [Part(f"task stack ({i} x)", 0x4000) for i in range(5000)]
    assert in_words(many) == "5000 task stacks: 0 x, 1 x, 2 x, 3 x, 4 x, 5 x and 4994 more"
    assert in_words(many[:1]) == "task stack of 0 x"
    assert in_words([Part("vmalloc", 20 << 20), Part("modules", 0x3000)]) == "vmalloc 20M, modules 12K"
