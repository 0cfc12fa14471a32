"""A guest in QEMU, debugged by one GDB over the gdbstub."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import MiError, TargetError, UserError
from ptinspect.link.address import StubAddress
from ptinspect.link.changes import Changes, leave_as_found
from ptinspect.link.connect import Link, connect
from ptinspect.link.gdb.control import SECONDS, RunControl
from ptinspect.link.gdb.hardware import HardwareSlots
from ptinspect.link.gdb.mi import console
from ptinspect.link.gdb.passthrough import check_gdb_command, check_monitor_command
from ptinspect.link.journal import Journal, attaching, place
from ptinspect.link.lanes.lane import Lane, LaneError
from ptinspect.link.lanes.lanes import LaneMemory, Open
from ptinspect.link.lanes.stubmem import StubMemory
from ptinspect.link.qemu.listener import listeners
from ptinspect.link.qemu.monitor import Monitor, translated, version_number
from ptinspect.link.session import Capability, Session
from ptinspect.link.state import QEMU_ENDED, RunState
from ptinspect.memory.source import PhysicalMemory, RamBlock

if TYPE_CHECKING:
    from ptinspect.link.lanes.hostmem import HostMemory

DFR0 = ("ID_AA64DFR0_EL1", "ID_AA64DFR0")
"""Names of the register with the number of hardware breakpoints."""
CLI_SECONDS = 120.0
"""How long a command of the user's may take."""


