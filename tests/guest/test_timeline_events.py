"""The positions of the rewrite in a recorded run: noted where the guest came to them, and only there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import context, kernel_tree, run, text

from ptinspect.errors import TargetError
from ptinspect.guest.breakpoints import breakpoints
from ptinspect.guest.opening import RECORDING
from ptinspect.guest.recordings import timeline
from ptinspect.guest.rewrite import rewrite

ENTRY, RETURN, ELSEWHERE = 0x4028_9510, 0x4028_9600, 0x4028_9580


class Replay:
    """Counts a hundred instructions for each run; `without` lists what does not stop it meanwhile."""

    def __init__(self) -> None:
        self.position, self.last = 700, 1000
        self.without: list[str] = []

    def go_to(self, target: int, seconds: float = 0) -> int:
        self.position = target
        return target

    def without_breakpoints(self) -> AbstractContextManager[None]:
        self.without.append("numbers")
        return nullcontext()

    def symbols_aside(self) -> AbstractContextManager[None]:
        self.without.append("symbols")
        return nullcontext()


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Replay:
    found = Replay()
    monkeypatch.setattr(timeline, "replay_of", lambda guest: found)
    symbols = SimpleNamespace(aside=found.symbols_aside)
    monkeypatch.setattr(breakpoints, "symbol_breakpoints", lambda guest: symbols)
    return found


def runner(replay: Replay, stops_at: int) -> Any:
    class Runner:
        reason = ""

        def __init__(self, guest: object, seconds: float) -> None:
            assert replay.without == ["symbols", "numbers"]

        def place_kernel(self) -> None: ...

        def enter(self) -> bool:
            replay.position += 100
            return True

        def point(self, name: str) -> int:
            return RETURN

        def run_to(self, places: list[int]) -> Any:
            replay.position += 100
            return SimpleNamespace(pc=stops_at)

    return Runner


def test_breakpoints_stop_nothing_on_the_way(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "Runner", runner(replay, RETURN))
    guest: Any = SimpleNamespace(kept={})
    found: Any = timeline.go_to(guest, timeline.KPTI_END, 10)
    assert found == 200


def test_another_stop_is_not_taken_for_the_return(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "Runner", runner(replay, ELSEWHERE))
    guest: Any = SimpleNamespace(kept={})
    with pytest.raises(TargetError, match="before the rewrite returned"):
        timeline.go_to(guest, timeline.KPTI_END, 10)
    assert replay.position == 700
    replay.without.clear()
    found: Any = timeline.go_to(guest, timeline.KPTI_ENTRY, 10)
    assert found == 100, "the entry is in the recording all the same"


def test_positions_have_a_time_where_it_is_known_how_long_an_instruction_takes() -> None:
    ctx = context(kernel_tree())
    session: Any = ctx.guest.session
    session.replay = SimpleNamespace(mode="replay", position=500_000, last=2_000_000_000, states={})
    ctx.guest.kept[RECORDING] = SimpleNamespace(directory="/boot", events={"kpti-entry": 141_804_212})
    report = run(ctx, "timeline")
    assert report.result["nanoseconds"] == 2
    lines = [line.split() for line in text(report).splitlines()]
    assert ["500,000", "0.001000", "s", "here"] in lines
    assert ["141,804,212", "0.283608", "s", "kpti-entry"] in lines
    del ctx.guest.kept[RECORDING]
    report = run(ctx, "timeline")
    assert report.result["nanoseconds"] is None
    assert ["500,000", "here"] in [line.split() for line in text(report).splitlines()]
