"""Whether the kernel has decided for or against KPTI yet, and what is known of why.

The kernel decides while it enables CPU features, with all CPUs up, and patches its code accordingly
(apply_alternatives_all(), arch/arm64/kernel/alternative.c), once for all; then `all_alternatives_applied`
is 1. Up to 6.6 the rewrite of the tables comes before that (enable_cpu_capabilities()), later right
after it (setup_system_features()). Where KPTI is on, the instruction in ret_to_user that leads past
the trampoline is patched out (alternative_insn in kernel_exit, arch/arm64/kernel/entry.S).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bits
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.memory.source import number_at, read_start
from ptinspect.tables.walk import walk

Decision = Literal["on", "off", "open", "unknown"]
"""KPTI is on; it is off; the kernel has not decided; it is not known."""
PATCHER = "__apply_alternatives_multi_stop"
EXIT = "ret_to_user"
PATCHER_BYTES, EXIT_BYTES = 0x100, 0x400
BACK = 2
"""Instructions from the one that is patched to `msr far_el1`, at most."""
INIT_TEXT = ("_sinittext", "_einittext")
"""Bounds of the init section's code, which free_initmem() unmaps at the end of the boot (init/main.c).
What is before it stays: where that is not mapped either, an entry was lost that holds more than init code."""
MAX_COMMAND_LINE = 2048
_OPTIONS = re.compile(r"\b(?:nokaslr|kpti=\S+|mitigations=\S+)")


def decision(view: GuestView) -> Decision:
    """Return whether the kernel has decided. Raises TargetError if the link to the guest failed."""
    if view.image is None:
        return "unknown"
    try:
        variable, patched = applied_variable(view.image), exit_site(view.image)
        if variable is None or patched is None:
            return "unknown"
        if not number_at(view.memory, view.pa_of_link(variable), 4):
            return "open"
        site, original = patched
        word = number_at(view.memory, view.pa_of_link(site), 4)
    except (GuestError, KernelFileError):
        return "unknown"
    if word == a64.NOP:
        return "on"
    # a branch is the same instruction wherever the code lies
    return "off" if word == original else "unknown"


def applied_variable(image: KernelImage) -> int | None:
    """Return the link-time address of `all_alternatives_applied`; None if the code does not tell.

    The function that patches loads it to wait for it, and again to see that it is 0.
    """
    if PATCHER not in image.symbols:
        return None
    at = image.lookup(PATCHER)
    code = a64.words(image.text_at(at, PATCHER_BYTES))
    if a64.RET in code:
        code = code[: _end(code)]
    built: dict[int, int] = {}
    loads: dict[int, int] = {}
    for i, word in enumerate(code):
        load = a64.load32(word)
        if load is not None and load[1] in built and load[0] in map(a64.zero_branch32, code[i + 1 : i + 3]):
            address = built[load[1]] + load[2]
            loads[address] = loads.get(address, 0) + 1
        _follow(built, code, i, at)
    found = [address for address, times in loads.items() if times > 1]
    return found[0] if len(found) == 1 else None


def _end(code: tuple[int, ...]) -> int:
    """Return where the function ends: after the code that is entered past its return."""
    ret = code.index(a64.RET)
    return next((i for i in range(ret + 1, len(code)) if code[i] == a64.RET), len(code))


def _follow(built: dict[int, int], code: tuple[int, ...], i: int, at: int) -> None:
    """Keep the addresses that `adr`, `adrp` and `add` build; whatever else writes a register forgets it."""
    page, add = a64.address_built(code[i : i + 1], 0, at + 4 * i), a64.add_immediate(code[i])
    written = a64.written(code[i])
    if page is not None:
        built[page[0]] = page[1]
    elif add is not None and add[1] in built:
        built[add[0]] = built[add[1]] + add[2]
    elif written is not None:
        built.pop(written, None)


def exit_site(image: KernelImage) -> tuple[int, int] | None:
    """Return the link-time address of the instruction that KPTI patches out, and the instruction.

    It is the `eret`, or the branch to it, in front of `msr far_el1, Xt`. None if the code is another.
    """
    if EXIT not in image.symbols:
        return None
    at = image.lookup(EXIT)
    code = a64.words(image.text_at(at, EXIT_BYTES))
    for i, word in enumerate(code):
        written = a64.system_write(word)
        if written is not None and written[0] == a64.FAR_EL1:
            for back in range(1, BACK + 1):
                before = code[i - back]
                if before == a64.ERET or a64.branch(before, 0) is not None:
                    return at + 4 * (i - back), before
            return None
    return None


def user_code(states: Iterable[CpuState]) -> str:
    """Return in words which CPU runs user code, as none does during the boot; else empty."""
    return next((f"cpu {state.cpu} runs user code" for state in states if state.el == 0), "")


def past_boot(view: GuestView) -> str:
    """Return by what the kernel is known to be past its boot, where CPU features are enabled; else empty."""
    user = user_code(view.states)
    if user or view.image is None or not view.image.symbols.keys() >= set(INIT_TEXT):
        return user
    first, end = map(view.image.lookup, INIT_TEXT)
    try:
        before, *init = (_mapped(view, link) for link in (first - 1, first, end - 1))
    except (GuestError, KernelFileError):
        return ""
    return "the init code is gone" if before and not any(init) else ""


def _mapped(view: GuestView, link: int) -> bool:
    va = (link + view.kaslr_offset) & MASK64
    return walk(view.memory, va, view.swapper().pa, view.regime).pa is not None


def why_not(view: GuestView) -> list[str]:
    """Return what is known of why a kernel does not rewrite its tables. None of it proves it alone.

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
        return number_at(view.memory, view.pa_of_link(view.image.lookup(name)), size)
    except (GuestError, KernelFileError):
        return None


def _command_line(view: GuestView) -> str:
    pointer = _variable(view, "saved_command_line", 8)
    raw = read_start(view.read_virt, pointer, MAX_COMMAND_LINE) if pointer else b""
    return raw.split(b"\0")[0].decode("ascii", "replace")
