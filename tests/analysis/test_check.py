"""The rules of `check`, each with tables that break it and tables that do not."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from builders import (
    AF,
    CONTIGUOUS,
    KERNEL_DATA,
    KERNEL_TEXT,
    NG,
    OUTSIDE,
    RAM,
    READ_ONLY,
    REGIMES,
    SH,
    TreeBuilder,
    cpu_state,
)
from hypothesis import given
from sparse_memory import SparseMemory
from tangled import two_trees

from ptinspect.analysis.check import Pair, check, check_pair, check_stacks
from ptinspect.analysis.findings import Findings
from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.tables.check import check_report
from ptinspect.guest.checkup import checkup
from ptinspect.guest.guest import Guest
from ptinspect.guest.table_choice import Tables
from ptinspect.output.text import render
from ptinspect.snapshot.model import Snapshot

VA = 0xFFFF_8000_1000_0000
PA = 0x4100_0000
CONT = KERNEL_DATA | CONTIGUOUS


def tree(marks: int = 0) -> TreeBuilder:
    """Return a small kernel: text, data, a block, contiguous pages."""
    made = TreeBuilder(REGIMES["4k-48"])
    made.map(VA, PA, size=0x10000, attributes=KERNEL_TEXT)
    made.map(VA + 0x10000, PA + 0x10000, size=0x10000, attributes=CONT)
    made.map(VA + 0x20_0000, PA + 0x20_0000, level=2)
    return made


def rules(found: Findings) -> dict[str, int]:
    return found.totals


def phase(snapshot: Snapshot, name: str) -> Snapshot:
    meta = dataclasses.replace(snapshot.meta, extra={"kpti.phase": name})
    return dataclasses.replace(snapshot, meta=meta, cpus=(dataclasses.replace(cpu_state(), sp=VA + 0x11F00),))


def marked(made: TreeBuilder) -> TreeBuilder:
    """Set bit 11 in every valid entry, as the rewrite does."""
    for table in made.capture().pa.tolist():
        for slot in range(table, table + made.regime.granule, 8):
            if made.word(slot) & 1:
                made.set_word(slot, made.word(slot) | NG)
    return made


def test_a_healthy_tree_breaks_no_rule() -> None:
    assert rules(check(tree().snapshot())) == {}


@pytest.mark.parametrize("name", [n for n, r in REGIMES.items() if r.upper])
def test_no_false_alarm_in_any_geometry(name: str) -> None:
    regime = REGIMES[name]
    made = TreeBuilder(regime)
    size = 256 * regime.granule
    made.map(regime.va_min, 0x4200_0000 & -size, size=size, attributes=CONT)
    assert rules(check(made.snapshot())) == {}


def test_each_fault_of_one_snapshot_is_named() -> None:
    faults = {
        "unreadable-table": lambda t: t.point(VA + (4 << 30), 1, OUTSIDE),
        "reserved-encoding": lambda t: t.set(VA, 3, t.get(VA, 3) & ~2),
        "outside-ram": lambda t: t.map(VA + 0x40000, OUTSIDE, attributes=KERNEL_DATA | 2 << 2),
        "table-loop": lambda t: t.point(VA + (4 << 30), 1, t.root),
        "table-shared": lambda t: t.share(VA + 0x4000_0000, 1, VA),
        "writable-executable": lambda t: t.map(VA + 0x40000, PA, attributes=SH | AF),
        "contiguous": lambda t: t.xor(VA + 0x12000, 3, 1 << 12),
    }
    for rule, fault in faults.items():
        made = tree()
        fault(made)
        found = check(made.snapshot())
        assert found.totals.get(rule) == 1, (rule, found.kept)
        assert not found.ok


def test_device_memory_outside_ram_is_legitimate() -> None:
    made = tree()
    made.map(VA + 0x40000, 0x900_0000, attributes=KERNEL_DATA)
    assert REGIMES["4k-48"].mair & 0xFF == 0
    assert rules(check(made.snapshot())) == {}


def test_a_table_that_many_neighbours_share_is_only_named() -> None:
    made = tree()
    made.map(VA + (8 << 30), PA, attributes=KERNEL_DATA)
    for i in range(9, 20):
        made.share(VA + (i << 30), 1, VA + (8 << 30))
    found = check(made.snapshot())
    assert [f.severity for f in found.kept] == ["info"]
    assert found.ok
    assert "12 entries" in found.kept[0].evidence
    table = made.table_at(VA + (8 << 30), 2, create=False)
    assert check(made.snapshot(), Findings(shared=frozenset({table}))).totals == {}
    assert check(made.snapshot(), Findings(shared=frozenset({table + 0x1000}))).totals == {"table-shared": 1}


def test_a_mixed_contiguous_group_is_legitimate_during_the_rewrite_only_for_bit_11() -> None:
    made = tree()
    made.xor(VA + 0x12000, 3, NG)
    assert rules(check(made.snapshot())) == {"contiguous": 1}
    assert rules(check(phase(made.snapshot(), "during"))) == {}
    made.xor(VA + 0x12000, 3, 1 << 55)
    assert rules(check(phase(made.snapshot(), "during"))) == {"contiguous": 1}


GROUPS = [("4k-48", 3, 16), ("4k-48", 2, 16), ("4k-39", 2, 16), ("16k-47", 3, 128), ("16k-47", 2, 32),
          ("64k-48", 3, 32), ("64k-48", 2, 32), ("4k-52-lpa2", 3, 16), ("16k-52-lpa2", 2, 32)]  # fmt: skip
"""Entries of a contiguous group (Arm ARM D8.7.1)."""


@pytest.mark.parametrize(("name", "level", "group"), GROUPS)
def test_a_contiguous_group_that_is_not_uniform_is_named_with_its_place(
    name: str, level: int, group: int
) -> None:
    regime = REGIMES[name]
    size = regime.entry_size(level)
    base, pa = int(regime.va_min) + 2 * group * size, 8 * group * size
    whole = dataclasses.replace(RAM, start=PhysAddr(0), size=1 << 44)

    def groups() -> TreeBuilder:
        made = TreeBuilder(regime, memory=SparseMemory([whole]))
        made.map(base, pa, size=3 * group * size, level=level, attributes=CONT)
        return made

    def contiguous(made: TreeBuilder) -> list[tuple[int, int]]:
        kept = [f for f in check(made.snapshot()).kept if f.rule == "contiguous"]
        return [(int(f.descriptor_pa), int(f.va_start)) for f in kept]

    assert contiguous(groups()) == []
    middle = base + group * size
    one = middle + 5 * size
    faults = {
        "executable": lambda t: t.xor(one, level, 1 << 53),
        "no Contiguous bit": lambda t: t.xor(one, level, CONTIGUOUS),
        "nG": lambda t: t.xor(one, level, NG),
        "missing": lambda t: t.set(one, level, 0),
        "goes elsewhere": lambda t: t.map(one, pa, level=level, attributes=CONT),
        "out of order": lambda t: t.map(
            one, pa + (group + 6) * size, size=2 * size, level=level, attributes=CONT
        ),
        "not aligned": lambda t: t.map(
            middle, pa + size, size=group * size, level=level, attributes=CONT
        ),
    }  # fmt: skip
    for fault, put in faults.items():
        made = groups()
        put(made)
        assert contiguous(made) == [(made.slot(middle, level), middle)], fault


def test_a_contiguous_group_may_be_partly_dirty_where_the_cpu_manages_that() -> None:
    dbm = 1 << 51
    for hd, expected in ((True, {}), (False, {"contiguous": 1})):
        made = TreeBuilder(dataclasses.replace(REGIMES["4k-48"], ha=hd, hd=hd))
        made.map(VA, PA, size=0x10000, attributes=CONT | dbm | READ_ONLY)
        made.xor(VA + 0x3000, 3, READ_ONLY)
        assert rules(check(made.snapshot())) == expected


def test_a_leaf_without_a_mark_is_missed_only_at_the_end_of_the_rewrite() -> None:
    made = marked(tree())
    made.xor(VA, 3, NG)
    assert rules(check(made.snapshot())) == {}
    assert rules(check(made.snapshot(), rewrite_done=True)) == {"not-marked": 1}
    assert rules(check(phase(made.snapshot(), "after"))) == {"not-marked": 1}


def pair(change: object = None, *, early: int = 0) -> Findings:
    """Compare a tree before the rewrite with the marked one, with a fault in it."""
    made = tree()
    before = phase(made.snapshot("before"), "before")
    marked(made)
    if callable(change):
        change(made)
    after = phase(made.snapshot("after"), "after")
    return check_pair(Pair(before, after, early=[(early, early + 0x1000, "init_pg_dir")] if early else []))


def test_a_healthy_rewrite_breaks_no_rule() -> None:
    assert rules(pair()) == {}


def test_a_reverted_root_entry_is_named_with_the_table_of_early_boot() -> None:
    old = 0x4F00_0000
    found = pair(lambda t: t.point(VA, 0, old), early=old)
    reverted = [f for f in found.kept if f.rule == "entry-reverted"]
    assert len(reverted) == 1
    assert "init_pg_dir" in reverted[0].evidence
    assert rules(found).keys() >= {"entry-reverted", "stack-lost"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda t: t.set(VA, 3, 0), "entry-lost"),
        (lambda t: t.xor(VA, 3, 1 << 20), "entry-retargeted"),
        (lambda t: t.xor(VA, 3, NG | 1 << 20), "entry-reverted"),
        (lambda t: t.xor(VA, 3, 1 << 55), "entry-changed"),
        (lambda t: t.xor(VA, 3, NG), "not-marked"),
        (lambda t: t.map(VA + 0x5_0000, PA, attributes=KERNEL_DATA | NG), "entry-changed"),
    ],
)
def test_each_fault_of_a_pair_is_named(change: object, rule: str) -> None:
    found = pair(change)
    assert rule in found.totals, found.kept
    assert not found.ok


def test_what_came_after_the_rewrite_needs_no_mark() -> None:
    made = tree()
    before = made.snapshot("before")
    marked(made)
    made.map(VA + (4 << 30), PA, attributes=KERNEL_DATA)
    later = made.snapshot("later")
    assert rules(check_pair(Pair(before, later, rewrite_done=True))) == {}
    made.xor(VA, 2, NG)
    assert rules(check_pair(Pair(before, made.snapshot(), rewrite_done=True))) == {"not-marked": 1}
    assert rules(check_pair(Pair(later, made.snapshot()))) == {"mark-lost": 1}


def test_a_stack_that_is_not_mapped_is_named_with_its_cpu() -> None:
    made = tree()
    snapshot = phase(made.snapshot(), "")
    out = Findings()
    check_stacks(snapshot, out)
    assert out.kept == []
    made.set(VA + 0x11000, 3, 0)
    check_stacks(phase(made.snapshot(), ""), out)
    assert [f.rule for f in out.kept] == ["stack-lost"]
    assert "cpu 0" in out.kept[0].evidence


def test_the_stack_pointer_of_an_empty_stack_is_its_top() -> None:
    snapshot = tree().snapshot()
    for sp, expected in ((VA + 0x20000, []), (VA + 0x20010, ["stack-lost"]), (VA + 0x22000, ["stack-lost"])):
        out = Findings()
        check_stacks(dataclasses.replace(snapshot, cpus=(dataclasses.replace(cpu_state(), sp=sp),)), out)
        assert [f.rule for f in out.kept] == expected


def test_more_findings_than_are_listed_are_counted() -> None:
    out = check(tree().snapshot(), Findings(limit=3), rewrite_done=True)
    assert (len(out.kept), out.totals["not-marked"], out.errors) == (3, 36, 36)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ({"va_range": (VA, VA + 0xFFFF)}, f"only {VA:#x}..{VA + 0x10000:#x} was captured"),
        ({"max_tables": 3}, "more than 3 tables"),
        ({"max_level": 2}, "1 entry points to a table that is not in it"),
    ],
)
def test_of_a_part_nobody_says_that_every_rule_holds(cut: dict[str, object], said: str) -> None:
    snapshot = tree().snapshot("part", **cut)
    for partial, pair_of in itertools.product((False, True), (False, True)):
        found = Findings(partial=partial)
        whole = tree().snapshot("whole")
        check_pair(Pair(snapshot, whole), found) if pair_of else check(snapshot, found)
        assert (found.totals, found.complete, found.ok) == ({}, False, partial)
        report = check_report(found, "x", int(not found.ok), regions=lambda va: "")
        text = render(report)
        assert "every" not in text and "no rule is broken in what was captured" in text
        assert said in " ".join(text.split()) and said in str(report.result["unseen"])
        assert report.result["complete"] is False and report.result["ok"] is partial


def test_an_unreadable_table_is_an_error_and_not_seen() -> None:
    made = tree()
    made.point(VA + (4 << 30), 1, OUTSIDE)
    found = check(made.snapshot(), Findings(partial=True))
    assert not found.ok and not found.complete


def test_rules_that_were_not_asked_are_named() -> None:
    found = check(tree().snapshot())
    text = render(check_report(found, "x", 0, regions=lambda va: ""))
    assert "writable-alias was not asked" in text and "no rule is broken" in text and "every" not in text


@given(two_trees())
def test_tables_that_are_shared_are_counted_as_a_slow_reading_of_the_rules_counts_them(
    pair: tuple[Snapshot, Snapshot],
) -> None:
    for snapshot in pair:
        tables, regime = snapshot.tables, snapshot.regime
        at = [(int(level), int(pa)) for level, pa in zip(tables.level, tables.pa, strict=True)]
        loops, shared, judged = 0, 0, set()
        for level in sorted({level for level, _ in at} - {3}):
            targets: list[int] = []
            for row in (row for row, (found, _) in enumerate(at) if found == level):
                if at[row][1] in judged or not tables.readable[row]:
                    continue
                for raw in tables.raw[row].tolist():
                    if raw & 3 != 3:
                        continue
                    to = int(regime.next_table(raw))
                    above = [n for n, (found, pa) in enumerate(at) if found <= level and pa == to]
                    spans = [regime.table_span(at[n][0]) for n in above]
                    loop = any(
                        int(tables.va[n]) // span == int(tables.va[row]) // span
                        for n, span in zip(above, spans, strict=True)
                    )
                    loops += loop
                    shared += bool(above) and not loop
                    targets += [] if above else [to]
            judged |= {pa for found, pa in at if found == level}
            shared += sum(targets.count(to) > 1 for to in set(targets))
        for limit in (1, 100):
            totals = check(snapshot, Findings(limit=limit)).totals
            assert (totals.get("table-loop", 0), totals.get("table-shared", 0)) == (loops, shared)


def test_how_many_tables_are_checked_is_shown_meanwhile() -> None:
    shown: list[str] = []

    class Watcher:
        def progress(self, text: str, done: int, total: int) -> None:
            shown.append(text)

    guest = Guest(watcher=Watcher())
    guest.snapshots["a"] = tree().snapshot("a")
    checkup(guest, Tables(None, None, None, "a"))
    assert shown == [f"checking {len(guest.snapshots['a'].tables)} tables"]
