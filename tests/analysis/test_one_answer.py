"""What changed between two captures: diff, picture, bars, check and verdict give one answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import KERNEL_DATA, NG, REGIMES, TreeBuilder
from hypothesis import given, settings
from tangled import two_trees

from ptinspect.analysis.atlas import STATES, changes
from ptinspect.analysis.check import Pair, check_pair
from ptinspect.analysis.diff import Diff, diff
from ptinspect.analysis.findings import Findings
from ptinspect.commands.tables.bars import bars_report
from ptinspect.commands.tables.diff import diff_report
from ptinspect.errors import SnapshotError
from ptinspect.linux.kpti.state import state_from_tables
from ptinspect.linux.kpti.verdict import judge
from ptinspect.snapshot.coverage import strangers
from ptinspect.snapshot.model import Snapshot


def total(found: Diff, *fields: str) -> int:
    return sum(getattr(level, field) for level in found.levels for field in fields)


def phase(snapshot: Snapshot, name: str) -> Snapshot:
    meta = dataclasses.replace(snapshot.meta, extra={"kpti.phase": name})
    return dataclasses.replace(snapshot, meta=meta)


def assert_one_answer(a: Snapshot, b: Snapshot) -> Diff:
    found = diff(a, b)
    shown = changes(a, b)
    assert shown.changes == found.levels
    counted = np.bincount(shown.states.reshape(-1), minlength=len(STATES)).tolist()
    for number, name in enumerate(STATES):
        assert counted[number] == sum(c.get(name, 0) for c in shown.counts.values()) or name == "invalid"
    said = diff_report(found, a, b, listed=range(len(found.changes)), regions=lambda va: "").result["levels"]
    drawn = {level["level"]: level for level in bars_report(b, shown, None).result["levels"]}
    for level in said:
        number = level["level"]
        states = drawn.get(number, {}).get("states", {})
        if number in drawn:
            assert drawn[number]["changes"].items() <= level.items()
        assert states.get("lost", 0) == level["lost"]
        assert states.get("new", 0) == level["new"]
        assert states.get("points elsewhere", 0) == level["retargeted"] + level["kind"]
        assert states.get("other attributes", 0) <= level["attributes"]
    for limit in (1, 1000):
        rules = check_pair(Pair(phase(a, "before"), phase(b, "during")), Findings(limit=limit)).totals
        assert rules.get("entry-lost", 0) == total(found, "lost")
        elsewhere = rules.get("entry-reverted", 0) + rules.get("entry-retargeted", 0)
        assert elsewhere == total(found, "retargeted", "kind")
        assert rules.get("entry-reverted", 0) == sum(change.older for change in found.changes)
        moved = sum(
            {"unmarked", "ng_cleared"} & {*c.kinds} != set() for c in found.changes if "retargeted" in c.kinds
        )
        assert rules.get("mark-lost", 0) == total(found, "unmarked", "ng_cleared") - moved
        beyond = found.changes_total - total(found, "unreadable", "lost", "retargeted", "kind")
        assert rules.get("entry-changed", 0) == beyond
    damaged = judge(a, b, state_from_tables(b)).code in ("lost-write", "reverted-entry")
    assert damaged == bool(total(found, "lost", "retargeted") and not strangers(a, b))
    return found


@settings(max_examples=300)
@given(two_trees())
def test_all_give_the_same_numbers_of_tangled_trees(snapshots: tuple[Snapshot, Snapshot]) -> None:
    a, b = snapshots
    try:
        assert_one_answer(a, b)
    except SnapshotError:
        assert a.va_range is not None and b.va_range is not None


def joined(name: str) -> tuple[Snapshot, Snapshot]:
    """Return two tables each of whose leaves is lost as the entries come to share a third one."""
    made = TreeBuilder(REGIMES[name])
    base, unit = int(made.regime.va_min), made.regime.entry_size(2)
    for i in range(3):
        made.map(base + i * unit, 0x4400_0000, size=4 * made.regime.granule, attributes=KERNEL_DATA | NG)
    made.set(base + 2 * unit, 3, 0)
    before = made.snapshot("before")
    for i in range(2):
        made.share(base + i * unit, 2, base + 2 * unit)
    return before, made.snapshot("after")


@pytest.mark.parametrize("name", ["4k-39", "4k-48", "16k-47", "64k-48"])
def test_what_is_lost_in_a_table_that_came_to_be_shared_is_lost_once_for_each_table_before(name: str) -> None:
    before, after = joined(name)
    found = assert_one_answer(before, after)
    assert (total(found, "lost"), total(found, "retargeted")) == (2, 2)
    found = assert_one_answer(after, before)
    assert (total(found, "new"), total(found, "retargeted")) == (2, 2)


def test_the_way_down_a_picture_leads_to_the_table_of_that_address() -> None:
    before, after = joined("4k-48")
    base, unit = int(after.regime.va_min), 2 << 20
    shown = changes(before, after)
    for i, expected in enumerate(("L", "L", ".")):
        tables = bars_report(after, shown, base + i * unit).result["tables"]
        assert tables[3]["letters"][0] == expected
