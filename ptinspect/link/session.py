"""What a session can do with its guest, which may be live or only a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Unpack

from ptinspect.arch.sysregs import CpuState
from ptinspect.link.gdb.slots import Purpose, Usage
from ptinspect.link.state import Breakpoint, Listener, Manner, RunState, StopInfo

if TYPE_CHECKING:
    from ptinspect.link.changes import Changes
    from ptinspect.link.escort import Escort
    from ptinspect.link.gdb.breakpoints import HardwareSlots
    from ptinspect.link.lanes.lanes import LaneMemory
    from ptinspect.link.replay import Replay
    from ptinspect.memory.source import PhysicalMemory, RamBlock

__all__ = ["Breakpoint", "Capability", "RunState", "Session", "StopInfo"]


class Capability(StrEnum):
    """Name what one session can do and another cannot; what is missing raises UserError when it is used."""

    REGISTERS = "registers"
    """The general registers of the CPUs are known."""
    RUN = "run"
    """The guest runs, steps and stops at breakpoints."""
    WRITE = "write"
    """Its memory can be changed."""
    MONITOR = "monitor"
    """QEMU's monitor takes commands."""
    GDB = "gdb"
    """GDB takes commands."""
    LANES = "lanes"
    """There are several ways to its memory."""
    REVERSE = "reverse"
    """It goes back too: a recorded run is replayed."""
    PIPELINE = "pipeline"
    """GDB's Python speaks to the gdbstub on GDB's own socket, many requests at a time."""


