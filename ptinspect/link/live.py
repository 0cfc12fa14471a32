"""A guest in QEMU, debugged by one GDB over the gdbstub."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import (
    ConnectError,
    MiError,
    TargetError,
    TargetLost,
    TargetRunning,
    TargetTimeout,
    UserError,
)
from ptinspect.link import replay
from ptinspect.link.address import StubAddress
from ptinspect.link.changes import Changes, leave_as_found
from ptinspect.link.connect import Link, clear, connect, heir
from ptinspect.link.escort import FIRST_PAUSE, LONGEST_PAUSE, Escort
from ptinspect.link.gdb.breakpoints import (
    HardwareSlots,
    alter,
    insert_breakpoint,
    insert_watchpoint,
    list_breakpoints,
    reserve_number,
    sure_stops,
)
from ptinspect.link.gdb.mi import SECONDS, console
from ptinspect.link.gdb.passthrough import check_gdb_command, check_monitor_command, continues
from ptinspect.link.gdb.slots import Purpose, Usage, dfr0_of, fitting
from ptinspect.link.gdb.starting import Starting
from ptinspect.link.journal import Journal, attaching
from ptinspect.link.lanes.beside import beside
from ptinspect.link.lanes.lanes import LaneMemory
from ptinspect.link.lanes.stubmem import StubMemory
from ptinspect.link.liveness import Liveness
from ptinspect.link.qemu.listener import is_stopped
from ptinspect.link.qemu.monitor import translated, version_number
from ptinspect.link.replay_driver import Driver
from ptinspect.link.session import Capability, Session
from ptinspect.link.state import QEMU_ENDED, Breakpoint, Listener, Manner, Refused, RunState, StopInfo
from ptinspect.memory.source import PhysicalMemory, RamBlock

STOP_SECONDS, SIGNAL_SECONDS = 30.0, 5.0
"""How long the guest may take to stop where the caller gives no time; if a signal has stopped its QEMU."""
CLI_SECONDS = 120.0
"""How long a command of the user's may take."""


