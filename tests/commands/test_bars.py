"""Tables drawn in characters."""

from __future__ import annotations

from builders import NG, REGIMES, TreeBuilder

from ptinspect.analysis.atlas import STATES, atlas, changes
from ptinspect.commands.tables.bars import COLUMNS, LETTERS, bars_report
from ptinspect.output.text import plain, render


def test_the_tables_on_the_way_are_drawn_entry_by_entry() -> None:
    made = TreeBuilder(REGIMES["4k-48"])
    base = int(made.regime.va_min)
    made.map(base, 0x4400_0000, size=3 * 4096, level=3)
    made.set(base + 4096, 3, made.get(base + 4096, 3) | NG)
    before = made.snapshot("before")
    made.set(base, 3, 0)
    after = made.snapshot("after")
    shown = atlas(after)
    report = bars_report(after, shown, base)
    assert [table["level"] for table in report.result["tables"]] == [0, 1, 2, 3]
    assert report.result["tables"][3]["letters"] == ".Ng" + "." * 509
    lost = bars_report(after, changes(before, after), base)
    assert lost.result["tables"][3]["letters"].startswith("LNg.")
    assert lost.result["levels"][3]["states"] == {"leaf, global": 1, "leaf, nG": 1, "lost": 1}
    assert len(bars_report(after, shown, None).result["tables"]) == 1
    away = bars_report(after, shown, base + (1 << 47)).result["tables"]
    assert [table["level"] for table in away] == [0]


def test_no_state_is_rounded_away_and_lines_fit_a_terminal() -> None:
    made = TreeBuilder(REGIMES["16k-48"])
    base = int(made.regime.va_min)
    made.map(base, 0x4400_0000, size=2000 << 14, level=3)
    made.set(base, 3, made.get(base, 3) | NG)
    snapshot = made.snapshot()
    shown = atlas(snapshot)
    report = bars_report(snapshot, shown, base)
    text = render(report)
    last = next(line for line in text.splitlines() if line.startswith("pte 3"))
    bar = last.split()[2]
    assert len(bar) == COLUMNS and set(bar) == {"g", "N"}
    assert max(map(len, text.splitlines())) <= 80
    coloured = render(report, colour=True)
    assert coloured != text and plain(coloured) == text


def test_every_state_has_a_letter_of_its_own() -> None:
    assert len({letter for letter, _ in LETTERS}) == len(LETTERS) == len(STATES)
