"""A session with a gdbstub: look at the guest, make it run and stop, and leave it as it was found."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import MiError, TargetError, UserError
from ptinspect.link.address import StubAddress
from ptinspect.link.changes import Changes, leave_as_found
from ptinspect.link.connect import Link, connect
from ptinspect.link.gdb.control import SECONDS, RunControl
from ptinspect.link.gdb.hardware import HardwareSlots
from ptinspect.link.gdb.mitext import quote
from ptinspect.link.gdb.passthrough import check_gdb_command, check_monitor_command
from ptinspect.link.journal import Journal, attaching, place
from ptinspect.link.lanes.laneerror import LaneError
from ptinspect.link.lanes.lanes import LaneMemory, Open
from ptinspect.link.lanes.stubmem import StubMemory
from ptinspect.link.qemu.peer import listeners
from ptinspect.link.state import QEMU_GONE, Breakpoint, RunState, StopInfo
from ptinspect.memory.source import PhysicalMemory, RamBlock

if TYPE_CHECKING:
    from ptinspect.link.lanes.hostmem import HostMemory

__all__ = ["Breakpoint", "RunState", "Session", "StopInfo"]

DFR0 = ("ID_AA64DFR0_EL1", "ID_AA64DFR0")
"""Names of the register that says how many hardware breakpoints there are."""
CLI_SECONDS = 120.0
"""How long a command of the user's may take."""
Monitor = Callable[[str], str]
"""Runs a command of QEMU's monitor and returns what it prints."""


