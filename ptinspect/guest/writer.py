"""Which instruction wrote, on which CPU, for which task, and who called it."""

from __future__ import annotations

from contextlib import suppress

from ptinspect.arch.a64 import words
from ptinspect.arch.bits import PhysAddr, bit
from ptinspect.arch.regime import regime_from_registers, root_pa
from ptinspect.arch.sysregs import CpuState, current_regime, mmu_on
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import PtinspectError
from ptinspect.guest.guest import Guest
from ptinspect.guest.instructions import instructions
from ptinspect.tables.walk import walk

CALLS = 12
"""Most callers that are named."""


@dataclass(frozen=True)
class Writer:
    """An instruction, and whose it was."""

    pc: int
    """Where it is; a physical address while the MMU is off."""
    place: str
    """The same with its symbol."""
    instruction: str
    """Disassembled; empty where it cannot be read."""
    cpu: int
    el: int
    mmu_on: bool | None
    task: str
    """Name of the task; empty where there is none, or nobody can tell."""
    pid: int | None
    calls: tuple[str, ...]
    """The chain of callers, innermost first."""
    source: str
    """`file:line` of the instruction; empty where there is no debug information of it."""


def writer_at(guest: Guest, state: CpuState, pc: int) -> Writer:
    """Say who executes the instruction at `pc`, which a CPU is about to execute, or has just executed."""
    task, pid = _task(guest, state)
    here = state if pc == state.pc else replace(state, pc=pc)
    return Writer(
        pc,
        guest.place(pc, state=state),
        _instruction(guest, pc),
        state.cpu,
        state.el,
        mmu_on(state),
        task,
        pid,
        _calls(guest, here),
        _source(guest, state, pc),
    )


def translated(guest: Guest, state: CpuState, va: int) -> PhysAddr | None:
    """Return where an address leads on a CPU as it is now; None if it leads nowhere."""
    if mmu_on(state) is False:
        return PhysAddr(va)
    with suppress(PtinspectError):
        regime = regime_from_registers(state, bit(va, 55), current_regime(state))
        return walk(guest.stopped.memory, va, root_pa(state, regime), regime).pa
    return None


def instruction_at(guest: Guest, state: CpuState, pc: int) -> int | None:
    """Return the word of the instruction at an address as a CPU sees it; None if it cannot be read."""
    return word_at(guest, translated(guest, state, pc))


def word_at(guest: Guest, pa: int | None) -> int | None:
    """Return the four bytes of an instruction at a physical address; None if they cannot be read."""
    with suppress(PtinspectError):
        return None if pa is None else words(guest.stopped.memory.read(PhysAddr(pa), 4))[0]
    return None


def _instruction(guest: Guest, pc: int) -> str:
    with suppress(PtinspectError):
        (line, *_), _ = instructions(guest, pc, 1, physical=guest.is_flat(pc))
        return " ".join(line.partition(":")[2].split())
    return ""


def _source(guest: Guest, state: CpuState, pc: int) -> str:
    with suppress(PtinspectError):
        image = guest.view.image
        link = None if image is None else guest.code(state).link(pc)
        return "" if image is None or link is None else image.source_line(link)
    return ""


def _task(guest: Guest, state: CpuState) -> tuple[str, int | None]:
    from ptinspect.linux.running.tasks import Tasks

    with suppress(PtinspectError):
        task = Tasks(guest.view).current(state)
        if task is not None:
            return task.comm, task.pid
    return "", None


def _calls(guest: Guest, state: CpuState) -> tuple[str, ...]:
    from ptinspect.stack.depth import start_of_cpu

    with suppress(PtinspectError):
        found = start_of_cpu(guest.view, state).frames(CALLS)
        frames = [*found.frames[1:], *(() if found.last is None else (found.last,))]
        return tuple(guest.place(f.pc, returns=f.returns) for f in frames if f.kind != "end")
    return ()
