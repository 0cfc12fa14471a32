"""What a snapshot says that it does not show."""

from __future__ import annotations

from builders import OUTSIDE, TreeBuilder, regime_4k

from ptinspect.snapshot.coverage import unseen


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
        f"a: only {low:#x}..{low + 0xFFFF:#x} was captured",
    )
    assert unseen(made.snapshot("a", va_range=(low, made.regime.va_max))) == ()
    assert unseen(made.snapshot("a", max_tables=5)) == (
        "a: incomplete, more than 5 tables: stopped at level 2",
    )
    assert unseen(made.snapshot("a", max_level=2)) == ("a: incomplete, levels below 2 were not asked for",)
    made.point(low + (1 << 40) * 3, 0, OUTSIDE)
    assert unseen(made.snapshot("a")) == ("a: 1 table could not be read",)
    made.point(low + (1 << 40) * 4, 0, OUTSIDE + 0x1000)
    found = unseen(made.snapshot("a", max_tables=9))
    assert found[0].startswith("a: incomplete") and found[1] == "a: 2 tables could not be read"
