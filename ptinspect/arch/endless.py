"""Whether a CPU can ever do anything else than now: proved by its registers and a few instructions.

Source: Arm ARM D1.3 (exception entry, vectors, masking), D1.3.6 (routing of interrupts).
"""

from __future__ import annotations

from collections.abc import Callable

from ptinspect.arch import a64
from ptinspect.arch.bits import bit
from ptinspect.arch.esr import decode_esr
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.errors import GuestError

VECTORS = {0: 0x000, 1: 0x200}
"""Offset of the vector for a synchronous exception from the same level, by PSTATE.SP."""
MASKED = 0x1C0
"""PSTATE.A, I and F: SError, IRQ and FIQ are masked."""
LONGEST_LOOP = 16
"""Instructions of a loop that are looked at."""


def endless(state: CpuState, read: Callable[[int, int], bytes]) -> str:
    """Return what a CPU does for ever; empty if it may do something else.

    `read` reads memory at the program counter (address, length) and raises GuestError. An interrupt, another
    CPU and a debugger are considered; only the memory at the program counter must stay as it is.
    """
    if (esr := faults_at_its_vector(state)) is not None:
        return f"takes an exception at its own exception vector {state.pc:#x} ({decode_esr(esr).text})"
    if _nothing_interrupts(state) and _loops_idly(state.pc, read):
        return f"waits in a loop at {state.pc:#x} with all interrupts masked"
    return ""


def is_off(state: CpuState) -> bool:
    """Tell whether a CPU has never run since reset, as those that nobody has started (PSCI)."""
    return not any((state.pc, state.sp, *state.x, state.system.get(translation_register(state, "VBAR"), 0)))


def has_kernel_tables(state: CpuState) -> bool:
    """Tell whether a CPU translates kernel addresses: a kernel has come as far as its own tables."""
    table = state.system.get(translation_register(state, "TTBR1"), 0)
    return bool(table) and bit(state.system.get(translation_register(state, "SCTLR"), 0), 0)


def faults_at_its_vector(state: CpuState) -> int | None:
    """Return the syndrome if the instruction at a vector faults, and leads to the same vector; else None."""
    if not state.el or bit(state.pstate, 4):
        return None
    names = (f"VBAR_EL{state.el}", f"ELR_EL{state.el}", f"SPSR_EL{state.el}", f"ESR_EL{state.el}")
    vbar, elr, spsr, esr = (state.system.get(name) for name in names)
    if vbar is None or elr is None or spsr is None or esr is None:
        return None
    same_level = spsr >> 2 & 3 == state.el and not bit(spsr, 4)
    vector = (vbar & ~0x7FF) + VECTORS[spsr & 1]
    return esr if same_level and state.pc == elr == vector else None


def _nothing_interrupts(state: CpuState) -> bool:
    """Tell whether interrupts are masked, and none is routed to a level above, where this masks nothing."""
    routed = state.system.get("SCR_EL3", 0) & 0b1110 if state.el < 3 else 0
    if state.el < 2:
        routed |= state.system.get("HCR_EL2", 0) & 0b11_1000
    return state.pstate & MASKED == MASKED and not bit(state.pstate, 4) and not routed


def _loops_idly(pc: int, read: Callable[[int, int], bytes]) -> bool:
    """Tell whether hints (wfe, wfi, nop), barriers and branches lead back to where they began."""
    seen: set[int] = set()
    while pc not in seen:
        seen.add(pc)
        if len(seen) > LONGEST_LOOP:
            return False
        try:
            word = a64.words(read(pc, 4))[0]
        except GuestError:
            return False
        target = a64.branch(word, pc)
        if target is None and not a64.is_hint(word):
            return False
        pc = pc + 4 if target is None else target
    return True
