"""What a replay makes GDB do with a session's guest, beside what the session does for its user."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import TargetTimeout
from ptinspect.link.escort import Escort
from ptinspect.link.gdb.agent import Agent
from ptinspect.link.gdb.breakpoints import disabled, rows
from ptinspect.link.gdb.mi import SECONDS, GdbLink
from ptinspect.link.replay_scan import Scan, Scanner, Seen
from ptinspect.link.state import RunTracker, StopInfo


class Stands(Protocol):
    """What is needed of the session."""

    escort: Escort

    @property
    def current_cpu(self) -> int: ...
    def cpu_state(self, cpu: int) -> CpuState: ...
    def interrupt(self) -> StopInfo: ...
    def ask(self, command: str, seconds: float = ...) -> str: ...
    def forget(self) -> None: ...


class Driver:
    """Run the guest with nobody going along, and nothing prepared."""

    def __init__(self, session: Stands, gdb: GdbLink, tracker: RunTracker, agent: Agent) -> None:
        """Nothing is asked yet."""
        self._session, self._gdb, self._tracker, self._agent = session, gdb, tracker, agent
        self.ask, self.forget = session.ask, session.forget
        self._scanner: Scanner | None = None

    def run_on(self) -> None:
        """Let the guest run."""
        self._go("-exec-continue")

    def step_once(self) -> None:
        """Step one instruction."""
        self._go("-exec-step-instruction")
        if self.stop_within(SECONDS) is None:
            raise TargetTimeout("a step of the replay does not end")

    def _go(self, command: str) -> None:
        self._session.escort.rest()
        self._agent.frames(plain=True)
        self._gdb.request(command, SECONDS)

    def scan(self, wanted: Scan) -> Seen:
        """Let the guest run to limits, and note stores on the way."""
        self._session.escort.rest()
        if self._scanner is None:
            self._scanner = Scanner(self._gdb)
        try:
            return self._scanner.run(wanted)
        finally:
            self._tracker.touch()

    def stop_within(self, seconds: float) -> StopInfo | None:
        """Wait until the guest stops; None if it was interrupted after that time."""
        try:
            return self._tracker.wait(seconds)
        except TargetTimeout:
            stop = self._session.interrupt()
            return None if stop.signal == "SIGINT" and stop.breakpoint is None else stop
        except KeyboardInterrupt:
            self._session.interrupt()
            raise

    @property
    def has_breakpoints(self) -> bool:
        """Whether a breakpoint or watchpoint may stop the guest."""
        return any(row.get("enabled") == "y" for row in rows(self._gdb))

    def without_breakpoints(self) -> AbstractContextManager[None]:
        """Return a block in which breakpoints and watchpoints do not stop the guest."""
        self._session.escort.rest()  # its own are set anew when somebody needs them: none stays disabled
        return disabled(self._gdb)

    def stands(self, reason: str, breakpoint: int | None = None) -> StopInfo:
        """Name the reason for which the guest stands where it does."""
        cpu = self._session.current_cpu
        stop = StopInfo(reason, cpu, breakpoint, self._session.cpu_state(cpu).pc, "")
        self._tracker.stop = stop
        return stop
