"""A guest that is only a file: its memory and registers as they were."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Never

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import UserError
from ptinspect.link.session import Capability, Session
from ptinspect.link.state import Breakpoint, Listener, RunState, StopInfo
from ptinspect.memory.dumpfile import DumpFile
from ptinspect.memory.source import RamBlock

WHY_NOT = {
    Capability.RUN: "nothing runs there",
    Capability.WRITE: "it is not written to",
    Capability.MONITOR: "there is no QEMU to ask",
    Capability.GDB: "there is no GDB to ask",
    Capability.LANES: "there is one way to its memory",
}
"""Why a file lacks a capability."""


class Missing:
    """Stand in for the members that need a capability; using one raises the reason."""

    def __init__(self, capability: Capability) -> None:
        self._why = WHY_NOT[capability]

    def __get__(self, session: DumpSession, owner: type[DumpSession]) -> Never:
        """Raise UserError."""
        raise UserError(f"{session.address} is a file: {self._why}", "launch or attach for that")


class DumpMemory:
    """The memory in a file, by a name that also says what is not from it."""

    def __init__(self, file: DumpFile, label: str) -> None:
        self.label = label
        self.read, self.read_tables = file.read, file.read_tables


class DumpSession:
    """A stopped guest; see Session. Nothing can be made to run, or written."""

    set_breakpoint = watch_access = delete_breakpoint = slots = Missing(Capability.RUN)
    watch_areas = unwatch_areas = Missing(Capability.RUN)
    reserve_breakpoint = delete_place = alter_place = escort = Missing(Capability.RUN)
    resume = wait_stop = interrupt = step_instructions = run_until = Missing(Capability.RUN)
    write_physical = changes = Missing(Capability.WRITE)
    gva2gpa = monitor = Missing(Capability.MONITOR)
    gdb_command = disassemble = Missing(Capability.GDB)
    lanes = Missing(Capability.LANES)

    was_running = holds_interrupts = False
    qemu_version = gdb_version = accel = ""
    state = RunState.STOPPED
    stop_token = current_cpu = 0
    breakpoints: tuple[Breakpoint, ...] = ()
    places: Mapping[int, int] = MappingProxyType({})
    replay = None

    def __init__(self, file: DumpFile, cpus: Sequence[CpuState], label: str, *, registers: bool) -> None:
        """Take over an open file; `label` names its memory.

        Without `registers`, `cpus` is one CPU of which only the translation registers are known.
        """
        self._file = file
        self._cpus = tuple(cpus)
        self.address = file.label
        self.ram: Sequence[RamBlock] = file.ram
        self.memory = DumpMemory(file, label)
        self.capabilities = frozenset({Capability.REGISTERS} if registers else ())
        self.cpu_count = len(self._cpus)
        self.stop = StopInfo("file", 0, None, self._cpus[0].pc, "")

    def cpu_state(self, cpu: int) -> CpuState:
        """Return the registers of a CPU. Raises UserError if there is none."""
        if not 0 <= cpu < self.cpu_count:
            raise UserError(f"no CPU {cpu}: {self.address} has {self.cpu_count}, numbered from 0")
        return self._cpus[cpu]

    def registers(self, cpu: int, only: Collection[str] = ()) -> Mapping[str, int]:
        """Return every register that is known, or `only` these."""
        state = self.cpu_state(cpu)
        core = {f"x{n}": value for n, value in enumerate(state.x)}
        known = {**core, "sp": state.sp, "pc": state.pc, "cpsr": state.pstate, **state.system}
        return {name: value for name, value in known.items() if not only or name in only}

    def look(self) -> str:
        """Return nothing: nobody else changes the file."""
        return ""

    def notices(self) -> tuple[str, ...]:
        """Return nothing: there is no other way to the memory."""
        return ()

    def slots_used(self) -> None:
        """Return nothing: there are no breakpoints."""

    def on_event(self, listener: Listener) -> None:
        """Do nothing: nothing happens in a file."""

    def cancel(self) -> None:
        """Do nothing: nothing runs."""

    def detach(self, resume: bool | None = None) -> None:
        """Close the file."""
        self._file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_: type[Session] = DumpSession
