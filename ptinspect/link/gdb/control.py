"""Make the guest run and stop, and know which of the two it does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from ptinspect.errors import TargetLost, TargetRunning, TargetTimeout
from ptinspect.link.gdb.breakpoints import insert_breakpoint, insert_watchpoint, list_breakpoints
from ptinspect.link.gdb.hardware import HardwareSlots
from ptinspect.link.gdb.mi import GdbLink
from ptinspect.link.gdb.slots import Purpose, Usage, fitting
from ptinspect.link.state import Breakpoint, Listener, Refused, RunState, RunTracker, StopInfo

SECONDS = 10.0
"""How long a small command may take."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.3
"""How long a request to stop is given before it is repeated, seconds."""
STOP_SECONDS = 5.0
"""How long the guest may take to stop where the caller gives no time."""


class RunControl:
    """The part of a session that is about running and stopping; see Session."""

    def __init__(self, gdb: GdbLink, tracker: RunTracker, slots: HardwareSlots) -> None:
        """Control the guest that `gdb` is connected to; `tracker` gets its events."""
        self._gdb = gdb
        self._tracker = tracker
        self.slots = slots
        self._left = False

    @property
    def state(self) -> RunState:
        return RunState.DEAD if self._left else self._tracker.state

    @property
    def stop_token(self) -> int:
        return self._tracker.token

    @property
    def stop(self) -> StopInfo:
        return self._tracker.stop

    def on_event(self, listener: Listener) -> None:
        self._tracker.listeners.append(listener)

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        self._need_alive()
        return list_breakpoints(self._gdb)

    def set_breakpoint(
        self,
        address: int,
        *,
        hardware: bool = True,
        temporary: bool = False,
        cpu: int | None = None,
        condition: str | None = None,
        purpose: Purpose = Purpose.USER,
    ) -> Breakpoint:
        self._need_stopped()
        self.slots.claim([address])
        found = insert_breakpoint(
            self._gdb,
            address,
            hardware=hardware or self.slots.limited,
            temporary=temporary,
            cpu=cpu,
            condition=condition,
        )
        self.slots.note(found.id, purpose)
        return found

    def watch_access(self, address: int, length: int, purpose: Purpose = Purpose.USER) -> int:
        self._need_stopped()
        self.slots.claim_watch(address, length)
        number = insert_watchpoint(self._gdb, address, length)
        self.slots.note(number, purpose)
        return number

    def slots_used(self) -> Usage | None:
        self._need_stopped()
        return self.slots.usage()

    def delete_breakpoint(self, number: int) -> None:
        self._need_stopped()
        self._gdb.request(f"-break-delete {number}", SECONDS)

    def resume(self) -> None:
        self._need_stopped()
        self._gdb.request("-exec-continue", SECONDS)

    def wait_stop(self, timeout: float) -> StopInfo:
        try:
            return self._tracker.wait(timeout)
        except Refused as error:
            raise (self.slots.refused(error.message) if self.slots.limited else error) from None

    def interrupt(self, timeout: float = STOP_SECONDS) -> StopInfo:
        self._need_alive()
        deadline = time.monotonic() + timeout
        pause = FIRST_PAUSE
        # Repeated, because QEMU drops a request that comes while the guest is stopped at a breakpoint
        # whose condition GDB is about to find false.
        while self.state is RunState.RUNNING and time.monotonic() < deadline:
            self._gdb.request("-exec-interrupt", timeout, check=False)
            with contextlib.suppress(TargetTimeout):
                return self._tracker.wait(min(pause, max(deadline - time.monotonic(), 0)))
            pause = min(pause * 2, LONGEST_PAUSE)
        if self.state is RunState.RUNNING:
            raise TargetTimeout(f"the guest could not be stopped within {timeout:g} s", "QEMU may hang")
        return self._tracker.wait(0)

    def step_instructions(self, count: int, cpu: int) -> StopInfo:
        self._need_stopped()
        self._gdb.request(f"-exec-step-instruction --thread {cpu + 1} {count}", SECONDS)
        return self._stop_in_time(SECONDS + count / 100)

    def run_until(
        self,
        addresses: Sequence[int],
        timeout: float,
        *,
        purpose: Purpose = Purpose.USER,
        needed: int | None = None,
    ) -> StopInfo:
        self._need_stopped()
        known = {b.address for b in self.breakpoints if b.cpu is None and not b.condition}
        wanted = [a for a in dict.fromkeys(addresses) if a not in known]
        musts = wanted if needed is None else [a for a in addresses[:needed] if a not in known]
        self.slots.claim(musts)
        chosen, _ = fitting([*musts, *wanted], self.slots.free("breakpoint"))
        numbers = [self.set_breakpoint(a, temporary=True, purpose=purpose).id for a in chosen]
        try:
            self.resume()
            return self._stop_in_time(timeout)
        finally:
            if self.state is RunState.STOPPED:
                left = {b.id for b in self.breakpoints}
                for number in numbers:
                    if number in left:
                        self.delete_breakpoint(number)

    def _stop_in_time(self, timeout: float) -> StopInfo:
        try:
            return self.wait_stop(timeout)
        except TargetTimeout as error:
            self.interrupt()
            raise TargetTimeout(error.message, "the guest was stopped where it is") from error
        except KeyboardInterrupt:
            self.interrupt()
            raise

    def cancel(self) -> None:
        if self.state is RunState.RUNNING:
            self._gdb.post("-exec-interrupt")
        elif self.state is RunState.STOPPED and self._gdb.busy:
            self._gdb.cancel()

    def _aftermath(self) -> str:
        """Return what became of the guest when the session was lost; empty where nothing was done."""
        return ""

    def _need_alive(self) -> None:
        if self._left:
            raise TargetLost("the session was left already")
        if self._tracker.state is RunState.DEAD:
            after = "; ".join(filter(None, (self._tracker.why_dead, self._aftermath())))
            raise TargetLost(f"the session is over: {after}", "attach or launch again")

    def _need_stopped(self) -> None:
        self._need_alive()
        if self._tracker.state is RunState.RUNNING:
            raise TargetRunning("the guest is running", "interrupt stops it")
