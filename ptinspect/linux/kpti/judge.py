"""Where a live guest stands with respect to the rewrite: code, registers, flag, tables, hints."""

from __future__ import annotations

import dataclasses
import re

from ptinspect.arch.bits import bits
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError, KernelFileError, MemoryReadError, PtinspectError
from ptinspect.linux.kpti.code import ENTRY, KptiCode, recognise, recognise_code
from ptinspect.linux.kpti.decision import decision
from ptinspect.linux.kpti.position import agrees, leaves_marks, position
from ptinspect.linux.kpti.state import MOSTLY, KptiState, State, state_from_tables
from ptinspect.linux.view import GuestView
from ptinspect.snapshot.model import Snapshot

INIT_FUNCTIONS = ("start_kernel", "_sinittext")
"""Code of the init section, unmapped by free_initmem() at the end of the boot (init/main.c)."""
MAX_COMMAND_LINE = 2048
_OPTIONS = re.compile(r"\b(?:nokaslr|kpti=\S+|mitigations=\S+)")


def kpti_state(view: GuestView, snapshot: Snapshot) -> KptiState:
    """Judge where the guest stands, from all that can be seen of it at this stop.

    `snapshot` holds the tables under `view.swapper()`. In order of weight: the program counter of the
    boot CPU inside the function, the flag that the rewrite clears as its last step, the marks in the
    tables, and, for why there was no rewrite, the kernel's variables and the CPU's registers. Raises
    TargetError if the link to the guest failed.
    """
    state = dataclasses.replace(state_from_tables(snapshot), decision=decision(view))
    code = running_code(view)
    if code is None:
        return _refined(view, state, None)
    state = dataclasses.replace(state, algorithm=code.algorithm)
    boot, flag = boot_cpu(view, code), flag_value(view, code)
    if boot is not None or flag == 0:  # up to 6.6 the rewrite comes before the patches
        state = dataclasses.replace(state, decision="on")
    if boot is not None:
        return _inside(view, code, snapshot, state, boot)
    return _refined(view, state, flag, code)


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


def flag_value(view: GuestView, code: KptiCode) -> int | None:
    """Read the flag: 1 before, the number of CPUs that are ready meanwhile, 0 at the end; None unknown."""
    if code.flag_va is None:
        return None
    try:
        return int.from_bytes(view.memory.read(view.pa_of_link(code.flag_va), 4), "little")
    except (MemoryReadError, GuestError, KernelFileError):
        return None


def _inside(
    view: GuestView, code: KptiCode, snapshot: Snapshot, state: KptiState, boot: CpuState
) -> KptiState:
    """Judge with the boot CPU in the function."""
    offset = boot.pc - view.pa_of_link(code.entry_va)
    where = position(boot, code, view.regime, view.memory)
    place = f"cpu {boot.cpu} is at +{offset:#x} of {ENTRY}"
    if where.phase == "before":
        return _with(state, "before", f"{place}: nothing is written yet")
    if where.phase == "done":
        flushed = "TLB not flushed yet" if offset == code.points["after_writes"] else "on its way out"
        return _with(state, "after", f"{place}: all is written, {flushed}")
    doubts = tuple(agrees(snapshot, code.algorithm, where)) if leaves_marks(code) else ()
    verdict = "; but " + ", and ".join(doubts) if doubts else ", and the marks in the tables agree"
    reason = f"{place}: the walk is in the middle{verdict}; {state.census}"
    return dataclasses.replace(
        state, state="in-progress", reason=reason, frontier=where.frontier, doubts=doubts
    )


def _refined(view: GuestView, state: KptiState, flag: int | None, code: KptiCode | None = None) -> KptiState:
    """Judge with no CPU in the function."""
    c = state.census
    never = "" if flag is None else f" (its flag is {flag})"
    if flag == 0:
        return _with(state, "after", "the rewrite has finished (its flag is 0)")
    untracked = flag is None and code is not None and not leaves_marks(code) and c.ng
    if untracked or (c.marked and flag is None):
        return state
    if c.marked:
        return _with(state, "unknown", f"tables are marked although the rewrite has not finished{never}")
    return _not_begun(view, state, never)


def _not_begun(view: GuestView, state: KptiState, never: str) -> KptiState:
    """Judge where nothing was rewritten: is it still to come?"""
    c, hints = state.census, why_not(view)
    if c.leaves and c.ng >= c.leaves * MOSTLY:
        why = f"mappings are nG from the start, so that nothing is rewritten{never}"
        return _with(state, "not-needed", why, *hints)
    past = past_boot(view)
    if past:
        return _with(state, "not-needed", f"{past}, and nothing was rewritten{never}", *hints)
    if state.decision == "off":
        why = f"the kernel has decided against KPTI and patched its code so{never}"
        return _with(state, "not-needed", why, *hints)
    rest = {
        "on": "the kernel has decided for KPTI",
        "open": "the kernel has not decided yet whether it is needed",
    }.get(state.decision, "it may turn out not to be needed")
    return _with(state, "before", f"the rewrite has not begun{never}; {rest}", *hints)


def _with(state: KptiState, verdict: State, *reasons: str) -> KptiState:
    """Return the state with another verdict, and its reasons in front of the counts."""
    reason = "; ".join([*reasons, str(state.census)])
    return dataclasses.replace(state, state=verdict, reason=reason, frontier=None)


def past_boot(view: GuestView) -> str:
    """Say by what the kernel is known to be past its boot, where CPU features are enabled; else empty."""
    for state in view.states:
        if state.el == 0:
            return f"cpu {state.cpu} runs user code"
    if view.image is None:
        return ""
    for name in INIT_FUNCTIONS:
        if name not in view.image.symbols:
            continue
        try:
            view.pa_of(view.symbol(name))
        except MemoryReadError:
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
    try:
        offset = view.kaslr_offset
    except PtinspectError:
        offset = 0
    if offset and view.image is not None and view.image.linked:
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
