"""The way to a chosen descriptor of the rewrite: few stops, by the code of real kernels run in miniature."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "linux"))

from kpti_guest import CASES, NOT_TRACKED, Case, Rewrite, rewrite

from ptinspect.errors import GuestError
from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.linux.kpti.position import position
from ptinspect.linux.kpti.progress import Target, by_number, by_percent, left_of, work
from ptinspect.linux.kpti.state import KptiState, state_from_tables


class Session:
    """Run the machine with breakpoints and watchpoints, as QEMU does: past the access that is watched."""

    def __init__(self, guest: Rewrite) -> None:
        self.machine = guest.machine
        self.state = SimpleNamespace(name="STOPPED")
        self.current_cpu = 0
        self.stops = 0
        self._watched: int | None = None
        self._touched = False
        for name in ("load", "store"):
            self._spy(name, getattr(self.machine, name))
        self._steps = self.machine.run()
        next(self._steps)

    def _spy(self, name: str, original: Any) -> None:
        def access(address: int, *more: int) -> Any:
            self._touched |= address == self._watched
            return original(address, *more)

        setattr(self.machine, name, access)

    def watch_access(self, address: int, length: int, purpose: object) -> int:
        assert self._watched is None and length == 8
        self._watched, self._touched = address, False
        return 7

    def delete_breakpoint(self, number: int) -> None:
        assert number == 7
        self._watched = None

    def run_until(self, addresses: Sequence[int], timeout: float, **_: object) -> Any:
        self.stops += 1
        for pc in self._steps:
            if self._touched or pc in addresses:
                number, self._touched = 7 if self._touched else None, False
                return SimpleNamespace(pc=pc, cpu=0, breakpoint=number)
        raise AssertionError("the rewrite is over")


def runner_on(guest: Rewrite, session: Session) -> Runner:
    made = Runner.__new__(Runner)
    made.guest = SimpleNamespace(view=SimpleNamespace(regime=guest.regime), forget_stop=lambda: None)  # type: ignore[assignment]
    made.session, made.code, made.deadline = session, guest.code, time.monotonic() + 3600  # type: ignore[assignment]
    made.physical = lambda va: va  # type: ignore[method-assign]
    made.boot = guest.machine.state  # type: ignore[method-assign]
    return made


def state_of(guest: Rewrite) -> tuple[Any, KptiState]:
    snapshot = guest.tree.snapshot()
    where = position(guest.machine.state(), guest.code, guest.regime, guest.tree.memory)
    words = {"before": "before", "walking": "in-progress", "done": "after"}
    found = state_from_tables(snapshot, guest.code)
    found = dataclasses.replace(found, state=words[where.phase], frontier=where.frontier, position=where)  # type: ignore[arg-type]
    return snapshot, found


def next_store(guest: Rewrite, session: Session, runner: Runner, target: Target) -> int:
    """Go on to the next store of a level, and past it."""
    runner.run_to_store(target.level)
    store = next(level.store for level in guest.code.levels if level.level == target.level)
    assert guest.machine.pc - guest.entry == store
    session.run_until([guest.machine.pc + 4], 0)
    return guest.machine.stores[-1][0]


@pytest.mark.parametrize("case", [*CASES, *NOT_TRACKED], ids=lambda case: case.name)
def test_the_next_store_is_that_of_the_descriptor(case: Case) -> None:
    guest = rewrite(case)
    session = Session(guest)
    runner = runner_on(guest, session)
    total = work(*state_of(guest)).total
    levels = guest.regime.levels

    def targets() -> Any:
        yield by_percent(*state_of(guest), 0, total)
        yield by_percent(*state_of(guest), 30, total)
        for level in (3, 2, 3, 3):
            if left := left_of(*state_of(guest), level):
                yield by_number(*state_of(guest), level, (left + 1) // 2)

    for target in targets():
        before = session.stops
        runner.run_to_load(target)
        assert session.stops - before <= 2 * levels
        assert next_store(guest, session, runner, target) == target.descriptor_pa, target


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_one_that_stands_before_the_store_goes_nowhere(case: Case) -> None:
    guest = rewrite(case)
    session = Session(guest)
    runner = runner_on(guest, session)
    target = by_number(*state_of(guest), 2, 1)
    runner.run_to_load(target)
    runner.run_to_store(2)
    stops = session.stops
    runner.run_to_load(target)
    runner.run_to_store(2)
    assert session.stops == stops and next_store(guest, session, runner, target) == target.descriptor_pa


def test_a_subtree_that_the_walk_steps_over_ends_the_way() -> None:
    """A table that is marked already is not gone into since 6.0."""
    guest = rewrite(CASES[2])
    target = by_number(*state_of(guest), 3, 1)
    guest.tree.xor(target.va, 0, 1 << 11)
    session = Session(guest)
    with pytest.raises(GuestError, match="is not gone into"):
        runner_on(guest, session).run_to_load(target)
