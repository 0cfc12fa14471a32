"""A session whose guest goes from one state to the next, with an escort that serves the stops on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fakes import FakeSession, Stop
from sparse_memory import SparseMemory
from stopped_guest import RAM

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import TargetTimeout


class Scripted(FakeSession):
    """A session that goes from one state to the next whenever the guest is to run, as an escort would."""

    def __init__(self, memory: SparseMemory, states: Sequence[tuple[CpuState, int | None]]) -> None:
        super().__init__(memory, RAM, cpus=[states[0][0]])
        self._states = list(states)
        self.off: tuple[CpuState, ...] = ()
        """CPUs that are never started."""
        self.asked: list[tuple[list[int], float | None]] = []

    def run_until(self, addresses: Sequence[int], timeout: float, **_: object) -> Stop:
        (steward,), on = self.escort.stewards, True
        steward.depart()
        while on:
            self.asked.append(([b.address for b in self.breakpoints], steward.pause))
            self.stop_token += 1
            del self._states[0]
            if not self._states:
                raise TargetTimeout("it runs")
            state, pc = self._states[0]
            state = state if pc is None else replace(state, pc=pc)
            self.cpus = [state, *self.off]
            number = next((b.id for b in self.breakpoints if b.address == pc), None)
            assert (number is None) == (pc is None), "it stops where nobody has asked for it"
            number = self.known_as.get(number or 0, number)
            on = steward.passes(Stop("breakpoint-hit", 0, number, state.pc))
            self.stop = Stop("breakpoint-hit", 0, number, state.pc)
        return self.stop