class Session(Protocol):
    """Examine one guest, make it run and stop, and leave it as it was found.

    All-stop: either no CPU runs, or every CPU may. Methods may be called from several threads; `cancel`
    also from a signal handler. Those that need a stopped guest raise TargetRunning if it runs; all raise
    TargetLost when GDB or QEMU has ended, and UserError where the capability is missing.
    """

    address: str
    """Where the stub listens, or the name of the file."""
    was_running: bool
    """The guest ran when the session began (see StubFacts.was_running)."""
    qemu_version: str
    """QEMU's version: `7.2.22`; empty if it is not known."""
    gdb_version: str
    accel: str
    """What executes the guest: `kvm`, `tcg`, `other`; empty if it is not known."""
    holds_interrupts: bool
    """The guest takes no interrupt while an instruction is stepped: the stub sees to it, or a relay."""
    ram: Sequence[RamBlock]
    """RAM and ROM of the machine, by address."""
    current_cpu: int
    """The CPU that commands are about: the one that stopped, or the one chosen since."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What can be done."""

    @property
    def cpu_count(self) -> int:
        """CPUs of the machine, powered off ones too."""

    @property
    def memory(self) -> PhysicalMemory:
        """Guest-physical memory, by the fastest way that can be trusted."""

    @property
    def lanes(self) -> LaneMemory:
        """The ways to guest-physical memory, and the choice among them."""

    @property
    def replay(self) -> Replay | None:
        """The recorded run that the guest is in, as it is recorded or replayed; None for any other guest."""

    @property
    def changes(self) -> Changes:
        """What ptinspect has changed in the guest's memory."""

    @property
    def state(self) -> RunState:
        """Whether the guest can be examined."""

    @property
    def stop(self) -> StopInfo:
        """The last stop."""

    @property
    def escort(self) -> Escort:
        """Who goes with the guest when it runs, for what has to be done on the way."""

    @property
    def stop_token(self) -> int:
        """A number that changes at every stop, resume and write: the key of whatever is cached."""

    def look(self) -> str:
        """Notice what somebody else did to a guest that ptinspect had stopped; return a sentence about it.

        Others can let it run, stop it, reset it or load another state, by QEMU's monitor. What was read
        before is forgotten then. Empty if nothing happened.
        """

    def notices(self) -> tuple[str, ...]:
        """Return what happened to the lanes since the last call."""

    def on_event(self, listener: Listener) -> None:
        """Have `listener(name, fields)` called, mostly in another thread; see state.Listener."""

    # Registers and memory

    def cpu_state(self, cpu: int) -> CpuState:
        """Return the registers of a CPU, read once per stop."""

    def registers(self, cpu: int, only: Collection[str] = ()) -> Mapping[str, int]:
        """Return every scalar register that is known, or `only` these, under the name that the stub gives."""

    def write_physical(self, *parts: tuple[int, bytes]) -> None:
        """Write to RAM at guest-physical addresses; nothing, and raise UserError, if one is outside RAM."""

    def gva2gpa(self, va: int, cpu: int | None = None) -> int | None:
        """Return what QEMU itself translates an address to, on a CPU as it is now; None if unmapped."""

    # Breakpoints

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """The breakpoints and watchpoints that GDB knows, by number."""

    @property
    def slots(self) -> HardwareSlots:
        """The hardware breakpoints and watchpoints: few under KVM, else without limit."""

    def slots_used(self) -> Usage | None:
        """Return how many of them are in use; None where there is no limit."""

    def set_breakpoint(
        self,
        address: int,
        *,
        purpose: Purpose = Purpose.USER,
        of: int | None = None,
        inner: bool = False,
        **manner: Unpack[Manner],
    ) -> Breakpoint:
        """Stop the guest when a program counter has this value: a physical address if the MMU is off.

        Under KVM it is always one of the CPU's own, since an instruction that is written into the guest must
        be mapped, and shows in the code that others read. Raises OutOfSlots then if none is free.

        `of`: it is one more place of the breakpoint that has this number. `inner`: the escort's steward looks
        at a stop there before anybody else; with the purpose PLACE nobody else ever sees it.
        """

    @property
    def places(self) -> Mapping[int, int]:
        """GDB's numbers of all breakpoints that it has, each for one place, and how often each was hit."""

    def reserve_breakpoint(self) -> int:
        """Return a number for a breakpoint that has no place yet."""

    def delete_place(self, number: int) -> None:
        """Delete what `set_breakpoint` returned, and no other place of the same breakpoint."""

    def watch_access(
        self, address: int, length: int, purpose: Purpose = Purpose.USER, of: int = 0, **how: str
    ) -> int:
        """Stop the guest when it loads or stores here; return a number for `delete_breakpoint`.

        `of`: it is one place of what people know by this number; the escort's stewards look at a stop there
        before anybody else, and find the number returned in `StopInfo.spot`.

        `how`: `access`, `read` for loads alone or `write` for stores that change the value; `type`, a pointer
        type of GDB's, as which the stop tells the values. Unlike a breakpoint it slows down nothing but
        accesses to this page. Raises MiError, and OutOfSlots under KVM if no slot is free or one cannot watch
        exactly these bytes.
        """

    def watch_areas(self, areas: Sequence[tuple[int, int]]) -> list[int]:
        """Stop the guest when it loads or stores in one of these areas (address, bytes); no list has them.

        They are set at one go, for there may be many. Returns a number below 0 for each. Raises MiError.
        """

    def unwatch_areas(self) -> None:
        """Watch the areas of `watch_areas` no more."""

    def alter_place(
        self,
        number: int,
        *,
        enabled: bool | None = None,
        condition: str | None = None,
        ignore: int | None = None,
    ) -> None:
        """Enable or disable a breakpoint of one place, or a watchpoint; give it a condition (GDB's language).

        An empty condition takes the old one away. `ignore`: its next hits, so many, do not stop the guest.
        Raises MiError.
        """

    def delete_breakpoint(self, number: int) -> None:
        """Delete a breakpoint, all its places. Raises MiError if there is none of this number."""

    # Running

    def resume(self) -> None:
        """Let the guest run."""

    def wait_stop(self, timeout: float) -> StopInfo:
        """Wait until the guest stops; at once if it has. Raises TargetTimeout: it runs on then.

        Raises OutOfSlots if it never ran, because the stub refused a breakpoint.
        """

    def interrupt(self, timeout: float = ...) -> StopInfo:
        """Stop the guest. Raises TargetTimeout."""

    def step_instructions(self, count: int, cpu: int) -> StopInfo:
        """Execute `count` instructions on one CPU, about 1000 a second; the others do not run."""

    def run_until(
        self,
        addresses: Sequence[int],
        timeout: float,
        *,
        purpose: Purpose = Purpose.USER,
        needed: int | None = None,
    ) -> StopInfo:
        """Run until a program counter has one of these values, or something else stops the guest.

        The first `needed` addresses (None: all) must have a breakpoint; the others have one while there
        are slots. Raises TargetTimeout; the guest is stopped then. Raises OutOfSlots. No breakpoint is
        left in place.
        """

    def cancel(self) -> None:
        """Stop the guest if it runs, else make GDB give up what it does; for a signal handler."""

    # Commands of others

    def monitor(self, command: str) -> str:
        """Run a command of QEMU's monitor and return what it prints. Raises UserError on harmful ones."""

    def gdb_command(self, line: str, timeout: float = ...) -> str:
        """Run a command of GDB's own and return what it prints.

        One that makes the guest run returns at once; wait_stop waits. Raises UserError on commands
        that would end the session or QEMU without its knowledge, MiError with GDB's message.
        """

    def disassemble(self, address: int, code: bytes) -> str:
        """Return GDB's lines for these bytes as instructions at an address; memory is not read for it.

        Raises MiError if GDB is older than 13.
        """

    # The end

    def detach(self, resume: bool | None = None) -> None:
        """Leave the guest as it was found, or running or stopped by `resume`; the session ends.

        No breakpoint and no physical mode is left in the stub. Raises TargetError if that cannot be assured.
        """

    def close(self) -> None:
        """Detach, and end GDB whatever happens; nothing is raised. Safe to call twice."""
