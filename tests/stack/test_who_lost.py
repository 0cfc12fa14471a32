"""The verdict on a lost entry, with the write that lost it where a recording tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_stack_verdict import change, facts, path

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.regime import Regime
from ptinspect.errors import TargetTimeout
from ptinspect.guest.recordings.writers import Write
from ptinspect.guest.stacks import fault
from ptinspect.guest.stacks.fault import Judged, with_writer
from ptinspect.stack.verdict import Facts, explain

WRITE = Write(
    0x4000, "pa:0x4000", "str xzr, [x1]", 0, 1, False, "", None, (), "",
    PhysAddr(0x3000), 77, 0x7FFF_A803, 0, "store", 0x3000,
)  # fmt: skip


def guest(mode: str | None) -> Any:
    replay = None if mode is None else SimpleNamespace(mode=mode, position=99)
    return SimpleNamespace(
        stopped=SimpleNamespace(replay=replay),
        view=SimpleNamespace(regime=Regime(12, 48, 48, True)),
        kept={"recording": SimpleNamespace(directory=Path("/r/a b"))},
        progress=lambda text: None,
    )


def judged(found: Facts) -> Judged:
    return Judged(0, found, explain(found))


def refuse(*args: Any) -> Any:
    raise AssertionError("a search")


@pytest.fixture(autouse=True)
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("last_writes", "that_unmapped"):
        monkeypatch.setattr(fault, name, refuse)


def test_outside_a_recording_the_verdict_is_as_it_is() -> None:
    found = judged(facts())
    assert with_writer(guest(None), found) is found


def test_while_it_is_recorded_it_is_said_how_to_ask() -> None:
    (*_, text) = with_writer(guest("record"), judged(facts())).why.unknown
    assert text == "who lost it: detach; timeline open '/r/a b'; timeline goto 99; why"


@pytest.mark.parametrize(
    "other", [facts(walk=path(1, outcome="mapped")), facts(handling=False, in_entry=False)]
)
def test_where_no_mapping_is_missing_nothing_is_searched(other: Facts) -> None:
    for mode in ("record", "replay"):
        found = judged(other)
        assert with_writer(guest(mode), found) is found


def test_without_a_snapshot_the_write_tells_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "that_unmapped", lambda guest, walk, regime, seconds: WRITE)
    before = judged(facts())
    found = with_writer(guest("replay"), before)
    assert before.why.code == "stack-mapping-lost" and found.why.code == "lost-entry"
    assert found.written is WRITE and found.why.change is not None
    assert (found.why.change.descriptor_pa, found.why.change.kinds) == (0x3000, ("lost",))


def test_what_a_snapshot_shows_is_searched_by_its_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def last_writes(guest: Any, values: Any, at: Any, since: int, seconds: float) -> Any:
        asked.append(values)
        return {PhysAddr(0x7FFF_E458): replace(WRITE, pa=PhysAddr(0x7FFF_E458))}

    monkeypatch.setattr(fault, "last_writes", last_writes)
    found = with_writer(guest("replay"), judged(facts(changes=(change(0),))))
    assert asked == [{0x7FFF_E458: 0}] and cast(Write, found.written).position == 77
    assert "in snapshot after" in found.why.text


def test_a_search_without_an_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "that_unmapped", lambda *a: None)
    found = with_writer(guest("replay"), judged(facts()))
    assert found.why.code == "stack-mapping-lost" and "shows no write" in found.why.unknown[-1]

    def late(*args: Any) -> Any:
        raise TargetTimeout("late")

    monkeypatch.setattr(fault, "that_unmapped", late)
    assert "not found within" in with_writer(guest("replay"), judged(facts())).why.unknown[-1]
