"""Notice early that a guest does nothing: a kernel that its machine cannot run, or no kernel at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ptinspect.arch.endless import endless, has_kernel_tables, is_off
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import NothingRuns, TargetTimeout
from ptinspect.link.escort import Escort
from ptinspect.link.state import StopInfo
from ptinspect.memory.source import PhysicalMemory

FIRST_LOOK = 1.0
"""How long a guest has run in all when it is looked at first, seconds; each time is twice the one before."""


class Watched(Protocol):
    """What is needed of a session."""

    current_cpu: int

    @property
    def cpu_count(self) -> int: ...
    @property
    def memory(self) -> PhysicalMemory: ...
    @property
    def escort(self) -> Escort: ...
    def cpu_state(self, cpu: int) -> CpuState: ...
    def interrupt(self) -> StopInfo: ...
    def resume(self) -> None: ...


class Liveness:
    """Look at a guest while somebody waits for it, until a kernel has its own tables.

    A look stops the guest for some milliseconds, after a second and then ever more rarely. The answer is a
    proof (`arch.endless`): a slow guest, a firmware, one that waits for interrupts are never accused. Steps,
    and runs that a command of GDB's own began, are not looked into: after a look the guest would just run.
    """

    def __init__(self, session: Watched, wait: Callable[[float, float], StopInfo], *, armed: bool) -> None:
        """`wait(seconds, all)` waits for the next stop; without `armed` nobody ever looks."""
        self._session, self._wait, self._armed = session, wait, armed
        self._ran, self._due = 0.0, FIRST_LOOK
        self._resumed = False

    def before_run(self) -> None:
        """Look at the CPU that a guest stopped with, before it runs on: in a kernel, nobody looks again."""
        if self._armed:
            self._armed = not has_kernel_tables(self._session.cpu_state(self._session.current_cpu))
        self._resumed = True

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Take an event of the session."""
        if name not in ("running", "waiting"):
            self._resumed = False

    def wait(self, timeout: float) -> StopInfo:
        """Wait until the guest stops. Raises TargetTimeout, and NothingRuns: it is stopped then."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            looks = self._armed and self._resumed and self._due - self._ran < left
            began = time.monotonic()
            try:
                return self._wait(max(self._due - self._ran, 0.0) if looks else left, timeout)
            except TargetTimeout:
                if not looks:
                    raise
            finally:
                self._ran += time.monotonic() - began
            self._due = 2 * max(self._due, self._ran)
            stop = self._session.interrupt()
            if stop.signal != "SIGINT" or stop.breakpoint is not None:
                return stop
            self._judge()
            if not self._session.escort.passes(stop):  # by what is seen now, as at a stop of his own
                return stop
            self._session.resume()

    def _judge(self) -> None:
        """Raise NothingRuns if no CPU will ever do anything."""
        states = [self._session.cpu_state(cpu) for cpu in range(self._session.cpu_count)]
        self._armed = not any(map(has_kernel_tables, states))
        found = [state for state in states if not is_off(state)] if self._armed else []
        why = [endless(state, self._session.memory.read) for state in found]
        if found and all(why):
            raise NothingRuns(found[0].pc, f"nothing runs: cpu {found[0].cpu} {why[0]}, for ever")
