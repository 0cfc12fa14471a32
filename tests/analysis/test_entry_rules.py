"""The rules on entries, judged by the array, against the same rules asked of each entry by itself."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
from builders import AF, CONTIGUOUS, EL0, KERNEL_DATA, NG, OUTSIDE, RAM, REGIMES, TreeBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from ptinspect.analysis.contiguous import SIZES
from ptinspect.analysis.entry_rules import EntryRules
from ptinspect.analysis.findings import Findings
from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.descriptor import Descriptor, Kind, decode
from ptinspect.arch.regime import Regime
from ptinspect.memory.source import RamBlock
from ptinspect.snapshot.model import Snapshot

NORMAL = 2 << 2
"""Attribute index of Write-Back memory in the builders' MAIR."""
RULES = ("unreadable-table", "reserved-encoding", "outside-ram", "contiguous", "not-marked")
Place = tuple[str, int, int]
"""A rule, and the level and address of the descriptor that breaks it."""


@st.composite
def trees(draw: st.DrawFn) -> Snapshot:
    """Build tables in one piece and in many, with few entries changed, in RAM with holes."""
    regime = REGIMES[draw(st.sampled_from(["4k-39", "4k-48", "16k-47", "4k-52-lpa2"]))]
    made = TreeBuilder(regime)
    span = regime.entry_size(2)
    for part in range(draw(st.integers(1, 3))):
        flags = draw(st.sampled_from([0, 0, NG, CONTIGUOUS, CONTIGUOUS | NG, EL0, NORMAL]))
        at = draw(st.sampled_from([0, 1, 8, 200, 511])) * regime.granule
        base = int(regime.va_min) + (2 * part + draw(st.integers(0, 1))) * span
        size = draw(st.sampled_from([span, span, 2 * span, 64 * regime.granule]))
        made.map(base, RAM.start + 0x80_0000 + at, size=size, attributes=KERNEL_DATA ^ NORMAL ^ flags)
    if draw(st.booleans()):
        made.map(int(regime.va_min) + 32 * span, 32 * span, size=33 * span, level=2)
    tables = made.capture()
    for _ in range(draw(st.integers(0, 4))):
        table = int(tables.pa[draw(st.integers(0, len(tables) - 1))])
        slot = table + 8 * draw(st.integers(0, regime.entries(regime.start_level) - 1))
        bits = draw(
            st.sampled_from([1, 2, 3, NG, CONTIGUOUS, 1 << 14, 1 << 21, 1 << 30, 1 << 40, 1 << 2, 1 << 55])
        )
        made.set_word(slot, made.word(slot) ^ bits)
    if draw(st.booleans()):
        made.point(int(regime.va_min) + 100 * span, 2, draw(st.sampled_from([OUTSIDE, made.root])))
    step = draw(st.sampled_from([1 << 30, 1 << 24, 1 << 23]))
    blocks = [RamBlock(PhysAddr(at), step - draw(st.sampled_from([0, 0x1000])), "ram")
              for at in range(RAM.start, RAM.end, step)][:8]  # fmt: skip
    return dataclasses.replace(made.snapshot(), ram=tuple(blocks))


def one_by_one(snapshot: Snapshot) -> list[Place]:
    """Ask each entry."""
    tables, regime = snapshot.tables, snapshot.regime
    pages = {page for block in snapshot.ram for page in range(block.start >> 12, block.end >> 12)}
    found: list[Place] = []
    judged: set[int] = set()
    for row in range(len(tables)):
        level, pa = int(tables.level[row]), int(tables.pa[row])
        if not tables.readable[row]:
            found.append(("unreadable-table", level, pa))
        if not tables.readable[row] or pa in judged:
            continue
        judged.add(pa)
        entries = [decoded(raw, level, regime) for raw in tables.raw[row].tolist()]
        group = SIZES.get((regime.granule_bits, level), 1)
        for slot, entry in enumerate(entries):
            rules = []
            a = entry.attributes
            if entry.kind is Kind.RESERVED:
                rules.append("reserved-encoding")
            elif entry.kind is not Kind.INVALID:
                size = regime.entry_size(level) if entry.is_leaf else regime.granule
                first = int(entry.output_address or 0)
                inside = pages.issuperset(range(first >> 12, first + size >> 12))
                device = entry.is_leaf and a is not None and str(a.memory_type).startswith("Device")
                rules += ["outside-ram"] * (not inside and not device)
                rules += ["not-marked"] * (not entry.raw & NG)
            if group > 1 and slot % group == 0:
                rules += ["contiguous"] * breaks(entries[slot : slot + group], level, regime)
            found += [(rule, level, pa + 8 * slot) for rule in rules]
    return found


decoded = cache(decode)


def breaks(group: list[Descriptor], level: int, regime: Regime) -> bool:
    """Tell whether entries are a contiguous group and differ, or do not follow each other."""
    if not any(entry.is_leaf and entry.raw & CONTIGUOUS for entry in group):
        return False
    if not all(entry.is_leaf for entry in group):
        return True
    size, begin = regime.entry_size(level), int(group[0].output_address or 0)
    follow = all(entry.output_address == begin + i * size for i, entry in enumerate(group))
    address = sum(bits for bits, _ in regime.address_fields(regime.shift(level)))
    differ = any((entry.raw ^ group[0].raw) & ~(address | AF) for entry in group)
    return not follow or differ or begin % (size * len(group)) != 0


def places(found: Findings) -> list[Place]:
    return sorted((f.rule, f.level, f.descriptor_pa) for f in found.kept if f.rule in RULES)


@settings(max_examples=30)
@given(trees())
def test_the_entries_that_break_a_rule_are_those_that_break_it_one_by_one(snapshot: Snapshot) -> None:
    out = Findings(limit=1 << 30)
    rules = EntryRules(snapshot, out)
    rules.run()
    rules.marks()
    assert places(out) == sorted(one_by_one(snapshot))
    few = Findings(limit=2)
    rules = EntryRules(snapshot, few)
    rules.run()
    rules.marks()
    assert few.totals == out.totals and few.errors == out.errors
    for rule in out.totals:
        assert [f for f in few.kept if f.rule == rule] == [f for f in out.kept if f.rule == rule][:2]


def test_a_hole_in_a_table_in_one_piece_is_seen() -> None:
    regime = REGIMES["4k-48"]
    made = TreeBuilder(regime)
    span = regime.entry_size(2)
    made.map(int(regime.va_min), RAM.start + 2 * span, size=4 * span, attributes=KERNEL_DATA | NORMAL)
    whole = made.snapshot()
    assert np.count_nonzero(whole.tables.level == 3) == 4
    out = Findings()
    EntryRules(dataclasses.replace(whole, ram=(RamBlock(RAM.start, 5 * span - 0x1000, "ram"),)), out).run()
    assert out.totals == {"outside-ram": 513}
