"""How deep the stack of a CPU is: where SP is, what is used and free, and the frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import regime_from_registers
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, KernelFileError, RegimeError
from ptinspect.linux.image.entry import SLOT, code_length
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.stacks import TABLE, Position, Stack, Stacks
from ptinspect.linux.running.tasks import Task
from ptinspect.stack.kernel_code import KernelCode
from ptinspect.stack.unwind import MAX_FRAMES, Caller, RegsLayout, Unwinder, Unwound


@dataclass(frozen=True)
class Depth:
    """Describe the stack of one CPU, or of a task that sleeps."""

    position: Position
    """Which stack SP is on."""
    end_magic_intact: bool | None
    """Whether the end mark is there; None for stacks without one, and where that memory is another's."""
    unwound: Unwound
    other_stacks: tuple[Stack, ...] = ()
    """Stacks further up the chain, which were left for the one that SP is on."""
    doubt: str = ""
    """Why a missing end mark need not be a destroyed one; empty if it is there, or is destroyed."""
    elsewhere: str = ""
    """Where addresses of the stack lead to memory that is not the stack's; empty if they are not known to."""


def regs_layout(stacks: Stacks) -> RegsLayout:
    """Return where struct pt_regs keeps what. Raises KernelFileError if the kernel has no such type."""
    offset = stacks.view.types.offset
    return RegsLayout(
        stacks.entry.frame_size,
        offset("pt_regs.sp"),
        offset("pt_regs.pc"),
        offset("pt_regs.pstate"),
        offset("pt_regs.stackframe"),
    )


def unwinder(stacks: Stacks, known: list[Stack], read: Callable[[int, int], bytes] | None = None) -> Unwinder:
    """Return an unwinder over these stacks; `read(address, length)` gives memory (default: the guest's)."""
    view, entry = stacks.view, stacks.entry
    offset = view.kaslr_offset
    return Unwinder(
        read or view.read_virt,
        KernelCode(view),
        known,
        regs_layout(stacks),
        vectors=[(base + offset) & MASK64 for base in stacks.vector_tables],
        labels=[label + offset for label in entry.labels],
        bad_stack=None if entry.bad_stack is None else entry.bad_stack + offset,
        va_bits=va_bits(view, view.states[0] if view.states else None),
    )


def va_bits(view: GuestView, state: CpuState | None) -> tuple[int | None, int | None]:
    """Return the VA sizes of the lower and of the upper half; None for one that is not set up."""
    lower = upper = None
    with contextlib.suppress(RegimeError):
        upper = view.regime.va_bits
        lower = None if state is None else regime_from_registers(state, False).va_bits
    return lower, upper


@dataclass(frozen=True)
class Start:
    """Where unwinding a CPU begins, with what is known of its stacks and of the code."""

    unwinder: Unwinder
    """Over the stacks that are known."""
    state: CpuState
    """The registers, with SP as it is meant."""
    elr: int | None = None
    """Where the last exception came from."""
    before: int | None = None
    """What SP was before the exception entry changed to the overflow stack."""

    def frames(self, limit: int = MAX_FRAMES) -> Unwound:
        """Return the frames, the innermost first."""
        return self.unwinder.unwind(*self._registers, elr=self.elr, before=self.before, limit=limit)

    def caller(self) -> Caller | None:
        """Return where the innermost function returns to; None if it is not known, or in user mode."""
        return self.unwinder.caller(*self._registers, elr=self.elr, before=self.before)

    @property
    def _registers(self) -> tuple[int, int, int, int]:
        state = self.state
        return state.pc, state.sp, state.x[29], state.x[30]


def start_of_cpu(view: GuestView, state: CpuState) -> Start:
    """Return where to begin, as far as anything is known: in user code, or early, the records alone count.

    Raises TargetError.
    """
    try:
        stacks = Stacks(view)
        state = with_true_sp(stacks, state)
        position = stacks.locate(state)
        if state.el and position.stack is not None:
            return _start(stacks, state, position)[0]
    except (GuestError, KernelFileError):
        pass
    plain = Unwinder(view.read_virt, KernelCode(view), va_bits=va_bits(view, state))
    return Start(plain, state)


def _start(stacks: Stacks, state: CpuState, position: Position) -> tuple[Start, list[Stack]]:
    """Return where to begin on a stack that is known, and the stacks that the chain may lead over."""
    stack = position.stack
    assert stack is not None
    known = [stack, *stacks.of_cpu(state)]
    if position.task is not None:
        known.append(stacks.of_task(position.task))
    unique = list({(s.base, s.kind): s for s in known}.values())
    before = sp_before_overflow(stacks, state) if stack.kind == "overflow" else None
    elr = state.system.get(translation_register(state, "ELR"))
    return Start(unwinder(stacks, unique), state, elr, before), unique


