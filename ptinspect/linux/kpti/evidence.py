"""What a stopped guest shows of the rewrite besides its tables: its code, the CPU in it, the flag, hints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ptinspect.arch.bits import bits
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, KernelFileError, MemoryReadError, PtinspectError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import KptiCode, recognise, recognise_code
from ptinspect.linux.running.view import GuestView

INIT_FUNCTIONS = ("start_kernel", "_sinittext")
"""Code of the init section, unmapped by free_initmem() at the end of the boot (init/main.c)."""
MAX_COMMAND_LINE = 2048
_OPTIONS = re.compile(r"\b(?:nokaslr|kpti=\S+|mitigations=\S+)")


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


# -- the flag -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
    """Hold the flag through which the CPUs wait for each other.

    While they gather it counts them; the boot CPU clears it as its last step. What it is before tells the
    kernel's file: 1 (`__idmap_kpti_flag`), or 0 where one flag serves the splitting of the linear map too
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
        raw = view.memory.read(view.pa_of_link(code.flag_va), 4)
        value: int | None = int.from_bytes(raw, "little")
    except (MemoryReadError, GuestError, KernelFileError):
        value = None
    return Flag(value, None if view.image is None else _in_file(view.image, code.flag_va))


def _in_file(image: KernelImage, va: int) -> int | None:
    """Return what a kernel file holds at a link-time address; what it does not store is zero (.bss)."""
    try:
        return int.from_bytes(image.text_at(va, 4), "little")
    except KernelFileError:
        return 0 if image.text_va <= va < image.text_va + image.size else None


# -- hints --------------------------------------------------------------------------------------


def user_code(states: Iterable[CpuState]) -> str:
    """Say which CPU runs user code, which is after the boot; else empty."""
    return next((f"cpu {state.cpu} runs user code" for state in states if state.el == 0), "")


def past_boot(view: GuestView) -> str:
    """Say by what the kernel is known to be past its boot, where CPU features are enabled; else empty."""
    user = user_code(view.states)
    if user or view.image is None:
        return user
    for name in INIT_FUNCTIONS:
        if name not in view.image.symbols:
            continue
        try:
            view.pa_of(view.symbol(name))
        except (MemoryReadError, KernelFileError):
            return ""
        except GuestError as error:
            return "the init code is gone" if "not mapped" in error.message else ""
        return ""
    return ""


def why_not(view: GuestView) -> list[str]:
    """Say what is known of why a kernel does not rewrite its tables. None of it proves it alone.

    Source: unmap_kernel_at_el0() and kaslr_requires_kpti(), arch/arm64/kernel/cpufeature.c.
    """
    found = []
    if offset := kaslr_offset(view):
        found.append(f"KASLR is on (offset {offset:#x})")
    use_ng = _variable(view, "arm64_use_ng_mappings", 1)
    if use_ng is not None:
        found.append(f"arm64_use_ng_mappings is {'true' if use_ng else 'false'}")
    forced = _variable(view, "__kpti_forced", 4)
    if forced:
        found.append("kpti is forced " + ("off" if forced >> 31 else "on") + " (__kpti_forced)")
    options = _OPTIONS.findall(_command_line(view))
    if options:
        found.append("the command line says " + " ".join(dict.fromkeys(options)))
    for state in view.states[:1]:
        if bits(state.system.get("ID_AA64PFR0_EL1", 0), 63, 60):
            found.append("the CPU declares that it does not need KPTI (ID_AA64PFR0_EL1.CSV3)")
    try:
        if view.regime.e0pd:
            found.append("FEAT_E0PD is in use, so that KASLR alone does not ask for KPTI")
    except GuestError:
        pass
    return found


def kaslr_offset(view: GuestView) -> int | None:
    """Return how far KASLR moved the kernel; None if that is not known."""
    try:
        return view.kaslr_offset if view.image is not None and view.image.linked else None
    except PtinspectError:
        return None


def _variable(view: GuestView, name: str, size: int) -> int | None:
    """Read a variable of the kernel; None if its symbol is not known."""
    if view.image is None or name not in view.image.symbols:
        return None
    try:
        address = view.pa_of_link(view.image.lookup(name))
        return int.from_bytes(view.memory.read(address, size), "little")
    except (GuestError, KernelFileError):
        return None


def _command_line(view: GuestView) -> str:
    pointer = _variable(view, "saved_command_line", 8)
    if not pointer:
        return ""
    try:
        raw = view.read_virt(pointer, 1)
        rest = MAX_COMMAND_LINE
        while rest and b"\0" not in raw:
            part = min(rest, 4096 - (pointer + len(raw)) % 4096)
            raw += view.read_virt(pointer + len(raw), part)
            rest -= part
    except GuestError:
        return ""
    return raw.split(b"\0")[0].decode("ascii", "replace")
