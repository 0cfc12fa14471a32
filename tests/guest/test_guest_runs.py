"""The guest layer without a command: running, guarding, and what a CPU stands at, as values."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeSession, Stop
from stack_guest import KERNEL, StackGuest

from ptinspect.errors import GuestError, OutOfSlots, TargetTimeout, UserError
from ptinspect.guest.expression import address
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.guest.run_control import go_on, run_for, until
from ptinspect.guest.stacks import stack_guard
from ptinspect.guest.stacks.fault import judge, judge_cpu
from ptinspect.guest.stacks.kernel_stacks import depth, open_stacks, task_stacks
from ptinspect.guest.stacks.stack_growth import growths, stacks_of
from ptinspect.guest.stacks.stack_guard import guard
from ptinspect.guest.stacks.stack_trace import Limits, follow


class Small(StackGuest):
    """Two tasks on one CPU, the second of which runs."""

    def __init__(self) -> None:
        super().__init__()
        self.bases = [self.new_stack(), self.new_stack()]
        idle = self.task(0, "swapper/0", self.bases[0])
        self.shell = self.task(7, "sh", self.bases[1], parent=idle)
        self.link_tasks([idle, self.shell])
        state = self.cpu(self.shell, self.bases[1] + 0x3000)
        self.session = FakeSession(self.tree.memory, cpus=[state])

    def guest(self) -> Guest:
        session: Any = self.session
        made = Guest(session=session)
        made._kernel = self.image  # type: ignore[assignment]

        def view() -> Any:
            found = self.view(*self.session.cpus)
            found.placed = True
            return found

        made._look_at_kernel = view  # type: ignore[method-assign]
        return made


@pytest.fixture
def small() -> Small:
    return Small()


def test_until_takes_numbers_and_expressions(small: Small) -> None:
    found = until(small.guest(), [KERNEL + 8, address(f"{KERNEL:#x}+4")], 1)
    assert found.reached and list(found.addresses) == [KERNEL + 8, KERNEL + 4]
    small.session.run_until = lambda *_, **__: Stop(pc=KERNEL)  # type: ignore[method-assign]
    assert not until(small.guest(), [KERNEL + 8], 1).reached


def test_a_run_for_a_time_ends_with_the_guest_stopped(small: Small) -> None:
    guest = small.guest()
    assert run_for(guest, 0.1) is None and guest.state == "stopped"
    small.session.on_wait = lambda: Stop("breakpoint-hit", 0, 3, KERNEL, "")
    stop = run_for(guest, 0.1)
    assert stop is not None and stop.breakpoint == 3

    def press() -> Stop:
        raise KeyboardInterrupt

    small.session.on_wait = press
    with pytest.raises(KeyboardInterrupt):
        run_for(guest, 0.1)
    assert guest.state == "stopped"


def test_nobody_waits_for_a_guest_in_the_background(small: Small) -> None:
    guest = small.guest()
    assert go_on(guest) is None and guest.state == "running"
    with pytest.raises(TargetTimeout):
        go_on(guest, 0.1)
    assert [name for name, *_ in small.session.calls] == ["resume", "wait"]


def test_a_guard_returns_values_and_leaves_nothing(small: Small) -> None:
    small.session.accel = "kvm"
    small.session.gdb_command = lambda line, timeout=0.0: ""  # type: ignore[method-assign]
    found = guard(small.guest(), margin="25%", seconds=0.0)
    assert (found.way, found.quiet, found.margin, found.near) == ("time", True, 0x1000, None)
    assert (found.entry, found.no_probe) == ("breakpoint", "the guest runs under KVM")
    with pytest.raises(UserError, match="no task has PID 99"):
        guard(small.guest(), margin=2048, whose=99, seconds=0.0)


@pytest.mark.parametrize(("look", "share"), [(0.1, 0.85), (1.0, 0.79), (20.0, 0.75)])
def test_a_guard_spends_most_of_the_time_in_the_guest(
    small: Small, monkeypatch: pytest.MonkeyPatch, look: float, share: float
) -> None:
    """Whatever a look costs: over a slow link it may take tens of seconds."""
    now, ran = [0.0], [0.0]

    def run(guest: Guest, seconds: float) -> None:
        now[0] += seconds
        ran[0] += seconds

    def looks(self: object) -> None:
        now[0] += look

    monkeypatch.setattr(stack_guard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(stack_guard, "run_for", run)
    monkeypatch.setattr(stack_guard._Run, "look", looks)
    small.session.gdb_command = lambda line, timeout=0.0: ""  # type: ignore[method-assign]
    found = guard(small.guest(), margin="25%", seconds=1000.0, entry="breakpoint")
    assert found.way == "time" and ran[0] >= share * found.seconds


def test_depths_tasks_and_the_verdict_agree(small: Small) -> None:
    guest = small.guest()
    found = depth(guest)
    assert found.position.stack is not None and found.position.used == 0x1000
    shell = next(row for row in task_stacks(guest).rows if row.task.pid == 7)
    assert (shell.free, shell.how) == (0x3000, "live, cpu 0")
    assert open_stacks(guest) is open_stacks(guest)
    assert judge(guest) == judge_cpu(guest, 0)
    with pytest.raises(UserError, match="no CPU 4"):
        judge_cpu(guest, 4)


@pytest.mark.parametrize("paint", [False, True])
def test_a_stack_that_grew_is_first(small: Small, paint: bool) -> None:
    guest = small.guest()
    low = small.bases[1] + 0x1000

    def run() -> Stop:
        small.put(low, 1)
        raise TargetTimeout("not in time")

    small.session.on_wait = run
    found = growths(guest, stacks_of(guest, "any"), [], 0.1, paint=paint)
    first = found.stacks[0]
    assert (found.ended, first.stack.owner, first.painted) == ("the time is over", "sh (7)", paint)
    assert (first.after.lowest, first.grown) == (low, 0x2000 if paint else 0x3000)
    assert open_stacks(guest).view.read_u64(low - 8) == 0, "no paint is left"


def test_the_guest_is_stopped_when_ctrl_c_comes_while_it_is_being_stopped(small: Small) -> None:
    guest, session = small.guest(), small.session
    stop = session.interrupt

    def press(timeout: float = 5.0) -> Stop:
        session.interrupt = stop  # type: ignore[method-assign]
        raise KeyboardInterrupt

    session.interrupt = press  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_for(guest, 0.1)
    assert guest.state == "stopped"


def test_no_breakpoint_of_samples_is_left_where_there_is_room_for_one_only(small: Small) -> None:
    guest, session = small.guest(), small.session
    put = session.set_breakpoint

    def few(at: int, **options: Any) -> Any:
        if session.breakpoints:
            raise OutOfSlots("too few", "delete 1")
        return put(at, **options)

    session.set_breakpoint = few  # type: ignore[method-assign]
    limits = Limits(cpu=0, places=[KERNEL, KERNEL + 4], steps=1, seconds=0.1, every=0.05)
    with pytest.raises(OutOfSlots):
        follow(guest, limits, "sample")
    assert session.breakpoints == ()


def test_what_is_found_by_the_chosen_cpu_is_found_again_for_another_one(small: Small) -> None:
    guest = small.guest()
    small.session.cpus.append(small.cpu(small.shell, small.bases[1] + 0x3000, number=1))
    first, stacks = guest.view, open_stacks(guest)
    small.session.current_cpu = 1
    assert guest.view is not first and open_stacks(guest) is not stacks
    small.session.current_cpu = 0
    assert guest.view is first and open_stacks(guest) is stacks


def test_only_the_access_itself_ends_the_way_to_it_and_no_watchpoint_is_left(small: Small) -> None:
    session, watched = small.session, [7]
    session.watch_access = lambda *_: 7  # type: ignore[method-assign]
    session.delete_breakpoint = watched.remove  # type: ignore[method-assign]

    def late(addresses: Any, timeout: float, **_: Any) -> Stop:
        session.resume()
        session.interrupt()
        raise TargetTimeout("the guest did not stop in time")

    session.run_until = late  # type: ignore[method-assign]
    runner = Runner.__new__(Runner)
    runner.guest, runner.session, runner.deadline = small.guest(), session, time.monotonic() + 1  # type: ignore[assignment]
    runner.point = lambda _: KERNEL + 0x800  # type: ignore[method-assign]
    with pytest.raises(TargetTimeout):
        runner.run_to_access(0x4000_0000)
    assert not watched and session.state.name == "STOPPED"
    watched.append(7)
    session.run_until = lambda *_, **__: Stop("breakpoint-hit", 0, 3, KERNEL, "")  # type: ignore[method-assign]
    with pytest.raises(GuestError, match=f"stopped at breakpoint 3, {KERNEL:#x} .*in the middle"):
        runner.run_to_access(0x4000_0000)
    watched.append(7)
    session.run_until = lambda *_, **__: Stop("access-watchpoint-trigger", 0, 7, KERNEL, "")  # type: ignore[method-assign]
    runner.run_to_access(0x4000_0000)
    assert not watched