def sp_before_overflow(stacks: Stacks, state: CpuState) -> int:
    """Return SP as it was before the entry changed to the overflow stack.

    The entry keeps it minus a frame in TPIDR_EL0 (kernel_ventry, entry.S).
    """
    return (state.system.get("TPIDR_EL0", 0) + stacks.entry.frame_size) & MASK64


def depth_of_cpu(stacks: Stacks, state: CpuState, limit: int = MAX_FRAMES) -> Depth:
    """Examine the stack of a CPU. Raises GuestError, KernelFileError or TargetError."""
    state = with_true_sp(stacks, state)
    position = stacks.locate(state)
    stack = position.stack
    magic = None if stack is None else stacks.end_magic(stack)
    if position.kind == "user":
        return Depth(position, magic, Unwound((), "the CPU runs user code", True))
    if stack is None:
        return Depth(position, None, Unwound((), position.note))
    start, unique = _start(stacks, state, position)
    unwound = start.frames(limit)
    used = {frame.stack for frame in unwound.frames}
    others = tuple(s for s in unique if s.kind in used and s.base != stack.base)
    return Depth(position, magic, unwound, others, *_missing_mark(stacks, stack, magic))


def _missing_mark(stacks: Stacks, stack: Stack, magic: bool | None) -> tuple[str, str]:
    """Return `doubt` and `elsewhere` of a Depth: what is known of memory without an end mark."""
    doubt = elsewhere = ""
    if magic is False and not stacks.is_own(stack):
        doubt = "overwritten, or the mapping leads to other memory: which pages are its own is not known"
    found = stacks.misled(stack) if magic is None else None
    if found is not None:
        where = f"{found.address:#x} leads to pa:{found.pa:#x}"
        elsewhere = f"{where}, which is none of the pages that the kernel gave it"
    return doubt, elsewhere


def depth_of_task(stacks: Stacks, task: Task, limit: int = MAX_FRAMES) -> Depth:
    """Examine the stack of a task that runs on no CPU, from what it saved when it was switched away.

    Source: struct cpu_context, arch/arm64/include/asm/processor.h; cpu_switch_to, entry.S.
    """
    view = stacks.view
    stack = stacks.of_task(task)
    offset = view.types.offset
    context = task.address + offset("task_struct.thread.cpu_context")
    x29 = view.read_u64(context + offset("cpu_context.fp"))
    pc = view.read_u64(context + offset("cpu_context.pc"))
    holds = stack.holds_sp(task.saved_sp)
    position = Position(-1, "task" if holds else "none", task.saved_sp, stack, task, True, False)
    found = unwinder(stacks, [stack]).after_call(pc, task.saved_sp, x29, limit=limit)
    magic = stacks.end_magic(stack)
    return Depth(position, magic, found, (), *_missing_mark(stacks, stack, magic))


def with_true_sp(stacks: Stacks, state: CpuState) -> CpuState:
    """Undo what the overflow test of the exception vector does to SP while it has no free register.

    Source: arch/arm64/kernel/entry.S, kernel_ventry: `add sp, sp, x0; sub x0, sp, x0; tbnz …; sub x0,
    sp, x0; sub sp, sp, x0`; where the test fails: `msr tpidr_el0, x0; sub x0, sp, x0; …`.
    """
    try:
        offset = stacks.view.kaslr_offset
    except GuestError:  # the tables are damaged: where the vectors run is not known, and SP is as it is
        return state
    tables = [(table + offset) & MASK64 for table in stacks.vector_tables]
    table = next((table for table in tables if table <= state.pc < table + TABLE), None)
    if table is None or not state.el:
        return state
    start = table + (state.pc - table) // SLOT * SLOT
    words = KernelCode(stacks.view).words(start, SLOT // 4)
    at = (state.pc - start) // 4
    if a64.ADD_SP_X0 not in words or at >= code_length(words):
        return state  # past the vector's own code a debugger may have put some
    first = words.index(a64.ADD_SP_X0)
    tested = a64.bit_branch(words[first + 2], 4 * (first + 2)) if first + 2 < len(words) else None
    failed = len(words) if tested is None else tested[3] // 4
    sp = state.sp
    if at >= failed:
        sp = state.system.get("TPIDR_EL0", state.sp) if at > failed else state.x[0]
    elif at - first in (1, 4):
        sp = (state.sp - state.x[0]) & MASK64
    elif at - first in (2, 3):
        sp = state.x[0]
    return replace(state, sp=sp)
