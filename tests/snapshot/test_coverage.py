"""What a snapshot says that it does not show."""

from __future__ import annotations

import dataclasses

import numpy as np
from builders import OUTSIDE, TreeBuilder, regime_4k

from ptinspect.snapshot.coverage import unseen
from ptinspect.tables.index import Tables


def tree() -> TreeBuilder:
    made = TreeBuilder(regime_4k(48))
    for part in range(4):
        made.map(made.regime.va_min + (part << 39), 0x4400_0000, size=2 << 12)
    return made


def test_a_whole_capture_lacks_nothing() -> None:
    assert unseen(tree().snapshot()) == ()


def test_what_is_cut_is_said() -> None:
    made = tree()
    low = made.regime.va_min
    assert unseen(made.snapshot("a", va_range=(low, low + 0xFFFF))) == (
        f"a: only {low:#x}..{low + 0x10000:#x} was captured",
    )
    assert unseen(made.snapshot("a", va_range=(low, made.regime.va_max))) == ()
    assert unseen(made.snapshot("a", max_tables=5)) == (
        "a: incomplete, more than 5 tables: stopped at level 2",
        f"a: 4 entries point to a table that is not in it, the first for {low:#x}",
    )
    assert unseen(made.snapshot("a", max_level=2)) == (
        "a: incomplete, levels below 2 were not asked for",
        f"a: 4 entries point to a table that is not in it, the first for {low:#x}",
    )
    made.point(low + (1 << 40) * 3, 0, OUTSIDE)
    assert unseen(made.snapshot("a")) == ("a: 1 table could not be read",)
    made.point(low + (1 << 40) * 4, 0, OUTSIDE + 0x1000)
    found = unseen(made.snapshot("a", max_tables=9))
    assert found[0].startswith("a: incomplete") and found[-1] == "a: 2 tables could not be read"
    whole = made.snapshot("a")
    kept = np.arange(len(whole.tables)) != 3
    columns = {f.name: getattr(whole.tables, f.name)[kept] for f in dataclasses.fields(whole.tables)}
    assert "1 entry points to a table" in unseen(dataclasses.replace(whole, tables=Tables(**columns)))[0]