class LiveSession(RunControl):
    """Drive GDB; see Session."""

    def __init__(self, link: Link) -> None:
        """Use `attach`."""
        facts = link.facts
        slots = HardwareSlots(link.process, limited=facts.accel == "kvm", dfr0=self._dfr0)
        super().__init__(link.process, link.tracker, slots)
        self._link = link
        self._states: tuple[int, dict[int, CpuState]] = (-1, {})
        self.address = str(link.address)
        self.was_running = facts.was_running
        self.qemu_version = version_number(facts.version)
        self.gdb_version = link.gdb.version
        self.accel = facts.accel
        self.holds_interrupts = facts.holds_interrupts
        self.capabilities = frozenset(Capability) - ({Capability.PIPELINE} if not link.pipelined else set())
        self.ram: Sequence[RamBlock] = link.ram
        self.cpu_count = link.cpu_count
        self.lanes = LaneMemory(
            StubMemory(link.agent, link.ram, self._need_stopped),
            _lanes(link.address, facts.peer, link.ram, self._ask),
            lambda: self._tracker.token,
            self._need_stopped,
        )
        self.changes = Changes(self, Journal(self.address, place(link.address)).read())
        self.left_behind: tuple[str, ...] = ()
        """What an earlier session had left in the guest, and what became of it."""
        self._looked: tuple[int, bytes] = (-1, b"")
        """The stop at which the CPUs were last examined, and the digest of their state."""
        self._recovery = threading.Lock()
        self._recovered: str | None = None
        self._tracker.listeners.append(self._lost)

    @classmethod
    def attach(
        cls,
        address: str,
        *,
        gdb_path: str | None = None,
        symbol_file: Path | None = None,
        timeout: float = 10.0,
    ) -> Self:
        """Start a GDB and connect it to the stub at `address`; the guest is stopped by that.

        `address`: host:port, :port, or the path of a Unix socket. `symbol_file` is read by GDB, debug
        information and all; without it everything but symbols in `gdb_command` works. Raises UserError
        on an address that makes no sense, ConnectError on everything else that fails.
        """
        where = StubAddress.parse(address)
        with attaching(where, timeout):
            session = cls(connect(where, gdb_path, symbol_file, timeout))
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

    def look(self) -> str:
        if self.state is not RunState.STOPPED or not self._link.pipelined:
            return ""
        digest, ran = self._link.agent.look()
        before, self._looked = self._looked, (self._tracker.token, digest)
        if not ran and (before[0] != self._tracker.token or before[1] == digest):
            return ""
        self._forget()
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
        if cpu not in states:
            states[cpu] = self._link.registers.state(cpu)
        return states[cpu]

    def registers(self, cpu: int) -> Mapping[str, int]:
        self._need_stopped()
        return self._link.registers.all(cpu)

    def _dfr0(self) -> int | None:
        """Read ID_AA64DFR0_EL1; None if the stub does not offer it."""
        found = self._link.registers.named(0, DFR0)
        return next(iter(found.values()), None)

    def write_physical(self, pa: int, data: bytes) -> None:
        self._need_stopped()
        if not any(block.contains(pa, len(data)) for block in self.ram):
            raise UserError(f"pa:{pa:#x}: {len(data)} bytes there are not in RAM")
        try:
            self._link.agent.write(pa, data)
        finally:
            self._tracker.touch()

    def gva2gpa(self, va: int, cpu: int | None = None) -> int | None:
        self.monitor(f"cpu {self.current_cpu if cpu is None else cpu}")
        return translated(self.monitor(f"gva2gpa {va:#x}"))

    # Commands of others

    def monitor(self, command: str) -> str:
        self._need_stopped()
        only_looks = check_monitor_command(command)
        try:
            return console(self._gdb, f"monitor {command}", CLI_SECONDS)
        finally:
            if not only_looks and self.state is RunState.STOPPED:
                self._forget()

    def _ask(self, command: str) -> str:
        """Run a monitor command that only looks, for the lanes; nothing is forgotten."""
        self._need_stopped()
        return console(self._gdb, f"monitor {command}", SECONDS)

    def gdb_command(self, line: str, timeout: float = CLI_SECONDS) -> str:
        self._need_alive()
        check_gdb_command(line)
        try:
            return console(self._gdb, line, timeout)
        finally:
            self._tracker.touch()

    # The end

    def detach(self, resume: bool | None = None) -> None:
        if self._left:
            return
        running = self.was_running if resume is None else resume
        done = False
        try:
            if self._tracker.state is not RunState.DEAD:
                self.interrupt()
                self.changes.undo_all()
                self._gdb.request("-break-delete", SECONDS)
                self._link.agent.leave_physical_mode()
                self._left = True
                self._gdb.expect_end()
                self._gdb.request("-target-detach" if running else "-target-disconnect", SECONDS)
                done = True
        finally:
            self._left = True
            self.lanes.close()
            self._gdb.close()
            self._link.close()
            if not done:
                self._aftermath()

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
        return leave_as_found(
            self._link.address,
            self.was_running,
            lambda resume: LiveSession.attach(self.address, gdb_path=self._link.gdb.path).detach(resume),
        )

    def close(self) -> None:
        with contextlib.suppress(TargetError):
            self.detach()

    def _forget(self) -> None:
        """Forget what was read before: the guest has changed without GDB's doing."""
        self._tracker.touch()
        with contextlib.suppress(MiError):
            self._link.agent.leave_physical_mode()


_: type[Session] = LiveSession


def _lanes(
    address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor
) -> dict[str, Open]:
    """Return the lanes beside the gdbstub, fastest first; `peer` is the process at a Unix socket."""

    def host() -> Lane:
        return _host(address, peer, ram, monitor)

    def saved() -> Lane:
        from ptinspect.link.lanes.pmemsave import SavedMemory

        if not address.path and not listeners(address):
            raise LaneError("QEMU is not known to run on this machine")
        return SavedMemory(ram, monitor)

    return {"host": host, "pmemsave": saved}


def _host(address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor) -> HostMemory:
    from ptinspect.link.lanes.hostmem import HostMemory

    pids = listeners(address) if peer is None else [peer]
    if not pids:
        raise LaneError("no process of this machine is known to serve the gdbstub")
    problem = LaneError("")
    for pid in pids:
        try:
            return HostMemory(pid, ram, monitor)
        except LaneError as error:
            problem = error
    raise problem
