"""Stops on the way: the guest runs on for everybody but the steward."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ptinspect.errors import GuestError, MiError, TargetTimeout
from ptinspect.link.escort import Escort
from ptinspect.link.state import RunState, RunTracker, StopInfo
from ptinspect.processes import poll

INNER, OURS, PLACE = 7, 3, 8
"""A breakpoint of the steward's, one of the user's, and a second place of that."""


class Steward:
    """Says what it is told to, and keeps what it saw."""

    pause: float | None = None

    def __init__(self, answer: Callable[[StopInfo], bool] = lambda stop: True) -> None:
        self.answer, self.seen = answer, list[StopInfo]()
        self.rested = 0

    def depart(self) -> None:
        """Nothing is to be set."""

    def rest(self) -> None:
        self.rested += 1

    def passes(self, stop: StopInfo) -> bool:
        self.seen.append(stop)
        return self.answer(stop)


class Gdb:
    """GDB as the tracker sees it: the guest stops at each of `stops` as soon as it runs, then it runs on."""

    def __init__(self, *stops: dict[str, str], deaf: int = 0) -> None:
        self.stops, self.deaf = list(stops), deaf
        self.tracker = RunTracker()
        self.tracker.inner |= {INNER, PLACE}
        self.tracker.numbers[PLACE] = OURS
        self.told: list[str] = []
        self.tracker.listeners.append(lambda name, _: self.told.append(name))
        self.escort = Escort(self.tracker, self.resume, self.interrupt)
        self.runs = False

    def start(self, steward: Steward) -> None:
        self.escort.stewards = [steward]
        self.escort.depart()
        self.resume()
        self.escort.follow()

    def resume(self) -> None:
        self.runs = True
        self.tracker.event("running", {})
        if self.stops:
            self.stop(self.stops.pop(0))

    def interrupt(self) -> None:
        if self.deaf:  # QEMU drops a request while it handles a breakpoint
            self.deaf -= 1
        elif self.runs:
            self.stop({"reason": "signal-received", "signal-name": "SIGINT", "thread-id": "1"})

    def stop(self, fields: dict[str, Any]) -> None:
        self.runs = False
        self.tracker.event("stopped", {"frame": {"addr": "0x1000"}, "thread-id": "1", **fields})


def hit(number: int) -> dict[str, str]:
    return {"reason": "breakpoint-hit", "bkptno": str(number)}


def test_whoever_waits_sees_none_of_the_stops_on_the_way() -> None:
    gdb, steward = Gdb(hit(INNER), hit(INNER), hit(OURS)), Steward()
    gdb.start(steward)
    stop = gdb.tracker.wait(10)
    assert (stop.breakpoint, stop.reason) == (OURS, "breakpoint-hit")
    assert [seen.breakpoint for seen in steward.seen] == [INNER, INNER]
    assert gdb.told == ["running", "stopped"]
    assert not gdb.runs


def test_the_token_changes_at_every_stop_on_the_way() -> None:
    gdb = Gdb(hit(INNER), hit(INNER), hit(OURS))
    tokens: list[int] = []
    steward = Steward(lambda stop: tokens.append(gdb.tracker.token) is None)
    gdb.start(steward)
    gdb.tracker.wait(10)
    assert len({*tokens, gdb.tracker.token}) == 3


def test_a_stop_that_the_steward_lets_be_known() -> None:
    gdb = Gdb(hit(PLACE))
    gdb.start(Steward(lambda stop: False))
    assert gdb.tracker.wait(10).breakpoint == OURS
    gdb = Gdb(hit(INNER))
    gdb.start(Steward(lambda stop: False))
    assert gdb.tracker.wait(10).breakpoint is None  # nobody knows that number


def test_the_session_is_stopped_for_the_steward_alone() -> None:
    inside: list[bool] = []
    gdb = Gdb(hit(INNER), hit(OURS))
    gdb.start(Steward(lambda stop: inside.append(gdb.escort.inside) is None))
    gdb.tracker.wait(10)
    assert inside == [True] and not gdb.escort.inside


def test_time_counts_over_stops_on_the_way() -> None:
    gdb = Gdb(hit(INNER))
    gdb.start(Steward())
    with pytest.raises(TargetTimeout):
        gdb.tracker.wait(0.2)
    assert poll(lambda: gdb.runs, 60)  # from the stop on the way
    assert gdb.tracker.state is RunState.RUNNING


def test_one_who_wants_it_stopped_gets_it_at_a_stop_on_the_way() -> None:
    gdb, reached, go = Gdb(hit(INNER)), threading.Event(), threading.Event()

    def slow(stop: StopInfo) -> bool:
        reached.set()
        return go.wait(10)

    gdb.start(Steward(slow))
    assert reached.wait(10)
    gdb.tracker.asked = True  # as interrupt and Ctrl-C do, which GDB drops now
    go.set()
    stop = gdb.tracker.wait(10)
    assert (stop.reason, stop.signal, stop.breakpoint) == ("signal-received", "SIGINT", None)
    assert not gdb.runs


def test_that_stop_is_where_a_command_of_the_stewards_has_left_the_guest() -> None:
    gdb = Gdb(hit(INNER))
    gdb.escort.command = {"output/x $pc": "0x1234"}.get  # type: ignore[assignment]

    def moves(stop: StopInfo) -> bool:
        gdb.tracker.asked = True
        return True

    gdb.start(Steward(moves))
    stop = gdb.tracker.wait(10)
    assert (stop.pc, stop.signal) == (0x1234, "SIGINT")


@pytest.mark.parametrize("error", [GuestError("another kernel"), KeyError("register")])  # the second is a bug
def test_what_the_steward_raises_is_raised_where_somebody_waits(error: Exception) -> None:
    def wrong(stop: StopInfo) -> bool:
        raise error

    gdb = Gdb(hit(INNER))
    gdb.start(Steward(wrong))
    with pytest.raises(type(error), match=str(error)):
        gdb.tracker.wait(10)
    assert gdb.tracker.state is RunState.STOPPED


def test_a_guest_that_cannot_run_on_from_a_look_is_stopped() -> None:
    gdb = Gdb(hit(INNER))

    def refused() -> None:
        raise MiError("Cannot insert breakpoint")

    def passes(stop: StopInfo) -> bool:
        gdb.escort._resume = refused
        return True

    gdb.start(Steward(passes))
    with pytest.raises(MiError, match="insert"):
        gdb.tracker.wait(10)
    assert gdb.tracker.state is RunState.STOPPED and gdb.told == ["running", "stopped"]


def test_a_run_that_did_not_begin_leaves_no_escort_to_the_next_step() -> None:
    gdb = Gdb(hit(PLACE))
    gdb.escort.stewards = [Steward()]
    with pytest.raises(MiError), gdb.escort.along(True):
        raise MiError("No symbol")
    gdb.escort.rest()
    gdb.resume()
    assert gdb.tracker.wait(1).breakpoint == OURS


def test_a_command_that_fails_while_the_guest_runs_leaves_it_with_its_escort() -> None:
    gdb, steward = Gdb(), Steward()
    gdb.escort.stewards = [steward]
    gdb.stops += [hit(INNER), hit(OURS)]
    with pytest.raises(TargetTimeout), gdb.escort.along(True):
        gdb.resume()
        raise TargetTimeout("GDB prints no more")
    assert gdb.tracker.wait(10).breakpoint == OURS and len(steward.seen) == 1


def test_the_guest_is_looked_at_at_intervals() -> None:
    gdb, steward = Gdb(deaf=2), Steward()
    steward.pause = 0.02
    gdb.start(steward)
    assert poll(lambda: len(steward.seen) >= 3, 60)
    steward.answer = lambda stop: False
    assert gdb.tracker.wait(10).signal == "SIGINT"
    assert {seen.signal for seen in steward.seen} == {"SIGINT"}
    assert gdb.told == ["running", "stopped"]


def test_a_run_without_an_escort_shows_no_number_of_the_stewards() -> None:
    gdb, steward = Gdb(), Steward()
    gdb.escort.stewards = [steward]
    gdb.escort.rest()
    gdb.stops.append(hit(OURS))
    gdb.resume()
    assert gdb.tracker.wait(1).breakpoint == OURS
    assert (steward.rested, steward.seen) == (1, [])
