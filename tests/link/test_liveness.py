"""Who is looked at, when, and what comes of it: a scripted guest, whose time is not the clock's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, NothingRuns, TargetTimeout
from ptinspect.link import liveness
from ptinspect.link.liveness import Liveness
from ptinspect.link.state import StopInfo

OFF = CpuState(1, (0,) * 31, 0, 0, 0x3C5, {"VBAR_EL1": 0})
STUCK = CpuState(
    0, (1,) * 31, 0, 0x200, 0x3C5, {"VBAR_EL1": 0, "ELR_EL1": 0x200, "SPSR_EL1": 0x3C5, "ESR_EL1": 1 << 25}
)
BUSY = replace(STUCK, pc=0x4000_0000)
ALIVE = replace(BUSY, system={"TTBR1_EL1": 0x1000, "SCTLR_EL1": 1})
LOOK = StopInfo("signal-received", 0, None, 0x200, "SIGINT")
HIT = StopInfo("breakpoint-hit", 0, 3, 0x100, "")


class Scripted:
    """A guest that stands as it is told to at each look, and stops by itself after `ends` seconds."""

    def __init__(self, clock: list[float], looks: Sequence[Sequence[CpuState]], ends: float = 1e9) -> None:
        self.clock, self.looks, self.ends = clock, iter(looks), ends
        self.now: Sequence[CpuState] = [BUSY]
        self.interrupted: list[float] = []
        self.answer = LOOK
        self.memory = self.escort = self
        self.last: StopInfo | None = None
        """The stop from which the steward does not let it run on."""
        self.resumed = self.current_cpu = 0
        self.watch: Liveness | None = None

    @property
    def cpu_count(self) -> int:
        return len(self.now)

    def cpu_state(self, cpu: int) -> CpuState:
        return self.now[cpu]

    def read(self, pa: int, length: int) -> bytes:
        raise GuestError("nothing there")

    def interrupt(self) -> StopInfo:
        self.interrupted.append(self.clock[0])
        self.tell("stopped")
        self.now = next(self.looks)
        return self.answer

    def passes(self, stop: StopInfo) -> bool:
        return stop is not self.last

    def resume(self) -> None:
        self.resumed += 1
        if self.watch is not None:
            self.watch.before_run()
        self.tell("running")

    def tell(self, name: str) -> None:
        if self.watch is not None:
            self.watch.event(name, {})

    def wait(self, seconds: float, whole: float) -> StopInfo:
        if self.clock[0] + seconds >= self.ends:
            self.clock[0] = self.ends
            return HIT
        self.clock[0] += seconds
        raise TargetTimeout(f"not within {whole:g} s")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now[0])
    yield now


def watch(guest: Scripted, *, armed: bool = True) -> Liveness:
    guest.watch = Liveness(guest, guest.wait, armed=armed)  # type: ignore[arg-type]
    guest.resume()
    guest.resumed = 0
    return guest.watch


def test_a_guest_that_does_nothing_is_noticed_at_the_first_look(clock: list[float]) -> None:
    guest = Scripted(clock, [[STUCK, OFF]])
    with pytest.raises(NothingRuns, match="nothing runs: cpu 0 takes an exception") as caught:
        watch(guest).wait(300)
    assert caught.value.pc == 0x200 and guest.interrupted == [101.0] and not guest.resumed


def test_one_that_hangs_later_is_noticed_later(clock: list[float]) -> None:
    guest = Scripted(clock, [[BUSY], [BUSY], [STUCK]])
    with pytest.raises(NothingRuns):
        watch(guest).wait(300)
    assert guest.interrupted == [101.0, 102.0, 104.0] and guest.resumed == 2


@pytest.mark.parametrize("others", [[BUSY], [ALIVE]])
def test_another_cpu_may_yet_do_something(clock: list[float], others: list[CpuState]) -> None:
    guest = Scripted(clock, [[STUCK, *others]] * 20)
    with pytest.raises(TargetTimeout, match="not within 50 s"):
        watch(guest).wait(50)


def test_a_kernel_is_left_alone_once_it_has_tables(clock: list[float]) -> None:
    guest = Scripted(clock, [[ALIVE]], ends=900.0)
    found = watch(guest)
    assert found.wait(2000) == HIT
    assert guest.interrupted == [101.0] and guest.resumed == 1
    guest.now = [ALIVE]
    found.before_run()
    guest.now, guest.ends = [STUCK], 5000.0
    assert found.wait(9000) == HIT and guest.interrupted == [101.0]


def test_what_a_look_shows_may_end_the_run(clock: list[float]) -> None:
    guest = Scripted(clock, [[ALIVE]])
    guest.last = LOOK
    assert watch(guest).wait(300) is LOOK and guest.resumed == 0


def test_who_is_never_looked_at(clock: list[float]) -> None:
    guest = Scripted(clock, [], ends=900.0)
    assert watch(guest, armed=False).wait(2000) == HIT
    quick = Scripted(clock, [], ends=clock[0] + 0.5)
    assert watch(quick).wait(2000) == HIT
    assert guest.interrupted == quick.interrupted == []


def test_short_waits_add_up(clock: list[float]) -> None:
    guest = Scripted(clock, [[STUCK]])
    found = watch(guest)
    with pytest.raises(NothingRuns):
        for _ in range(40):
            with pytest.raises(TargetTimeout):
                found.wait(0.05)
            guest.tell("stopped")
            guest.resume()
    assert 100.9 < guest.interrupted[0] < 101.2


def test_another_stop_that_comes_at_the_same_time_counts(clock: list[float]) -> None:
    guest = Scripted(clock, [[STUCK]])
    guest.answer = HIT
    assert watch(guest).wait(300) == HIT and not guest.resumed


def test_steps_are_not_looked_into(clock: list[float]) -> None:
    """What GDB runs by a command of its own would just run on after a look."""
    guest = Scripted(clock, [], ends=900.0)
    found = watch(guest)
    guest.tell("stopped")
    guest.tell("running")
    assert found.wait(2000) == HIT and guest.interrupted == []
