"""How a guest stands: the session, QEMU and kernel as a whole, and each of its CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.sysregs import CpuState, mmu_on
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import PtinspectError
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state
from ptinspect.guest.recordings.timeline import Timeline, timeline
from ptinspect.guest.stacks.kernel_stacks import open_stacks


@dataclass(frozen=True)
class Condition:
    """What is known of a guest at a glance; empty strings and None where nothing is known."""

    attached: bool
    address: str = ""
    """The gdbstub."""
    state: str = "none"
    """stopped, running, dead, none."""
    cpus: int = 0
    cpu: int | None = None
    """The chosen CPU."""
    pc: VirtAddr | None = None
    el: int | None = None
    mmu_on: bool | None = None
    reason: str = ""
    """Why it stopped."""
    qemu: str = ""
    gdb: str = ""
    """GDB in use."""
    accel: str = ""
    """kvm, tcg, other; empty if QEMU does not tell."""
    slots: Mapping[str, int] | None = None
    """Hardware breakpoints and watchpoints, used and free; None where they are not limited."""
    memory: str = ""
    """How guest memory is read."""
    kernel: str = ""
    kernel_refused: str = ""
    """Why it is not used; empty if it is, or nobody knows yet."""
    pid: int | None = None
    """Process of the QEMU that was launched here."""
    console: str = ""
    """Its console file."""
    snapshots: Sequence[str] = field(default_factory=list)
    """Names of the snapshots in memory."""
    timeline: Timeline | None = None
    """Where it stands in a recorded run; None if it is in none, or runs."""


@dataclass(frozen=True)
class CpuStack:
    """The stack of a CPU."""

    kind: str
    """task, irq, overflow, user, …"""
    used: int | None
    """Bytes in use; None where there is no stack."""
    size: int | None
    """Bytes in all."""

    def __str__(self) -> str:
        """Write it short: `task 912 of 16384`."""
        return self.kind if self.used is None else f"{self.kind} {self.used} of {self.size}"


@dataclass(frozen=True)
class Cpu:
    """A CPU, its tables, its task and its stack."""

    cpu: int
    pc: VirtAddr
    place: str
    """The same with its symbol."""
    el: int
    mmu_on: bool | None
    """None where the stub does not tell."""
    ttbr1: PhysAddr | None = None
    """Root table of the upper half; None where there is none yet."""
    ttbr1_is: str = ""
    """What that table is: swapper, trampoline, reserved, temporary, init; empty if unknown."""
    task: str = ""
    """Name of the task that runs; empty if unknown."""
    pid: int | None = None
    """Its PID; None if unknown."""
    stack: CpuStack | None = None
    """Which stack SP is on; None if it is not known."""


def condition(guest: Guest, cpu: int | None = None) -> Condition:
    """Return what is known of the guest, and of a CPU. Raises UserError if there is no such CPU."""
    session, qemu = guest.session, guest.qemu
    found = Condition(
        attached=False,
        kernel="" if guest.kernel_path is None else str(guest.kernel_path),
        pid=None if qemu is None else qemu.pid,
        console="" if qemu is None else str(qemu.console),
        snapshots=list(guest.snapshots),
    )
    if session is None:
        return found
    state = guest.state
    found = replace(found, attached=state in ("stopped", "running"), address=session.address, state=state)
    if state == "dead":
        return found
    found = replace(
        found, cpus=session.cpu_count, qemu=session.qemu_version, gdb=session.gdb_version, accel=session.accel
    )
    if state != "stopped":
        return found
    found = replace(found, memory=session.memory.label, timeline=timeline(guest))
    if not guest.has_registers:
        return found
    stands, refused, used = cpu_state(guest, cpu), guest.kernel_refused, session.slots_used()
    return replace(
        found,
        cpu=stands.cpu,
        pc=VirtAddr(stands.pc),
        el=stands.el,
        mmu_on=mmu_on(stands),
        reason=str(session.stop.reason),
        slots=None if used is None else used.as_json(),
        kernel_refused="" if refused is None else refused.message,
    )


def cpus_of(guest: Guest) -> list[Cpu]:
    """Return what is known of every CPU of the stopped guest."""
    return [_cpu(guest, guest.stopped.cpu_state(number)) for number in range(guest.stopped.cpu_count)]


def _cpu(guest: Guest, state: CpuState) -> Cpu:
    from ptinspect.linux.running.tasks import Tasks
    from ptinspect.linux.running.ttbr import upper_root

    found = Cpu(state.cpu, VirtAddr(state.pc), guest.place(state.pc, state=state), state.el, mmu_on(state))
    try:
        view = guest.view
        root, what = upper_root(state, view) or (None, "")
        found = replace(found, ttbr1=None if root is None else PhysAddr(root), ttbr1_is=what)
        task = Tasks(view).current(state)
        if task is not None:
            found = replace(found, task=task.comm, pid=task.pid)
        return replace(found, stack=_stack(guest, state))
    except PtinspectError:
        return found


def _stack(guest: Guest, state: CpuState) -> CpuStack:
    """Return which stack SP is on. Raises GuestError, KernelFileError, UserError."""
    from ptinspect.stack.depth import with_true_sp

    stacks = open_stacks(guest)
    found = stacks.locate(with_true_sp(stacks, state))
    return CpuStack(found.kind, found.used, None if found.stack is None else found.stack.size)
