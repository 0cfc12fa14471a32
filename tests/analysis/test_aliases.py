"""Rules on memory that is mapped twice, and on what EL0 may touch: named where a kernel never does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from builders import (
    AF,
    EL0,
    KERNEL_DATA,
    KERNEL_TEXT,
    PXN,
    READ_ONLY,
    REGIMES,
    SH,
    UXN,
    TreeBuilder,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ptinspect.analysis.aliases import Places, mappings
from ptinspect.analysis.check import check
from ptinspect.analysis.findings import Findings
from ptinspect.arch.regime import Regime
from ptinspect.commands.tables.check import check_report
from ptinspect.memory.ranges import Ranges
from ptinspect.output.text import render

WRITE_BACK, NON_CACHEABLE, DEVICE, WRITE_THROUGH, TAGGED = range(5)
MAIR = sum(byte << 8 * i for i, byte in enumerate((0xFF, 0x44, 0x04, 0xBB, 0xF0)))
REGIME = dataclasses.replace(REGIMES["4k-48"], mair=MAIR)
LINEAR, MODULES, IMAGE, VMALLOC, FIXMAP = (
    0xFFFF_0000_0000_0000,
    0xFFFF_8000_0000_0000,
    0xFFFF_8000_1000_0000,
    0xFFFF_8000_2000_0000,
    0xFFFF_FDFF_FE00_0000,
)
RAM = 0x4400_0000
TEXT, RODATA, DATA, FREE = RAM, RAM + 0x4_0000, RAM + 0x6_0000, RAM + 0x10_0000
PLACES = Places(
    text=((IMAGE, IMAGE + 0x4_0000),),
    linear=((LINEAR, LINEAR + (1 << 47)),),
    vmalloc=((VMALLOC, VMALLOC + (1 << 40)),),
    modules=((MODULES, MODULES + (128 << 20)),),
    fixmap=((FIXMAP, FIXMAP + (1 << 24)),),
)
SEALED = KERNEL_DATA | READ_ONLY


def index(which: int) -> int:
    return which << 2


def linear(pa: int) -> int:
    return LINEAR + pa - RAM


def kernel(regime: Regime = REGIME) -> TreeBuilder:
    """Return a kernel that has ended its boot: text and rodata are read-only, also in the linear map."""
    made = TreeBuilder(regime)
    made.map(IMAGE, TEXT, size=0x4_0000, attributes=KERNEL_TEXT)
    made.map(IMAGE + 0x4_0000, RODATA, size=0x2_0000, attributes=SEALED)
    made.map(IMAGE + 0x7_0000, DATA, size=0x2_0000)
    made.map(LINEAR, RAM, size=0x6_0000, attributes=SEALED | index(TAGGED))
    made.map(linear(DATA), DATA, size=0x20_0000 - 0x6_0000, attributes=KERNEL_DATA | index(TAGGED))
    made.map(VMALLOC, FREE, size=0x4000)
    made.map(VMALLOC + 0x10_0000, FREE + 0x8000, size=0x8000, attributes=KERNEL_DATA | index(NON_CACHEABLE))
    made.map(MODULES, FREE + 0x2_0000, size=0x2000, attributes=KERNEL_TEXT)
    made.map(linear(FREE + 0x2_0000), FREE + 0x2_0000, size=0x2000, attributes=SEALED)
    made.map(FIXMAP, TEXT + 0x3000)
    made.map(FIXMAP + 0x2000, DATA + 0x1000, attributes=KERNEL_TEXT)
    made.map(VMALLOC + 0x20_0000, 0x900_0000, attributes=KERNEL_DATA | index(DEVICE))
    return made


def judged(made: TreeBuilder, places: Places | None = PLACES) -> Findings:
    return check(made.snapshot(), Findings(), places=places)


def test_what_kernels_do_is_no_finding() -> None:
    found = judged(kernel())
    assert (found.totals, found.skipped, found.unseen) == ({}, {}, [])
    assert "every rule holds" in render(check_report(found, "x", 0, regions=lambda va: ""))


def device(t: TreeBuilder) -> None:
    t.map(VMALLOC + 0x30_0000, FREE + 0x3_0000, size=0x2000, attributes=KERNEL_DATA | index(DEVICE))


def non_cacheable(t: TreeBuilder) -> None:
    t.map(linear(FREE), FREE, attributes=KERNEL_DATA | index(NON_CACHEABLE))


def pool_of_a_stack(t: TreeBuilder) -> None:
    t.map(VMALLOC + 0x30_0000, FREE + 0x1000, attributes=KERNEL_DATA | index(NON_CACHEABLE))


def write_through(t: TreeBuilder) -> None:
    t.map(VMALLOC + 0x30_0000, FREE + 0x1000, attributes=KERNEL_DATA | index(WRITE_THROUGH))


def shareability(t: TreeBuilder) -> None:
    t.map(VMALLOC, FREE, attributes=KERNEL_DATA & ~SH | 2 << 8)


FAULTS: dict[str, tuple[Callable[[TreeBuilder], None], str, int, int, str]] = {
    "device alias": (device, "alias-attributes", VMALLOC + 0x30_0000, linear(FREE + 0x3_0000), "Device"),
    "linear map is NC": (non_cacheable, "alias-attributes", linear(FREE), VMALLOC, "Normal NC"),
    "stack is NC too": (
        pool_of_a_stack, "alias-attributes", VMALLOC + 0x30_0000, VMALLOC + 0x1000, "Normal NC",
    ),
    "write-through": (
        write_through, "alias-attributes", VMALLOC + 0x30_0000, linear(FREE + 0x1000), "Normal WT",
    ),
    "shareability": (shareability, "alias-attributes", VMALLOC, linear(FREE), "Outer Shareable"),
    "text": (
        lambda t: t.map(linear(TEXT + 0x5000), TEXT + 0x5000), "writable-alias", linear(TEXT + 0x5000),
        IMAGE + 0x5000, "EL1 rw-",
    ),
    "rodata": (
        lambda t: t.map(linear(RODATA), RODATA, size=0x2000), "writable-alias", linear(RODATA),
        IMAGE + 0x4_0000, "EL1 r--",
    ),
    "text by vmap": (
        lambda t: t.map(VMALLOC + 0x30_0000, TEXT, size=0x4000), "writable-alias", VMALLOC + 0x30_0000,
        IMAGE, "EL1 r-x",
    ),
    "module text": (
        lambda t: t.map(linear(FREE + 0x2_1000), FREE + 0x2_1000), "writable-alias",
        linear(FREE + 0x2_1000), MODULES + 0x1000, "EL1 r-x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_both_mappings(name: str) -> None:
    fault, rule, va, other, said = FAULTS[name]
    made = kernel()
    fault(made)
    found = judged(made)
    assert found.totals == {rule: 1} and not found.ok
    (finding,) = found.kept
    assert [m.va for m in finding.mappings] == [va, other]
    assert said in finding.evidence
    for mapping in finding.mappings:
        assert mapping.raw == made.get(mapping.va, 3)
        assert mapping.descriptor_pa == made.slot(mapping.va, 3)
        assert [level for level, _, _ in mapping.path] == [0, 1, 2, 3]
        assert all(raw == made.word(pa) for _, pa, raw in mapping.path)
    report = check_report(found, "x", 1, regions=lambda at: "linear map" if at < MODULES else "other")
    answer = report.result["findings"][0]["mappings"]
    assert [int(m["va"], 16) for m in answer] == [m.va for m in finding.mappings]
    assert {m["region"] for m in answer} <= {"linear map", "other"}
    text = "".join(render(report).split())
    assert all(f"{m.va:#x}" in text and f"{m.descriptor_pa:#x}" in text for m in finding.mappings)


@pytest.mark.parametrize(
    ("bits", "letters"), [(EL0, "rw-"), (EL0 | READ_ONLY, "r--"), (0, "--x"), (EL0 | READ_ONLY, "r-x")]
)
def test_what_el0_may_touch_is_named(bits: int, letters: str) -> None:
    attributes = PXN | SH | AF | bits | (0 if "x" in letters else UXN)
    for e0pd in (False, True):
        made = kernel(dataclasses.replace(REGIME, e0pd=e0pd))
        made.map(VMALLOC + 0x30_0000, FREE + 0x4_0000, size=0x3000, attributes=attributes)
        found = judged(made)
        assert found.totals == {"user-access": 1}
        (mapping,) = found.kept[0].mappings
        assert mapping.va == VMALLOC + 0x30_0000
        assert f"EL0 {letters}" in found.kept[0].evidence
        assert ("E0PD" in found.kept[0].evidence) == e0pd


def test_bits_of_the_tables_above_count() -> None:
    made = kernel()
    made.map(VMALLOC + 0x4000_0000, FREE, size=0x1000, attributes=KERNEL_DATA | EL0)
    assert judged(made).totals == {"user-access": 1}
    made.xor(VMALLOC + 0x4000_0000, 2, 1 << 61)
    assert judged(made).totals == {}


def test_a_kernel_that_has_not_ended_its_boot_may_write_to_the_alias() -> None:
    made = kernel()
    made.map(IMAGE + 0x4_0000, RODATA, size=0x2_0000)
    made.map(LINEAR, RAM, size=0x6_0000)
    found = judged(made)
    assert found.totals == {}
    assert "boot has not ended" in found.skipped["writable-alias"]


def test_modules_whose_aliases_no_kernel_seals_are_no_finding() -> None:
    made = kernel()
    made.map(linear(FREE + 0x2_0000), FREE + 0x2_0000, size=0x2000)
    assert judged(made).totals == {}


def test_without_names_the_rules_that_need_them_are_not_asked() -> None:
    made = kernel()
    for name in ("device alias", "linear map is NC", "text"):
        FAULTS[name][0](made)
    found = judged(made, None)
    assert set(found.skipped) == {"writable-alias", "alias-attributes"}
    assert found.totals == {"alias-attributes": 1}
    regime = dataclasses.replace(REGIME, mair=0)
    assert "MAIR_EL1" in judged(kernel(regime)).skipped["alias-attributes"]


def test_hints_and_tagging_may_differ() -> None:
    for byte in (0xF0, 0xFF, 0xEE, 0xDD, 0x77, 0x55):
        made = kernel(dataclasses.replace(REGIME, mair=MAIR & ~(0xFF << 8 * TAGGED) | byte << 8 * TAGGED))
        assert judged(made).totals == {}, hex(byte)


def test_special_encodings_are_what_they_stand_for() -> None:
    for byte, same_as in ((0x40, NON_CACHEABLE), (0xA0, WRITE_THROUGH)):
        made = kernel(dataclasses.replace(REGIME, mair=MAIR | byte << 40))
        made.map(VMALLOC + 0x30_0000, FREE + 0x5_0000, attributes=KERNEL_DATA | index(5))
        made.map(linear(FREE + 0x5_0000), FREE + 0x5_0000, attributes=KERNEL_DATA | index(same_as))
        assert judged(made).totals == {}


def test_more_than_are_listed_are_counted() -> None:
    made = kernel()
    for page in range(0, 16, 2):
        made.map(linear(TEXT + page * 0x1000), TEXT + page * 0x1000)
    out = check(made.snapshot(), Findings(limit=3), places=PLACES)
    assert (len(out.kept), out.totals, out.errors) == (3, {"writable-alias": 8}, 8)


@pytest.mark.parametrize("name", [n for n, r in REGIMES.items() if r.upper])
def test_blocks_and_pages_of_all_geometries_are_compared(name: str) -> None:
    regime = dataclasses.replace(REGIMES[name], mair=MAIR)
    made = TreeBuilder(regime)
    base, size = int(regime.va_min), regime.entry_size(2)
    if regime.allows_block(2):
        pa = 0x4000_0000 + size & -size
        made.map(base, pa, level=2)
        pages = {"size": 2 * regime.granule, "attributes": KERNEL_DATA | index(DEVICE)}
        made.map(base + 2 * size, pa + regime.granule, **pages)
        found = check(made.snapshot())
        assert found.totals["alias-attributes"] == 1
        one, other = (m for f in found.kept if f.rule == "alias-attributes" for m in f.mappings)
        assert (one.va, other.va) == (base + 2 * size, base + regime.granule)
        assert (one.pa, other.pa, one.level, other.level) == (pa + regime.granule, pa + regime.granule, 3, 2)
        made = TreeBuilder(regime)
        made.map(base, pa, level=2)
        made.map(base + 2 * size, pa + regime.granule, size=2 * regime.granule)
        assert "alias-attributes" not in check(made.snapshot()).totals


def test_tables_that_thousands_of_entries_share_are_judged_once() -> None:
    made = TreeBuilder(REGIME)
    base = int(REGIME.va_min)
    made.map(base, FREE, size=0x20_0000)
    for i in range(1, 512):
        made.share(base + (i << 21), 2, base)
    for i in range(1, 256):
        made.share(base + (i << 30), 1, base)
    for i in range(1, 128):
        made.share(base + (i << 39), 0, base)
    found = mappings(made.snapshot())
    assert (len(found), found.truncated) == (1, "")


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8)


def made_of(pieces: list[tuple[int, int]]) -> Ranges:
    start, span = (np.array([piece[i] for piece in pieces], dtype=np.uint64) for i in (0, 1))
    return Ranges.of(start, span)


def members(found: Ranges) -> set[int]:
    return {at for start, end in found.pairs() for at in range(start, end)}


@settings(max_examples=300)
@given(ranges, ranges)
def test_ranges_are_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    slow = [{at for start, span in pieces for at in range(start, start + span)} for pieces in (one, other)]
    a, b = made_of(one), made_of(other)
    assert [members(a), members(b)] == slow
    assert members(a.common(b)) == slow[0] & slow[1]
    for found in (a, b, a.common(b)):
        pairs = found.pairs()
        assert all(end < start for (_, end), (start, _) in pairwise(pairs))


def test_the_top_of_the_address_space_is_a_range() -> None:
    top = np.array([(1 << 64) - 0x1000, (1 << 64) - 0x2000], dtype=np.uint64)
    found = Ranges.of(top, np.array([0x1000, 0x1000], dtype=np.uint64))
    assert found.pairs() == [((1 << 64) - 0x2000, 1 << 64)]
    assert found.common(found).pairs() == found.pairs()
