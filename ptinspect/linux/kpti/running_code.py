"""The rewrite's code in a running kernel: as memory has it, the CPU that is in it, and its flag."""

from __future__ import annotations

from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import KptiCode, recognise, recognise_code
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.memory.source import number_at


def running_code(view: GuestView) -> KptiCode | None:
    """Recognise the rewrite in the running kernel's memory, else in its file; None if it has none.

    Memory comes first: somebody may have patched the function there.
    """
    if view.image is None:
        return None
    try:
        code = recognise(view.image)
    except KernelFileError:
        return None
    try:
        raw = view.memory.read(view.pa_of_link(code.entry_va), code.size)
    except KernelFileError:
        return None  # the file is another kernel's
    except GuestError:
        return code
    try:
        return recognise_code(raw, code.entry_va)
    except KernelFileError:
        return code


def boot_cpu(view: GuestView, code: KptiCode) -> CpuState | None:
    """Return the registers of the CPU that does the rewrite; None if none is in the function.

    The others are in it too, where they wait. Up to the branch that parts them, w0 is the number
    that tells: 0 on the boot CPU.
    """
    try:
        entry = view.pa_of_link(code.entry_va)
    except (GuestError, KernelFileError):
        return None
    for state in view.states:
        if code.contains(state.pc, entry) and not code.secondary(state.pc, entry):
            parted = state.pc - entry > code.points.get("parting", 0)
            if parted or not state.x[0] & 0xFFFF_FFFF:
                return state
    return None


@dataclass(frozen=True)
class Flag:
    """The flag through which the CPUs wait for each other.

    While they gather it counts them; the boot CPU clears it as its last step. The kernel's file tells
    what it is before: 1 (`__idmap_kpti_flag`), or 0 where one flag serves the splitting of the linear map too
    (`idmap_kpti_bbml2_flag` in arch/arm64/mm/mmu.c, from 6.18 on; later `idmap_kpti_bbml3_flag`): the
    kernel sets that to 1 just before it is used, so that 0 may be its first value or its last.
    """

    value: int | None
    """What it holds; None if it could not be read."""
    initial: int | None
    """What it holds in the kernel's file; None if that does not tell."""

    @property
    def finished(self) -> bool:
        """True if it proves that the rewrite has ended."""
        return self.value == 0 and self.initial not in (0, None)

    @property
    def untouched(self) -> bool:
        """True if it proves that the boot CPU has not got to its end: it is not cleared, and was not 0."""
        return self.value is not None and self.value == self.initial != 0

    def __str__(self) -> str:
        """Write it as a remark in brackets; nothing if it is not known."""
        if self.value is None:
            return ""
        both = ", as it is before the rewrite and after it" if not self.value and not self.finished else ""
        return f" (its flag is {self.value}{both})"


def flag_of(view: GuestView, code: KptiCode) -> Flag:
    """Read the flag in memory and in the kernel's file."""
    if code.flag_va is None:
        return Flag(None, None)
    try:
        value: int | None = number_at(view.memory, view.pa_of_link(code.flag_va), 4)
    except (GuestError, KernelFileError):
        value = None
    return Flag(value, None if view.image is None else _in_file(view.image, code.flag_va))


def _in_file(image: KernelImage, va: int) -> int | None:
    """Return what a kernel file holds at a link-time address; what it does not store is zero (.bss)."""
    try:
        return int.from_bytes(image.text_at(va, 4), "little")
    except KernelFileError:
        return 0 if image.text_va <= va < image.text_va + image.size else None
