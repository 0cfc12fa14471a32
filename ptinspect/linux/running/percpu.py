"""The per-CPU variables of the running kernel: where a CPU's copies lie, and the pointers among them."""

from __future__ import annotations

from ptinspect.arch.bits import MASK64
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.entry import EntryCode, RunningKernel, entry_of


def per_cpu_offset(state: CpuState) -> int:
    """Return what to add to a per-CPU symbol's address for one CPU: TPIDR_EL1, TPIDR_EL2 under VHE.

    Source: arch/arm64/include/asm/percpu.h (__my_cpu_offset).
    """
    name = translation_register(state, "TPIDR")
    return state.system.get(name, 0)


def per_cpu_pointer(
    view: RunningKernel, state: CpuState, name: str, entry: EntryCode | None = None
) -> int | None:
    """Return the value of a per-CPU pointer of the kernel's; None if it is not known where it lies."""
    try:
        link = (entry or entry_of(view)).pointers.get(name)
        if link is None and view.image is not None and name in view.image.symbols:
            link = view.image.lookup(name)
        if link is None:
            return None
        return view.read_u64((link + view.kaslr_offset + per_cpu_offset(state)) & MASK64)
    except (GuestError, KernelFileError):
        return None
