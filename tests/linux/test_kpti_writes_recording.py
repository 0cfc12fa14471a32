"""What a recording of the rewrite's stores says, from records made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from builders import NG, OUTSIDE, REGIMES, TreeBuilder

from ptinspect.link.gdb.recorder import RECORD
from ptinspect.linux.kpti.stores import Recording, Write, recording
from ptinspect.snapshot.model import Snapshot

REGIME = REGIMES["4k-48"]
BASE = int(REGIME.va_min)
PC = 0x4123_4000
SITES = {PC + 0x58: (0x58, 0), PC + 0xC8: (0xC8, 1), PC + 0x108: (0x108, 2), PC + 0x144: (0x144, 3)}
PC_OF = {level: pc for pc, (_, level) in SITES.items()}
WINDOW = 0xFFFF_FF80_0000_0000


def tree() -> TreeBuilder:
    made = TreeBuilder(REGIME)
    made.map(BASE, 0x4400_0000, size=3 << 12)
    made.map(BASE + (4 << 21), 0x4800_0000, level=2)
    return made


def made(
    before: Snapshot, rows: list[tuple[int, int, int, int, int, int]], *, whole: bool = True
) -> Recording:
    """Rows: site, address, before, stored, page, readable."""
    return recording(before, "any", SITES, np.array(rows, RECORD), whole=whole, seconds=2.0)


def store(tree_: TreeBuilder, level: int, va: int, change: int = NG) -> tuple[int, int, int, int, int, int]:
    raw = tree_.get(va, level)
    return PC_OF[level], tree_.slot(va, level), raw, raw ^ change, 0, 1


def test_stores_by_physical_address() -> None:
    t = tree()
    rows = [store(t, 3, BASE + 0x1000), store(t, 2, BASE + (4 << 21)), store(t, 2, BASE), store(t, 0, BASE)]
    found = made(t.snapshot(), rows)
    assert (len(found), found.unread, found.whole, found.levels) == (4, 0, True, (0, 1, 2, 3))
    assert [(w.site, w.level, w.va) for w in found] == [
        (0x144, 3, BASE + 0x1000), (0x108, 2, BASE + (4 << 21)), (0x108, 2, BASE), (0x58, 0, BASE),
    ]  # fmt: skip
    first = next(iter(found))
    assert first == Write(0x144, 3, rows[0][1], BASE + 0x1000, rows[0][2], rows[0][3])
    assert found.is_table().tolist() == [False, False, True, True]


def test_stores_are_counted_by_level() -> None:
    t = tree()
    rows = [
        store(t, 2, BASE),
        store(t, 2, BASE, 0),
        store(t, 2, BASE + (4 << 21)),
        store(t, 3, BASE, NG | 1 << 54),
        store(t, 3, BASE + 0x1000, 0),
    ]
    counts = {
        v.level: (v.stores, v.changed, v.tables, v.tables_changed, v.bit11_only)
        for v in made(t.snapshot(), rows).by_level()
    }
    assert counts == {0: (0,) * 5, 1: (0,) * 5, 2: (3, 2, 2, 1, 2), 3: (2, 1, 0, 0, 0)}


@pytest.mark.parametrize("name", ["4k-48", "4k-52-lpa2", "16k-47", "64k-48"])
def test_stores_through_the_window_are_where_its_page_points(name: str) -> None:
    regime = REGIMES[name]
    t = TreeBuilder(regime)
    base = int(regime.va_min)
    t.map(base, 0x4400_0000, size=3 * regime.granule)
    slot, raw = t.slot(base + regime.granule, 3), t.get(base + regime.granule, 3)
    table = slot & -regime.granule
    page = t.leaf(table, 3)
    address = WINDOW + 5 * regime.granule + (slot - table)
    found = made(t.snapshot(), [(PC_OF[3], address, raw, raw | NG, page, 1)])
    assert (found.pa.tolist(), found.va.tolist(), found.known.tolist()) == (
        [slot], [base + regime.granule], [True],
    )  # fmt: skip


def test_what_could_not_be_read_has_no_place() -> None:
    t = tree()
    pc, slot, before, stored, page, _ = store(t, 3, BASE)
    found = made(t.snapshot(), [(pc, slot, before, stored, page, 0)], whole=False)
    (write,) = list(found)
    assert (write.descriptor_pa, write.va) == (None, None)
    assert (found.unread, found.whole) == (1, False)


def test_a_store_outside_all_known_tables_keeps_its_address() -> None:
    t = tree()
    rows = [
        (PC_OF[3], OUTSIDE, 3, 3 | NG, 0, 1),
        (PC_OF[1], t.slot(BASE, 2), 3, 3 | NG, 0, 1),  # a table, of another level
        (PC_OF[0], t.root - 8, 3, 3 | NG, 0, 1),
    ]
    assert [(w.descriptor_pa, w.va) for w in made(t.snapshot(), rows)] == [
        (OUTSIDE, None), (t.slot(BASE, 2), None), (t.root - 8, None),
    ]  # fmt: skip


def test_nothing_was_stored() -> None:
    found = made(tree().snapshot(), [])
    assert (len(found), list(found), found.unread) == (0, [], 0)
    assert all(level.stores == 0 for level in found.by_level())
