"""What `kpti writes` shows and refuses, without a guest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import NG, REGIMES, TreeBuilder

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.kpti import recording as command
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest.rewrite.stores import level_numbers
from ptinspect.link.gdb.recorder import RECORD
from ptinspect.linux.kpti.stores import Recording, recording
from ptinspect.output.text import render

REGIME = REGIMES["4k-48"]
BASE = int(REGIME.va_min)
SITES = {0x108: (0x108, 2), 0x144: (0x144, 3)}


def recorded(count: int, *, whole: bool = True, readable: int = 1) -> Recording:
    """`count` stores to pages, and one to their table that changes nothing."""
    made = TreeBuilder(REGIME)
    made.map(BASE, 0x4400_0000, size=count << 12)
    slot, table = made.slot(BASE, 3), made.get(BASE, 2)
    rows = [(0x108, made.slot(BASE, 2), table, table, 0, 1)]
    for i in range(count):
        raw = made.get(BASE + (i << 12), 3)
        rows.append((0x144, slot + 8 * i, raw, raw | NG, 0, readable))
    return recording(
        made.snapshot(), "any", SITES, np.array(rows, RECORD), whole=whole, seconds=0.5
    )  # fmt: skip


def test_the_answer_counts_by_level_and_lists_the_stores() -> None:
    report = command._report(recorded(3), None)
    result = report.result
    assert (result["stores"], result["per_second"], result["whole"], result["unread"]) == (4, 8, True, 0)
    assert [(v["name"], v["stores"], v["unchanged"], v["tables"]) for v in result["levels"]] == [
        ("pmd", 1, 1, 1), ("pte", 3, 0, 0),
    ]  # fmt: skip
    first, second = result["writes"][:2]
    assert (first["changed"], first["before"] == first["stored"]) == (False, True)
    assert (second["site"], second["va"], second["changed"]) == ("+0x144", f"{BASE:#018x}", True)
    assert result["writes_left_out"] == 0


def test_long_lists_are_cut_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULT", 20)
    found = recorded(100)
    result = command._report(found, None).result
    assert (len(result["writes"]), result["writes_left_out"]) == (20, 81)
    assert "and 61 more; -o FILE writes them all" in text(found, None)
    assert "and 61 more in w.csv" in text(found, Path("w.csv"))


def text(found: Recording, output: Path | None) -> str:
    return render(command._report(found, output))


def test_doubts_are_shown() -> None:
    assert "began in the middle" in text(recorded(1, whole=False), None)
    assert "2 stores could not be read" in text(recorded(2, readable=0), None)
    row = command.store_results(recorded(1, readable=0))[1]
    assert (row.descriptor_pa, row.va) == (None, None)
    assert "? " in text(recorded(1, readable=0), None)


@pytest.mark.parametrize(
    ("wanted", "start", "levels"),
    [
        ([], 0, {0, 1, 2}), ([], -1, {-1, 0, 1, 2}),
        ([], 1, {1, 2}), ([3], 0, {3}), (["pmd", "pgd"], 0, {0, 2}),
    ],
)  # fmt: skip
def test_levels(wanted: list[int | str], start: int, levels: set[int]) -> None:
    assert level_numbers(wanted, start) == levels


def test_a_level_that_is_not_there() -> None:
    with pytest.raises(UserError, match="there is no level -1 here"):
        level_numbers([-1], 0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kpti writes", "not attached to a guest"),
        ("kpti writes --level nine", "nine"),
        ("kpti writes --timeout never", "never"),
    ],
)
def test_refused_without_a_guest(line: str, said: str) -> None:
    ctx = Context(build_registry())
    with pytest.raises(PtinspectError, match=said):
        ctx.registry.run(ctx, line)
