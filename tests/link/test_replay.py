"""Moves in a recorded run, against a model of QEMU that ends where QEMU does."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptinspect.errors import ReplayStands, TargetError, TargetLost, TargetTimeout, UserError
from ptinspect.link import replay_driver
from ptinspect.link.qemu.recording import CLUSTER, empty_image
from ptinspect.link.qemu.replay_log import Places, places
from ptinspect.link.replay import END, NEAR, SPACING, START, Replay, mode_of, position_of
from ptinspect.link.replay_scan import Look, Scan, Seen
from ptinspect.link.state import StopInfo

LENGTH = 5 * SPACING + 17


@dataclass
class Model:
    """A replay of LENGTH instructions, with breakpoints at positions."""

    at: int = 0
    stop_at: int | None = None
    fresh: bool = True
    states: dict[str, int] = field(default_factory=lambda: {"init": 0})
    breaks: tuple[int, ...] = ()
    enabled: bool = True
    loads: int = 0
    stop: StopInfo = field(default_factory=lambda: StopInfo("attached", 0, None, 0, ""))
    slow: bool = False
    log: str = "/a b/replay.log"
    ends: str = "limit"
    """How a scan ends."""
    shy: frozenset[int] = frozenset()
    """Where it goes on only if a step led there."""
    stuck: frozenset[int] = frozenset()
    """Where it never goes on once it has stopped."""
    lazy: dict[int, int] = field(default_factory=dict)
    """Where it does not go on, and how many states are loaded until it does."""
    told: bool = False
    """It stands where it was told to stop."""

    @property
    def has_breakpoints(self) -> bool:
        return bool(self.breaks)

    def ask(self, command: str, seconds: float = 0) -> str:
        word, _, rest = command.partition(" ")
        if command == "info replay":
            return f"Replaying execution '{self.log}': instruction count = {self.at}\n"
        if command == "info snapshots":
            rows = [
                f"--  {name}  24.3 MiB 2026-11-27 23:43:49 00:00:00.000 {at:>10}"
                for name, at in self.states.items()
            ]
            return (
                "List of snapshots present on all disks:\nID TAG VM SIZE DATE VM CLOCK ICOUNT\n"
                + "\n".join(rows)
            )
        if word == "replay_delete_break":
            self.stop_at = None
        elif word == "replay_break":
            assert self.stop_at is None or self.stop_at >= self.at
            assert int(rest) > self.at, "a stop at the present position is passed over"
            self.stop_at = int(rest)
        elif word == "savevm":
            self.states[rest] = self.at
        elif word == "delvm":
            raise TargetLost("QEMU 11.1 ends")
        elif word == "loadvm":
            if self.fresh:
                raise TargetLost("two states with no run between them")
            self.lazy = {at: times - (at == self.at) for at, times in self.lazy.items()}
            self.at, self.fresh, self.stop_at = self.states[rest], True, None
            self.loads += 1
        return ""

    def run_on(self) -> None:
        self.need_free()
        self.fresh = False
        halt = next((at for at, times in self.lazy.items() if times and self.at <= at), None)
        if halt is not None:
            self.at = halt
            return
        ends = [
            at
            for at in (*(self.breaks if self.enabled else ()), self.stop_at)
            if at is not None and at > self.at
        ]
        self.at = min(ends)
        hit = self.enabled and self.at in self.breaks
        number = 1 + self.breaks.index(self.at) if hit else None
        self.stop = StopInfo(
            "breakpoint-hit" if hit else "signal-received", 0, number, self.at, "" if hit else "SIGINT"
        )
        self.told = self.at == self.stop_at
        if self.told:
            self.stop_at = None

    def scan(self, wanted: Scan) -> Seen:
        looks: list[Look] = []
        for stop, target in wanted.limits:
            assert self.stop_at is None
            for va in (va for va in wanted.watched if self.at <= va < target):  # stored to at that position
                self.at, self.fresh = va, False
                if va in wanted.stuck or va in self.stuck:
                    return Seen((), tuple(looks), "stuck")
            if self.at < stop:
                self.ask(f"replay_break {stop}")
                if self.ends != "limit":
                    return Seen((), (), self.ends)
                self.run_on()
            while self.at < target:
                self.step_once()
            looks.append(Look(target, ()))
        return Seen((), tuple(looks), "limit")

    def need_free(self) -> None:
        assert self.at < LENGTH, "it would be stuck at the end"
        assert self.fresh or not (self.at in self.stuck or (self.told and self.at in self.shy)), "it is stuck"

    def stop_within(self, seconds: float) -> StopInfo | None:
        if self.slow and self.enabled:
            raise TargetTimeout("too slow")
        return None if self.lazy.get(self.at) else self.stop

    def step_once(self) -> None:
        self.need_free()
        self.at, self.fresh, self.told = self.at + 1, False, False

    def without_breakpoints(self) -> Any:
        return Off(self)

    def stands(self, reason: str, breakpoint: int | None = None) -> StopInfo:
        return StopInfo(reason, 0, breakpoint, self.at, "")

    def forget(self) -> None:
        pass


@dataclass
class Off:
    model: Model

    def __enter__(self) -> None:
        self.model.enabled = False

    def __exit__(self, *_: object) -> None:
        self.model.enabled = True


def replay(model: Model, known: bool = True) -> Replay:
    found = Replay(model, "replay")
    found.last = LENGTH
    if known:
        found._places = Places(model.shy, model.stuck)
    return found


def test_the_way_to_the_end_leaves_states_from_which_the_ways_back_are_short() -> None:
    model = Model()
    found = replay(model)
    assert found.go_to(LENGTH).reason == END and model.at == LENGTH
    assert [at for at in found.states if at] == [SPACING * n for n in range(1, 6)]
    assert found.step_back(1).pc == LENGTH - 1 and found.step_back(10).pc == LENGTH - 11
    assert found.step_back(LENGTH).reason == START and model.at == 0
    with pytest.raises(UserError, match="start"):
        found.step_back(1)


def test_a_position_at_a_saved_state_is_come_to_from_before_it() -> None:
    model = Model()
    found = replay(model)
    found.go_to(LENGTH)
    found.go_to(2 * SPACING)
    found.go_to(SPACING)
    assert model.at == SPACING and not model.fresh
    found.go_to(0)
    found.go_to(3 * SPACING)
    assert model.at == 3 * SPACING


def test_a_short_way_forwards_loads_nothing() -> None:
    model = Model()
    found = replay(model)
    found.go_to(LENGTH)
    found.go_to(SPACING + 5)
    before = model.loads
    found.go_to(SPACING + NEAR)
    assert model.loads == before


@pytest.mark.parametrize("breaks", [(70, 500, SPACING, SPACING + 1), (3 * SPACING - 1, 3 * SPACING, LENGTH)])
def test_backwards_each_breakpoint_is_met_last_first_and_then_the_start(breaks: tuple[int, ...]) -> None:
    model = Model()
    found = replay(model)
    found.go_to(LENGTH)
    model.breaks = breaks
    for at in sorted(breaks, reverse=True):
        if at == LENGTH:
            continue
        stop = found.back(60)
        assert (model.at, stop.reason, stop.breakpoint) == (at, "breakpoint-hit", 1 + breaks.index(at))
    assert found.back(60).reason == START


def test_a_scan_follows_on_a_stop_that_was_asked_for_and_one_that_breaks_off_leaves_its_own() -> None:
    model = Model()
    found = replay(model)
    found.forwards()
    looks = found.scan((), (), [10, 20], 1e9).looks
    assert [look.position for look in looks] == [10, 20] and model.at == 20
    model.ends = "time"
    with pytest.raises(TargetTimeout, match="position 40"):
        found.scan((), (), [40], 1e9)
    found.go_to(30)
    model.ends = "stopped: T03"
    with pytest.raises(TargetError, match="T03"):
        found.scan((), (), [40], 1e9)
    found.go_to(35)
    assert model.at == 35


def test_who_gives_up_on_the_way_back_stands_where_he_stood() -> None:
    model = Model()
    found = replay(model)
    found.go_to(LENGTH - 5)
    model.breaks, model.slow = (7,), True
    with pytest.raises(TargetTimeout):
        found.back(60)
    assert model.at == LENGTH - 5


A = 2 * SPACING + 5


@pytest.mark.parametrize(
    ("shy", "stuck"),
    [({A}, set()), ({A, A - 1, A + 1}, set()), (set(), {A, A + 1}), ({A}, {A - 1}), ({A, A + 7}, {A + 1}),
     ({2 * SPACING}, {3 * SPACING})],
)  # fmt: skip
def test_it_goes_on_from_where_the_recorded_guest_stood(shy: set[int], stuck: set[int]) -> None:
    model = Model(shy=frozenset(shy), stuck=frozenset(stuck))
    found = replay(model)
    for start in (0, LENGTH, A - 1, A - 2):
        for place in sorted(shy | stuck):
            found.go_to(start)
            assert found.go_to(place).pc == model.at == place
            assert found.go_to(place + 7).pc == model.at == place + 7
            found.go_to(place)
            looks = found.scan((), (), [place + 2, place + 8], 1e12).looks
            assert looks[-1].position == place + 8 and {*range(8)} >= {x.position - place - 1 for x in looks}
            found.go_to(place)
            found.forwards()
            model.run_on()
            assert model.at == LENGTH
            found.go_to(place)
            assert found.step_back(1).pc == place - 1
            model.breaks = (A - 50, A, A + 1, A + 3)
            found.go_to(A + 9)
            met = [found.back(60).pc, found.back(60).pc]
            assert met == [A + 3, A if {A, A - 1} & stuck else A + 1]  # what follows at once is passed over
            while model.at:
                met.append(found.back(60).pc)
            assert met[-3:] == [A, A - 50, 0]
            model.breaks = ()


def test_a_way_on_which_it_does_not_go_on_is_tried_once_more() -> None:
    at = SPACING + 4_000
    model = Model(lazy={at: 1})
    assert replay(model).go_to(at + 9).pc == model.at == at + 9
    assert model.loads == 1
    with pytest.raises(ReplayStands, match=f"{at:,}"):
        replay(Model(lazy={at: 2})).go_to(at + 9)


def test_where_it_was_seen_not_to_go_on_it_is_passed_by_the_next_time() -> None:
    at = 2 * SPACING + 4_000
    model = Model(stuck=frozenset({at}))
    made = replay(model, known=False)
    made.go_to(at)
    assert made.moved(None) == made.moved(at - 1) == at
    with pytest.raises(ReplayStands, match=f"does not go on from position {at:,}"):
        made.moved(at)
    made.forwards()
    assert model.at == at + 1


def test_a_step_from_where_it_is_stuck_leads_on_by_so_many_instructions() -> None:
    model = Model(stuck=frozenset({A, A + 1}))
    found = replay(model)
    for count in (1, 2, 30):
        found.go_to(A)
        stop = found.stepped_to_end(count)
        assert stop is not None and model.at == A + count


def test_a_store_where_it_is_stuck_is_passed_by_and_the_scan_comes_to_its_end() -> None:
    model = Model(stuck=frozenset({A}))
    for known in (True, False):
        found = replay(model, known)
        found.go_to(A - 9)
        seen = found.scan((A,), (), [A - 5, A + 5], 1e12)
        assert [look.position for look in seen.looks] == [A - 5, A + 5] and seen.ended == "limit"
        found.go_to(A)
        assert found.go_to(A + 3).pc == A + 3


def test_the_log_tells_where_the_recorded_guest_stood(tmp_path: Path) -> None:
    clock, look = b"\x1d" + bytes(8), b"\x24" + 2 * (b"\x1d" + bytes(8))
    started, on = b"\x1e" + clock, b"\x1f"

    def log(*events: bytes, version: int = 0xE0200C) -> Places:
        parts = (b"\x00" + (10).to_bytes(4, "big") + event for event in events)
        (tmp_path / "log").write_bytes(
            version.to_bytes(4, "big") + bytes(8) + b"".join((*parts, b"\x00" * 5))
        )
        return places(tmp_path / "log")

    idle = started + look + started + look + on
    written = b"\x16" + bytes([0x1E] * 8)
    arrays = (
        b"\x1b"
        + bytes(4)
        + (3).to_bytes(4, "big")
        + b"\x1e\x1d\x24"
        + b"\x07\x00"
        + (1).to_bytes(4, "big")
        + b"x"
    )
    events = (
        started + look + on + on, written + arrays, started + 2 * look + on + on,
        started + look + on + clock + on, idle, on + started + look + on, started + on, b"\x1d" + bytes(8),
    )  # fmt: skip
    for version in (0xE0200C, 0xE0200E):
        assert log(*events, version=version) == Places(frozenset({10, 60}), frozenset({30}))
    assert log(*events, version=0xE02009) == log() == places(tmp_path / "none") == Places()
    assert log(events[0], b"\xff", events[0]) == Places(frozenset({10}))


def test_the_log_is_looked_for_where_qemu_says_that_it_is(tmp_path: Path) -> None:
    model = Model()
    found = replay(model, known=False)
    assert found.limit(60).stop == 60
    look = b"\x24" + 2 * (b"\x1d" + bytes(8))
    (tmp_path / "replay.log").write_bytes(
        b"\x00\xe0\x20\x0c"
        + bytes(8)
        + b"\x00\x00\x00\x00\x3c\x1e\x1d"
        + bytes(8)
        + look
        + b"\x1f"
        + bytes(5)
    )
    model.log = f"{tmp_path}/replay.log"
    assert replay(model, known=False).limit(60).stop == 59


def test_what_ends_qemu_is_not_passed_on_to_its_monitor() -> None:
    model = Model()
    found = replay(model)
    for command in ("delvm init", "savevm init", "loadvm init"):
        with pytest.raises(UserError, match=command.split()[0]), found.disturbed(command):
            pass
    found.go_to(5)
    with found.disturbed("loadvm init"):
        pass
    with pytest.raises(UserError, match="second"), found.disturbed("loadvm init"):
        pass
    with found.disturbed("savevm other"), Replay(model, "record").disturbed("delvm init"):
        pass


def test_nothing_runs_on_at_the_end_and_a_step_that_leads_there_is_a_run() -> None:
    model = Model()
    found = replay(model)
    found.go_to(LENGTH - 3)
    assert found.stepped_to_end(2) is None
    stop = found.stepped_to_end(5)
    assert stop is not None and stop.reason == END and model.at == LENGTH
    with pytest.raises(UserError, match="end"):
        found.forwards()
    with pytest.raises(UserError, match="no position"):
        found.go_to(LENGTH + 1)


def test_breakpoints_of_the_escort_are_gone_before_the_others_are_disabled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(replay_driver, "disabled", lambda gdb: done.append("disabled"))
    escort = SimpleNamespace(rest=lambda: done.append("rest"))
    session: Any = SimpleNamespace(ask=None, forget=None, escort=escort)
    nobody: Any = None
    replay_driver.Driver(session, nobody, nobody, nobody).without_breakpoints()
    assert done == ["rest", "disabled"]


def test_what_qemu_says_of_a_recording() -> None:
    assert mode_of("Record/replay is not active\n") is None
    assert mode_of("Recording execution 'f': instruction count = 0\n") == "record"
    assert position_of("Replaying execution 'it's': instruction count = 1127051455\n") == 1127051455


def test_the_empty_image_refers_to_each_of_its_clusters_once() -> None:
    image = empty_image(1 << 20)
    size = 1 << CLUSTER
    assert len(image) == 4 * size and image[:4] == b"QFI\xfb"
    table, counts = struct.unpack_from(">Q", image, 40)[0], struct.unpack_from(">Q", image, 48)[0]
    block = struct.unpack_from(">Q", image, counts)[0]
    assert {table, counts, block} == {size, 2 * size, 3 * size}
    assert struct.unpack_from(">5H", image, block) == (1, 1, 1, 1, 0)
    assert re.fullmatch(rb"\0*", image[table:])
