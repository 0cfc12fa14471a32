"""The channel to a GDB that somebody else started, against a scripted other end."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_escort import Steward

from ptinspect.errors import MiError, TargetLost, TargetTimeout
from ptinspect.link import hosted
from ptinspect.link.escort import Escort
from ptinspect.link.hosted import Host, HostedGdb, HostedTracker
from ptinspect.link.state import Refused, RunState

Answer = Callable[[dict[str, Any]], "list[dict[str, Any]]"]
STOP = {"reason": "breakpoint-hit", "bkptno": "3", "thread-id": "2", "frame": {"addr": "0x40"}}


class Other:
    """Play GDB's side: answer each question with what `answer` says."""

    def __init__(self, answer: Answer) -> None:
        here, theirs = os.pipe(), os.pipe()
        self.source, self.sink = os.fdopen(theirs[0], "rb", buffering=0), os.fdopen(here[1], "wb")
        self._in, self._out = os.fdopen(here[0], "rb"), os.fdopen(theirs[1], "wb", buffering=0)
        self.asked: list[dict[str, Any]] = []
        self._answer = answer
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        for line in self._in:
            message = json.loads(line)
            self.asked.append(message)
            for answer in self._answer(message):
                self._out.write(json.dumps({"number": message["number"], **answer}).encode() + b"\n")
        self._out.close()

    def close(self) -> None:
        self.sink.close()
        self.thread.join(5)


@pytest.fixture
def connect() -> Iterator[Callable[[Answer], tuple[Host, Other]]]:
    others: list[Other] = []

    def begin(answer: Answer) -> tuple[Host, Other]:
        others.append(Other(answer))
        return Host(others[-1].source, others[-1].sink, os.getpid()), others[-1]

    yield begin
    for other in others:
        other.close()


def hosting(connected: tuple[Host, Other]) -> tuple[HostedGdb, HostedTracker, Other]:
    gdb = HostedGdb(connected[0])
    return gdb, HostedTracker(gdb), connected[1]


def test_a_reply_has_its_fields_and_text(connect: Any) -> None:
    host, _ = connect(lambda m: [{"out": '~"one\\n"\n@"two"\n^done,wire="yes"\n'}])
    reply = HostedGdb(host).request("-ptinspect-virtual", 5)
    assert reply.text == "one\ntwo"
    assert reply.field("wire") == b"yes"


def test_an_error_is_raised_and_a_broken_link_is_a_lost_target(connect: Any) -> None:
    host, _ = connect(lambda m: [{"out": '^error,msg="No symbol \\"x\\""\n'}])
    with pytest.raises(MiError, match='No symbol "x"'):
        HostedGdb(host).request("-x", 5)
    host, _ = connect(lambda m: [{"out": '^error,msg="Remote connection closed"\n'}])
    with pytest.raises(TargetLost):
        HostedGdb(host).request("-x", 5, check=False)


def test_the_escort_is_served_while_somebody_waits(connect: Any) -> None:
    stops = [{**STOP, "bkptno": "7"}, STOP]
    gdb, tracker, other = hosting(connect(lambda m: [{"stop": stops.pop(0)}]))
    tracker.inner.add(7)
    tracker.escort = escort = Escort(tracker, lambda: resume(gdb), lambda: None)
    steward = Steward()
    escort.everywhere, escort.stewards = False, [steward]
    escort.depart()
    resume(gdb)
    escort.follow()
    assert tracker.wait(5).breakpoint == 3
    assert [stop.breakpoint for stop in steward.seen] == [7]
    assert [asked["go"] for asked in other.asked] == [["continue"], ["continue"]]


def resume(gdb: HostedGdb) -> None:
    gdb.request("-exec-continue", 5)


def test_an_answer_to_an_older_question_is_dropped(connect: Any) -> None:
    host, _ = connect(lambda m: [{"number": m["number"] - 1, "out": "^done,a=1"}, {"out": '^done,a="2"'}])
    assert HostedGdb(host).request("-x", 5).field("a") == b"2"


def test_the_end_of_gdb_is_a_lost_target(connect: Any) -> None:
    host, other = connect(lambda m: [])
    other.sink.close()
    other.thread.join(5)
    with pytest.raises(TargetLost):
        host.receive(5)


def test_the_guest_runs_when_somebody_waits(connect: Any) -> None:
    gdb, tracker, other = hosting(connect(lambda m: [{"stop": STOP}]))
    gdb.request("-exec-continue", 5)
    assert tracker.state is RunState.RUNNING and other.asked == []
    stop = tracker.wait(5)
    assert (stop.cpu, stop.breakpoint, stop.pc, stop.reason) == (1, 3, 0x40, "breakpoint-hit")
    assert other.asked[0]["go"] == ["continue"]
    gdb.request("-exec-step-instruction --thread 4 7", 5)
    tracker.wait(5)
    assert other.asked[1]["go"] == ["thread 4", "stepi 7"]


@pytest.mark.parametrize("said", ["Cannot insert hardware breakpoint 3.", "Command aborted."])
def test_a_breakpoint_that_the_stub_refuses_ends_nothing(connect: Any, said: str) -> None:
    gdb, tracker, _ = hosting(connect(lambda m: [{"error": said}]))
    gdb.request("-exec-continue", 5)
    with pytest.raises(Refused, match="did not let the guest run: C"):
        tracker.wait(5)
    assert tracker.state is RunState.STOPPED
    assert tracker.wait(0) is tracker.stop, "it is told once"


def test_a_guest_that_does_not_stop_is_stopped_by_sigint(connect: Any, monkeypatch: Any) -> None:
    release = threading.Event()
    sent: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        release.set()

    monkeypatch.setattr(hosted.os, "kill", kill)

    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        release.wait(5)
        return [{"stop": {**STOP, "reason": "signal-received"}}]

    gdb, tracker, _ = hosting(connect(answer))
    gdb.request("-exec-continue", 5)
    with pytest.raises(TargetTimeout):
        tracker.wait(0.05)
    assert sent == [(os.getpid(), signal.SIGINT)]
    assert tracker.state is RunState.RUNNING, "as the caller of wait expects"
    gdb.request("-exec-interrupt", 5)
    assert tracker.state is RunState.STOPPED
    assert tracker.stop.reason == "signal-received"


def test_at_the_end_of_a_command_the_guest_stands(connect: Any) -> None:
    gdb, tracker, other = hosting(connect(lambda m: [{"stop": STOP}]))
    gdb.request("-exec-continue", 5)
    gdb.settle()
    assert tracker.state is RunState.STOPPED and other.asked == []


def test_a_guest_that_dies_is_lost(connect: Any) -> None:
    gdb, tracker, _ = hosting(connect(lambda m: [{"error": "Remote connection closed"}]))
    gdb.request("-exec-continue", 5)
    with pytest.raises(TargetLost):
        tracker.wait(5)
    assert tracker.state is RunState.DEAD