class LiveSession:
    """Drive GDB; see Session."""

    notices_that_nothing_runs = True
    """Whether the guest is looked at while somebody waits for it (Liveness)."""

    def __init__(self, link: Link) -> None:
        """Use `attach`."""
        facts = link.facts
        self._link, self._gdb, self._tracker = link, link.process, link.tracker
        self.slots = HardwareSlots(
            link.process, limited=facts.accel == "kvm", dfr0=lambda: dfr0_of(self.registers(0))
        )
        self.watch_areas, self.unwatch_areas = link.agent.watch, link.agent.unwatch
        self._left = False
        self._states: tuple[int, dict[int, CpuState]] = (-1, {})
        self.address = str(link.address)
        self.was_running = facts.was_running
        self.qemu_version = version_number(facts.version)
        self.gdb_version = link.gdb.version
        self.accel = facts.accel
        self.holds_interrupts = link.holds_interrupts
        driver = Driver(self, link.process, link.tracker, link.agent)
        self.replay = replay.Replay(driver, link.recorded) if link.recorded else None
        missing = {Capability.PIPELINE: not link.pipelined, Capability.REVERSE: link.recorded != "replay"}
        missing[Capability.WRITE] = link.recorded is not None
        self.capabilities = frozenset(each for each in Capability if not missing.get(each))
        self.ram: Sequence[RamBlock] = link.ram
        self.cpu_count = link.cpu_count
        self.lanes = LaneMemory(
            StubMemory(link.agent, link.ram, self._need_stopped),
            beside(link.address, facts.peer, link.ram, self.ask),
            lambda: self._tracker.token,
            self._need_stopped,
        )
        self.changes = Changes(self, Journal.of(link.address))
        self.left_behind: tuple[str, ...] = ()
        """What an earlier session had left in the guest, and what became of it."""
        self._looked: tuple[int, bytes] = (-1, b"")
        """The stop at which the CPUs were last examined, and the digest of their state."""
        self._liveness = Liveness(self, link.tracker.wait, armed=self.notices_that_nothing_runs)
        self._recovery = threading.Lock()
        self._recovered: str | None = None
        self._tracker.listeners += [self._lost, self._liveness.event]
        self.escort = Escort(
            self._tracker,
            partial(self._gdb.request, "-exec-continue", SECONDS),
            partial(self._gdb.request, "-exec-interrupt", SECONDS, check=False),
            partial(console, self._gdb),
        )

    @classmethod
    def attach(
        cls,
        address: str,
        *,
        gdb_path: str | None = None,
        symbol_file: Path | None = None,
        starting: Starting | None = None,
        timeout: float = 10.0,
    ) -> Self:
        """Connect a GDB, that which is `starting` or a new one, to the stub at `address`; the guest stops.

        `address`: host:port, :port, or the path of a Unix socket. `symbol_file` is read by GDB, debug
        information and all; without it everything but symbols in `gdb_command` works. Raises UserError
        on an address that makes no sense, ConnectError on everything else that fails.
        """
        where = StubAddress.parse(address)
        try:
            starting = starting or Starting(gdb_path)
        except TargetError as error:
            raise ConnectError(error.message, error.hint) from error
        try:
            clear(where, timeout)
            with attaching(where, timeout):
                session = cls(connect(where, starting, symbol_file, timeout))
        except BaseException:
            starting.end("attaching failed")
            raise
        with contextlib.ExitStack() as undo:
            undo.callback(session.close)
            session.left_behind = tuple(session.changes.left_behind())
            undo.pop_all()
        return session

    @property
    def memory(self) -> PhysicalMemory:
        """The lane in use."""
        return self.lanes

    @property
    def current_cpu(self) -> int:
        """The CPU that stopped, or the one chosen since."""
        return self._tracker.cpu

    @current_cpu.setter
    def current_cpu(self, cpu: int) -> None:
        if not 0 <= cpu < self.cpu_count:
            raise UserError(f"no CPU {cpu}: the guest has {self.cpu_count}, numbered from 0")
        self._need_stopped()
        self._gdb.request(f"-thread-select {cpu + 1}", SECONDS)
        self._tracker.cpu = cpu

    @property
    def state(self) -> RunState:
        if self._left:
            return RunState.DEAD
        found = self._tracker.state
        return RunState.STOPPED if found is RunState.RUNNING and self.escort.inside else found

    @property
    def stop_token(self) -> int:
        return self._tracker.token

    @property
    def stop(self) -> StopInfo:
        return self._tracker.stop

    def on_event(self, listener: Listener) -> None:
        self._tracker.listeners.append(listener)

    def look(self) -> str:
        if self.state is not RunState.STOPPED or not self._link.pipelined:
            return ""
        digest, ran = self._link.agent.look()
        before, self._looked = self._looked, (self._tracker.token, digest)
        if not ran and (before[0] != self._tracker.token or before[1] == digest):
            return ""
        self.forget()
        self._looked = (self._tracker.token, digest)
        how = "was running, and was stopped again" if ran else "is not where it stopped"
        return f"the guest {how}: somebody else uses QEMU's monitor; what was read before is forgotten"

    def notices(self) -> tuple[str, ...]:
        return self.lanes.take_notices()

    # Registers and memory

    def cpu_state(self, cpu: int) -> CpuState:
        self._need_stopped()
        token = self._tracker.token
        if self._states[0] != token:
            self._states = (token, {})
        states = self._states[1]
        if cpu not in states:  # who asks for a second one wants them all
            cpus = [each for each in range(self.cpu_count) if each not in states] if states else [cpu]
            states |= zip(cpus, self._link.registers.states(cpus), strict=True)
        return states[cpu]

    def registers(self, cpu: int, only: Collection[str] = ()) -> Mapping[str, int]:
        self._need_stopped()
        return self._link.registers.all(cpu, only)

    def write_physical(self, *parts: tuple[int, bytes]) -> None:
        self._need_stopped()
        if Capability.WRITE not in self.capabilities:
            raise UserError("memory is not written to: what is recorded must happen by itself")
        for pa, data in parts:
            if not any(block.contains(pa, len(data)) for block in self.ram):
                raise UserError(f"pa:{pa:#x}: {len(data)} bytes there are not in RAM")
        try:
            self._link.agent.write(parts)
        finally:
            self._tracker.touch()

    def gva2gpa(self, va: int, cpu: int | None = None) -> int | None:
        self.monitor(f"cpu {self.current_cpu if cpu is None else cpu}")
        return translated(self.monitor(f"gva2gpa {va:#x}"))

    # Breakpoints

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        self._need_alive()
        return list_breakpoints(self._gdb, self._tracker)

    @property
    def places(self) -> Mapping[int, int]:
        return {b.id: b.hits for b in list_breakpoints(self._gdb)}

    def reserve_breakpoint(self) -> int:
        self._need_stopped()
        return reserve_number(self._gdb)

    def set_breakpoint(
        self,
        address: int,
        *,
        purpose: Purpose = Purpose.USER,
        of: int | None = None,
        inner: bool = False,
        **manner: Unpack[Manner],
    ) -> Breakpoint:
        self._need_stopped()
        if purpose is not Purpose.PLACE:
            self._make_room()
        self.slots.claim([address])
        manner["hardware"] = manner.get("hardware", True) or self.slots.limited
        found = insert_breakpoint(self._gdb, address, **manner)
        self.slots.note(found.id, purpose)
        known_as = None if purpose is Purpose.PLACE else of or found.id
        self._tracker.note_place(found.id, known_as, inner=inner)
        return found

    def _make_room(self) -> None:
        if self.slots.limited and not self.escort.inside:
            self.escort.rest()  # where there are few, it does without until the guest runs

    def watch_access(
        self, address: int, length: int, purpose: Purpose = Purpose.USER, of: int = 0, **how: str
    ) -> int:
        self._need_stopped()
        self.slots.claim_watch(address, length)
        number = insert_watchpoint(self._gdb, address, length, **how)
        self.slots.note(number, purpose)
        self._tracker.note_place(number, of or None, inner=bool(of))
        return number

    def alter_place(self, number: int, **how: Any) -> None:
        self._need_stopped()
        alter(self._gdb, number, **how)

    def slots_used(self) -> Usage | None:
        self._need_stopped()
        return self.slots.usage()

    def delete_breakpoint(self, number: int) -> None:
        for place in self._tracker.places_of(number):
            self.delete_place(place)

    def delete_place(self, number: int) -> None:
        self._need_stopped()
        self._tracker.forget_place(number)
        self._gdb.request(f"-{'ptinspect-unwatch' if number < 0 else 'break-delete'} {number}", SECONDS)

    # Running

    def resume(self) -> None:
        self._need_stopped()
        if self.replay is not None:
            self.replay.forwards()
        self._liveness.before_run()
        self._link.agent.frames(plain=True)
        self.escort.start()

    def wait_stop(self, timeout: float) -> StopInfo:
        try:
            stop = self._liveness.wait(timeout)
        except Refused as error:
            raise (self.slots.refused(error.message) if self.slots.limited else error) from None
        if self.replay is not None:
            stop = self._tracker.stop = self.replay.named(stop)
        return stop

    def interrupt(self, timeout: float = STOP_SECONDS) -> StopInfo:
        self._need_alive()
        limit = timeout if self.replay is None else max(timeout, replay.STOP_SECONDS)
        began, pause = time.monotonic(), FIRST_PAUSE
        self._tracker.asked = True
        # Repeated: QEMU drops a request that comes while GDB is about to find a breakpoint's condition false.
        while self.state is RunState.RUNNING and time.monotonic() < began + limit:
            self._gdb.request("-exec-interrupt", timeout, check=False)
            with contextlib.suppress(TargetTimeout):
                return self._tracker.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            limit = min(limit, SIGNAL_SECONDS) if is_stopped(self._link.address) else limit
        if self.state is RunState.RUNNING:
            raise TargetTimeout(f"the guest could not be stopped within {limit:g} s", "QEMU may hang")
        return self._tracker.wait(0)

    def step_instructions(self, count: int, cpu: int) -> StopInfo:
        self._need_stopped()
        if self.replay is not None and (stop := self.replay.stepped_to_end(count)) is not None:
            return stop
        self.escort.rest()
        self._link.agent.frames(plain=True)
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
        known = sure_stops(self._gdb, self._tracker) if addresses else set()
        wanted = [a for a in dict.fromkeys(addresses) if a not in known]
        musts = wanted if needed is None else [a for a in addresses[:needed] if a not in known]
        self._make_room()
        self.slots.claim(musts)
        chosen, _ = fitting([*musts, *wanted], self.slots.free("breakpoint"))
        numbers: list[int] = []
        try:
            for address in chosen:
                numbers.append(self.set_breakpoint(address, temporary=True, purpose=purpose).id)
            self.resume()
            return self._stop_in_time(timeout)
        finally:
            if numbers and self.state is RunState.STOPPED:
                for number in {b.id for b in self.breakpoints}.intersection(numbers):
                    self.delete_breakpoint(number)

    def _stop_in_time(self, timeout: float) -> StopInfo:
        try:
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
            self._tracker.asked = True
            self._gdb.post("-exec-interrupt")
        elif self.state is RunState.STOPPED and self._gdb.busy:
            self._gdb.cancel()

    # Commands of others

    def monitor(self, command: str) -> str:
        self._need_stopped()
        only_looks = check_monitor_command(command)
        replay = None if only_looks else self.replay
        try:
            with contextlib.nullcontext() if replay is None else replay.disturbed(command):
                return console(self._gdb, f"monitor {command}", CLI_SECONDS)
        finally:
            if not only_looks and self.state is RunState.STOPPED:
                self.forget()

    def ask(self, command: str, seconds: float = SECONDS) -> str:
        """Run a monitor command for the lanes or the replay; nothing is forgotten."""
        self._need_stopped()
        return console(self._gdb, f"monitor {command}", seconds)

    def gdb_command(self, line: str, timeout: float = CLI_SECONDS) -> str:
        self._need_alive()
        check_gdb_command(line)
        if self.state is not RunState.STOPPED:
            return console(self._gdb, line, timeout)
        self._link.agent.frames(plain=False)
        if self.replay is not None:
            self.replay.arm()
        try:
            with self.escort.along(continues(line)):
                return console(self._gdb, line, timeout)
        finally:
            self._tracker.touch()

    def disassemble(self, address: int, code: bytes) -> str:
        self._need_stopped()
        return self._link.agent.disassemble(address, code)

    def detach(self, resume: bool | None = None) -> None:
        if self._left:
            return
        running = self.was_running if resume is None else resume
        done, failed = False, None
        try:
            if self._tracker.state is not RunState.DEAD:
                self.interrupt()
                self.changes.undo_all()
                if self.replay is not None:
                    self.replay.leave()
                self._gdb.request("-break-delete", SECONDS)
                self._link.agent.leave_physical_mode()
                self._left = True
                self._gdb.expect_end()
                self._gdb.request("-target-detach" if running else "-target-disconnect", SECONDS)
                done = True
        except TargetError as error:
            failed = error
            raise
        finally:
            self._left = True
            self.lanes.close()
            self._gdb.close()
            self._link.close()
            if not done:
                after = self._aftermath()
                if failed is not None and after:
                    failed.hint = after

    def _lost(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "lost" and not self._left:
            threading.Thread(target=self._aftermath, name="aftermath", daemon=True).start()

    def _aftermath(self) -> str:
        """Leave the guest as it was found although GDB has ended, once; return what became of it."""
        with self._recovery:
            if self._recovered is None:
                self._recovered = "" if self._tracker.why_dead == QEMU_ENDED else self._leave_without_gdb()
            return self._recovered

    def _leave_without_gdb(self) -> str:
        if is_stopped(self._link.address):
            words, quiet = heir(self._link.address, self.was_running), subprocess.DEVNULL
            subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
            return "the guest is left as it was found when QEMU, which a signal has stopped, continues"
        return leave_as_found(
            self._link.address,
            self.was_running,
            lambda resume: LiveSession.attach(self.address, gdb_path=self._link.gdb.path).detach(resume),
        )

    def close(self) -> None:
        with contextlib.suppress(TargetError):
            self.detach()

    def _need_alive(self) -> None:
        if self._left:
            raise TargetLost("the session was left already")
        if self._tracker.state is RunState.DEAD:
            after = "; ".join(filter(None, (self._tracker.why_dead, self._aftermath())))
            raise TargetLost(f"the session is over: {after}", "attach or launch again")

    def _need_stopped(self) -> None:
        self._need_alive()
        if self.state is RunState.RUNNING:
            raise TargetRunning("the guest is running", "interrupt stops it")

    def forget(self) -> None:
        """Forget what was read before: the guest has changed without GDB's doing."""
        self._tracker.touch()
        with contextlib.suppress(MiError):
            self._link.agent.leave_physical_mode()


_: type[Session] = LiveSession
