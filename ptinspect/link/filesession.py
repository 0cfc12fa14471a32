"""A guest that is only a file: its memory and registers as they were, in the place of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import UserError
from ptinspect.link.state import Breakpoint, Listener, RunState, StopInfo
from ptinspect.linux.running.roots import RootFound
from ptinspect.memory.cached import CachedMemory
from ptinspect.memory.dumpfile import DumpFile


class FileMemory(CachedMemory):
    """Remember what was read of the file; there is one lane."""

    def __init__(self, file: DumpFile, label: str) -> None:
        super().__init__(file, lambda: 0)
        self._name = label
        self._file = file

    @property
    def label(self) -> str:
        """Name the file, and what is not from it."""
        return self._name

    def take_notices(self) -> tuple[str, ...]:
        """Return nothing: there is nothing to fall back to."""
        return ()

    def facts(self) -> NoReturn:
        """Raise UserError: there are no lanes."""
        raise UserError(f"{self._file.label} has no lanes")

    def choose(self, name: str) -> None:
        """Raise UserError: there are no lanes."""
        self.facts()


class FileSession:
    """Answer what a session answers about a stopped guest; nothing can be made to run, or written."""

    def __init__(
        self,
        file: DumpFile,
        cpus: Sequence[CpuState],
        label: str,
        root: RootFound,
        *,
        has_registers: bool,
        banner: str = "",
    ) -> None:
        """Take over an open file. `label` names the memory, `root` is the kernel's own table.

        Without registers, `cpus` is one CPU that has the translation registers only. `banner` is what is
        known of the kernel's version.
        """
        self._file = file
        self._cpus = tuple(cpus)
        self.ram = file.ram
        self.memory = FileMemory(file, label)
        self.has_registers = has_registers
        self.banner = banner
        self.known_root = root
        """The kernel's own table, for the view of the kernel."""
        self.address = file.label
        self.current_cpu = 0
        self.cpu_count = len(self._cpus)
        self.state = RunState.STOPPED
        self.stop_token = 0
        self.stop = StopInfo("file", 0, None, self._cpus[0].pc, "")
        self.was_running = False
        self.qemu_version = self.gdb_version = self.accel = ""
        self.holds_interrupts = False
        self.capabilities: frozenset[str] = frozenset()
        self.breakpoints: tuple[Breakpoint, ...] = ()

    def cpu_state(self, cpu: int) -> CpuState:
        """Return the registers of a CPU. Raises UserError if there is none."""
        if not 0 <= cpu < self.cpu_count:
            raise UserError(f"no CPU {cpu}: {self.address} has {self.cpu_count}, numbered from 0")
        return self._cpus[cpu]

    def registers(self, cpu: int) -> Mapping[str, int]:
        """Return every register that is known."""
        state = self.cpu_state(cpu)
        core = {f"x{n}": value for n, value in enumerate(state.x)}
        return {**core, "sp": state.sp, "pc": state.pc, "cpsr": state.pstate, **state.system}

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

    def __getattr__(self, name: str) -> Any:
        """Raise UserError for what a session can do beyond that. Raises AttributeError for other names."""
        if name in CANNOT:
            raise UserError(f"{self.address} is a file: {CANNOT[name]}", "launch or attach for that")
        raise AttributeError(name)


RUN = "nothing runs there"
CANNOT = {
    "set_breakpoint": RUN,
    "watch_access": RUN,
    "delete_breakpoint": RUN,
    "slots": RUN,
    "resume": RUN,
    "wait_stop": RUN,
    "interrupt": RUN,
    "step_instructions": RUN,
    "run_until": RUN,
    "write_physical": "it is not written to",
    "changes": "it is not written to",
    "gva2gpa": "there is no QEMU to ask",
    "monitor": "there is no QEMU to ask",
    "gdb_command": "there is no GDB to ask",
}
"""What a session can do and a file cannot, and why."""