class Session(RunControl):
    """One GDB connected to one QEMU. All-stop: every CPU stands or every CPU may run.

    Methods may be called from several threads; `cancel` also from a signal handler. Those that need
    a stopped guest raise TargetRunning if it runs; all raise TargetLost when GDB or QEMU has gone.
    """

    def __init__(self, link: Link) -> None:
        """Use `attach`."""
        slots = HardwareSlots(link.process, limited=link.facts.accel == "kvm", dfr0=self._dfr0)
        super().__init__(link.process, link.tracker, slots)
        self._link = link
        self._states: tuple[int, dict[int, CpuState]] = (-1, {})
        self.ram: tuple[RamBlock, ...] = link.ram
        """RAM and ROM of the machine, by address."""
        self.memory = LaneMemory(
            StubMemory(link.agent, self.ram, self._need_stopped),
            _lanes(link.address, link.facts.peer, self.ram, self._ask),
            lambda: self._tracker.token,
            self._need_stopped,
        )
        """Guest-physical memory, by the fastest way that can be trusted."""
        self.cpu_count: int = link.cpu_count
        """CPUs of the machine, powered off ones too."""
        self.changes = Changes(self, Journal(str(link.address), place(link.address)).read())
        """What ptinspect has changed in the guest's memory."""
        self.left_behind: tuple[str, ...] = ()
        """What an earlier session had left in the guest, and what became of it."""
        self._looked: tuple[int, bytes] = (-1, b"")
        """The stop at which all CPUs were looked at last, and the digest of how they stood."""
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
    ) -> Session:
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

    # What it is

    @property
    def address(self) -> str:
        """Where the stub listens."""
        return str(self._link.address)

    @property
    def was_running(self) -> bool:
        """Tell whether the guest ran when the session began (see StubFacts.was_running)."""
        return self._link.facts.was_running

    @property
    def qemu_version(self) -> str:
        """QEMU's version: `7.2.22`; empty if its monitor does not say."""
        found = re.match(r"[0-9.]+", self._link.facts.version)
        return found[0] if found else self._link.facts.version

    @property
    def gdb_version(self) -> str:
        """GDB's version."""
        return self._link.gdb.version

    @property
    def accel(self) -> str:
        """What executes the guest: `kvm`, `tcg`, `other`; empty if QEMU does not say."""
        return self._link.facts.accel

    @property
    def holds_interrupts(self) -> bool:
        """Tell whether the guest takes no interrupt while an instruction is stepped."""
        return self._link.facts.holds_interrupts

    @property
    def capabilities(self) -> frozenset[str]:
        """What the stub offers (words of qqemu.Supported); `pipeline` if physical reads are pipelined."""
        return self._link.facts.features | ({"pipeline"} if self._link.pipelined else set())

    @property
    def current_cpu(self) -> int:
        """The CPU that commands are about: the one that stopped, or the one chosen since."""
        return self._tracker.cpu

    @current_cpu.setter
    def current_cpu(self, cpu: int) -> None:
        if not 0 <= cpu < self.cpu_count:
            raise UserError(f"no CPU {cpu}: the guest has {self.cpu_count}, numbered from 0")
        self._need_stopped()
        self._gdb.request(f"-thread-select {cpu + 1}", SECONDS)
        self._tracker.cpu = cpu

    def look(self) -> str:
        """Notice what somebody else did to a guest that ptinspect had stopped; return what to say about it.

        Others can let it run, stop it, reset it or load another state, by QEMU's monitor. What was read
        before is forgotten then.
        """
        if self.state is not RunState.STOPPED or not self._link.pipelined:
            return ""
        digest, ran = self._link.agent.look()
        before, self._looked = self._looked, (self._tracker.token, digest)
        if not ran and (before[0] != self._tracker.token or before[1] == digest):
            return ""
        self._forget()
        self._looked = (self._tracker.token, digest)
        how = "was running, and was stopped again" if ran else "is not where it stood"
        return f"the guest {how}: somebody else uses QEMU's monitor; what was read before is forgotten"

    # Registers and memory

    def cpu_state(self, cpu: int) -> CpuState:
        """Return the registers of a CPU, read once per stop."""
        self._need_stopped()
        token = self._tracker.token
        if self._states[0] != token:
            self._states = (token, {})
        states = self._states[1]
        if cpu not in states:
            states[cpu] = self._link.registers.state(cpu)
        return states[cpu]

    def registers(self, cpu: int) -> Mapping[str, int]:
        """Return every scalar register that the stub offers, under its own name."""
        self._need_stopped()
        return self._link.registers.all(cpu)

    def _dfr0(self) -> int | None:
        """Read ID_AA64DFR0_EL1; None if the stub does not offer it."""
        found = self._link.registers.named(0, DFR0)
        return next(iter(found.values()), None)

    def write_physical(self, pa: int, data: bytes) -> None:
        """Write to RAM at a guest-physical address. Raises UserError outside RAM."""
        self._need_stopped()
        if not any(block.contains(pa, len(data)) for block in self.ram):
            raise UserError(f"pa:{pa:#x}: {len(data)} bytes there are not in RAM")
        try:
            self._link.agent.write(pa, data)
        finally:
            self._tracker.touch()

    def gva2gpa(self, va: int, cpu: int | None = None) -> int | None:
        """Return what QEMU itself translates an address to, on a CPU as it stands; None if unmapped."""
        self.monitor(f"cpu {self.current_cpu if cpu is None else cpu}")
        text = self.monitor(f"gva2gpa {va:#x}")
        found = re.search(r"gpa: (0x[0-9a-f]+|0)", text)
        return int(found[1], 16) if found else None

    # Commands of others

    def monitor(self, command: str) -> str:
        """Run a command of QEMU's monitor and return what it prints. Raises UserError on harmful ones."""
        self._need_stopped()
        only_looks = check_monitor_command(command)
        try:
            return self._gdb.request(
                f"-interpreter-exec console {quote(f'monitor {command}')}", CLI_SECONDS
            ).text
        finally:
            if not only_looks and self.state is RunState.STOPPED:
                self._forget()

    def _ask(self, command: str) -> str:
        """Run a monitor command that only looks, for the lanes; nothing is forgotten."""
        self._need_stopped()
        line = quote(f"monitor {command}")
        return self._gdb.request(f"-interpreter-exec console {line}", SECONDS).text

    def gdb_command(self, line: str, timeout: float = CLI_SECONDS) -> str:
        """Run a command of GDB's own and return what it prints.

        One that makes the guest run returns at once; wait_stop waits. Raises UserError on commands
        that would end the session or QEMU behind its back, MiError with GDB's message.
        """
        self._need_alive()
        check_gdb_command(line)
        try:
            return self._gdb.request(f"-interpreter-exec console {quote(line)}", timeout).text
        finally:
            self._tracker.touch()

    # The end

    def detach(self, resume: bool | None = None) -> None:
        """Leave the guest as it was found, or running or stopped as `resume` says; the session ends.

        No breakpoint and no physical mode stays behind. Raises TargetError if that cannot be assured.
        """
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
            self.memory.close()
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
                self._recovered = "" if self._tracker.why_dead == QEMU_GONE else self._leave_without_gdb()
            return self._recovered

    def _leave_without_gdb(self) -> str:
        return leave_as_found(
            self._link.address,
            self.was_running,
            lambda: Session.attach(self.address, gdb_path=self._link.gdb.path),
        )

    def close(self) -> None:
        """Detach, and end GDB whatever happens; nothing is raised. Safe to call twice."""
        with contextlib.suppress(TargetError):
            self.detach()

    def _forget(self) -> None:
        """Forget what was read before: the guest has changed without GDB's doing."""
        self._tracker.touch()
        with contextlib.suppress(MiError):
            self._link.agent.leave_physical_mode()


def _lanes(
    address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor
) -> dict[str, Open]:
    """Return the lanes beside the gdbstub, fastest first; `peer` is the process behind a Unix socket."""

    def host() -> PhysicalMemory:
        return _host(address, peer, ram, monitor)

    def saved() -> PhysicalMemory:
        from ptinspect.link.lanes.pmemsave import SavedMemory

        if not address.path and not listeners(address):
            raise LaneError("QEMU is not known to run on this machine")
        return SavedMemory(ram, monitor)

    return {"host": host, "pmemsave": saved}


def _host(address: StubAddress, peer: int | None, ram: Sequence[RamBlock], monitor: Monitor) -> HostMemory:
    from ptinspect.link.lanes.hostmem import HostMemory

    pids = listeners(address) if peer is None else [peer]
    if not pids:
        raise LaneError("no process of this machine is known to be behind the gdbstub")
    problem = LaneError("")
    for pid in pids:
        try:
            return HostMemory(pid, ram, monitor)
        except LaneError as error:
            problem = error
    raise problem
