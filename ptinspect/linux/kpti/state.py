"""Where a guest or a snapshot stands with respect to the rewrite, and what that is concluded from."""

from __future__ import annotations

from typing import Literal

from ptinspect.analysis.summary import Summary, summarize
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass, replace
from ptinspect.linux.kpti.code import ENTRY, KptiCode
from ptinspect.linux.kpti.decision import Decision, decision, kaslr_offset, past_boot, user_code, why_not
from ptinspect.linux.kpti.marks import Frontier, Reached, algorithm_of, reached
from ptinspect.linux.kpti.position import Position, agrees, position
from ptinspect.linux.kpti.running_code import Flag, boot_cpu, flag_of, running_code
from ptinspect.linux.releases import kaslr_needs_no_rewrite, parse
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.snapshot.coverage import unseen
from ptinspect.snapshot.fact_names import kernel_offset
from ptinspect.snapshot.model import Snapshot

State = Literal["before", "in-progress", "after", "not-needed", "unknown"]
NO_FLAG = Flag(None, None)
MOSTLY = 0.99
"""Share of nG leaves from which a tree counts as finished: what is created later may be global."""
TRAMPOLINE = 5
"""Pages of the trampoline that are global on purpose, at most: they may be the last ones of all."""


@dataclass(frozen=True)
class KptiState:
    """Where a guest stands with respect to the rewrite, and how that is known."""

    state: State
    """before, in-progress, after, not-needed or unknown."""
    reason: str
    """What it was concluded from."""
    counts: Summary
    algorithm: str = ""
    """The order of the walk, where it is known."""
    frontier: Frontier | None = None
    """Where the rewrite stands while it is in progress."""
    decision: Decision = "unknown"
    """Whether the kernel has decided for KPTI, against it, not yet; unknown."""
    doubts: tuple[str, ...] = ()
    """What in the tables contradicts the registers of the walk."""
    unseen: tuple[str, ...] = ()
    """What of the tables was not captured."""
    code: KptiCode | None = None
    """The rewrite as the kernel has it."""
    flag: Flag = NO_FLAG
    """The flag through which the CPUs wait for each other."""
    position: Position | None = None
    """Where the CPU that does the rewrite stands, by its registers; None if none is in it."""
    past: str = ""
    """By what the kernel is known to be past its boot; empty if it is not."""

    @property
    def marks_tables(self) -> bool:
        """True if the code sets bit 11 in tables, as that of all released kernels does."""
        return self.code is None or self.code.tables == "marked"

    @property
    def mostly_ng(self) -> bool:
        """True if there are leaves, and as good as all of them are nG."""
        return mostly_ng(self.counts)


def mostly_ng(counts: Summary) -> bool:
    """Tell whether there are leaves, and as good as all of them are nG."""
    return 0 < counts.leaves * MOSTLY <= counts.leaves_ng


def state_from_tables(snapshot: Snapshot, code: KptiCode | None = None) -> KptiState:
    """Judge from the tables alone, and the code that would have rewritten them if it is known.

    Leaves that are nG although no table is marked were made that way, by a kernel that KASLR moved (Linux
    commit b89d82ef01b3, in v5.0), or up to v5.4 while KPTI was detected (PTE_MAYBE_NG in
    asm/pgtable-prot.h); unless the code leaves no marks. A capture that is cut shows no state: what it
    lacks may be what is left to do.
    """
    counts = summarize(snapshot)
    past = user_code(snapshot.cpus)
    found = KptiState("unknown", counts.marks, counts, unseen=unseen(snapshot), code=code, past=past)
    if not counts.leaves or not snapshot.regime.upper:
        other = "these are tables of the lower half"
        return _with(found, "unknown", "the tables map nothing" if snapshot.regime.upper else other)
    if found.unseen:
        return _with(found, "unknown", *(f"not captured: {part}" for part in found.unseen))
    if not counts.leaves_ng and not counts.table_descriptors_marked:
        return _with(found, "before", "the rewrite has not begun, or is not needed here")
    marks = reached(snapshot, algorithm_of(snapshot, code), tables=found.marks_tables)
    verdict, why = _partly(found, marks, _moved(snapshot))
    return replace(_with(found, verdict, *why), frontier=marks.frontier if verdict == "in-progress" else None)


def _partly(state: KptiState, marks: Reached, moved: bool) -> tuple[State, tuple[str, ...]]:
    """Judge tables in which some descriptors have bit 11, and say why unless the counts do."""
    c = state.counts
    if c.table_descriptors_marked:
        left = c.table_descriptors - c.table_descriptors_marked + c.leaves - c.leaves_ng
        stands = left > TRAMPOLINE and not marks.gaps and not marks.ahead
        return "in-progress" if stands or not state.mostly_ng else "after", ()
    bears = state.code is not None and state.marks_tables
    if state.mostly_ng:
        why = "made nG from the start (KASLR)"
        if bears or (state.code is None and moved):
            then = "the rewrite would have marked the tables too" if bears else "the kernel was moved"
            return "not-needed", (f"{why}: {then}",)
        return "unknown", (f"{why}, or by code that leaves no marks in tables",)
    if not marks.ahead:
        return "in-progress", ()
    if bears:
        return "before", ("the rewrite has not begun: it would have marked tables too",)
    return "unknown", ("leaves past the first that is global are nG, and no table is marked",)


def _moved(snapshot: Snapshot) -> bool:
    """Tell whether a snapshot notes that KASLR moved its kernel, one that rewrites nothing then.

    A kernel file that is linked at 0 leaves it open: the note is then the address at which it ran.
    """
    release = parse(snapshot.meta.kernel)
    offset = kernel_offset(snapshot.meta.extra)
    return release is not None and kaslr_needs_no_rewrite(release) and 0 < offset < 1 << 48


def kpti_state(view: GuestView, snapshot: Snapshot) -> KptiState:
    """Judge where the guest stands, from all that this stop shows of it.

    `snapshot` holds the tables under `view.swapper()`. In order of weight: the program counter of the
    boot CPU inside the function, the flag that the rewrite clears as its last step, the marks in the
    tables, and, for why there was no rewrite, the kernel's variables and the CPU's registers. Raises
    TargetError if the link to the guest failed.
    """
    code = running_code(view)
    state = replace(state_from_tables(snapshot, code), decision=decision(view), past=past_boot(view))
    if code is None:
        return _without_code(view, state)
    boot, flag = boot_cpu(view, code), flag_of(view, code)
    state = replace(state, algorithm=code.algorithm, flag=flag)
    if boot is not None or flag.finished:  # up to 6.6 the rewrite comes before the patches
        state = replace(state, decision="on")
    if boot is not None:
        return _inside(view, code, snapshot, state, boot)
    return _outside(view, code, state)


def _inside(
    view: GuestView, code: KptiCode, snapshot: Snapshot, state: KptiState, boot: CpuState
) -> KptiState:
    """Judge with the boot CPU in the function."""
    offset = boot.pc - view.pa_of_link(code.entry_va)
    where = position(boot, code, view.regime, view.memory)
    state = replace(state, position=where)
    place = f"cpu {boot.cpu} is at +{offset:#x} of {ENTRY}"
    if where.phase == "before":
        return _with(state, "before", f"{place}: nothing is written yet")
    doubts = tuple(agrees(snapshot, code.algorithm, where, tables=state.marks_tables))
    state = replace(state, doubts=doubts)
    but = "; but " + ", and ".join(doubts) if doubts else ""
    if where.phase == "done":
        flushed = "TLB not flushed yet" if offset == code.points["after_writes"] else "on its way out"
        return _with(state, "after", f"{place}: all is written, {flushed}{but}")
    agree = ", and the marks in the tables agree" if state.marks_tables and not state.unseen else ""
    found = _with(state, "in-progress", f"{place}: the walk is in the middle{but or agree}")
    return replace(found, frontier=where.frontier)


def _outside(view: GuestView, code: KptiCode, state: KptiState) -> KptiState:
    """Judge with no CPU in the function."""
    flag, counts = state.flag, state.counts
    if flag.finished:
        return _with(state, "after", "the rewrite has finished (its flag is 0)")
    if counts.table_descriptors_marked:
        return state if flag.value is None else _marked(state, flag)
    if code.tables != "marked" and counts.leaves_ng and not flag.untouched:
        if state.mostly_ng and kaslr_offset(view) == 0:
            return _with(state, "after", f"leaves are nG although KASLR did not move the kernel{flag}")
        if not (state.mostly_ng and kaslr_offset(view)):
            return state
    if state.unseen and not flag.untouched:
        return state
    return _not_begun(view, state)


def _marked(state: KptiState, flag: Flag) -> KptiState:
    """Judge where tables are marked, which only the rewrite does, and its end is not proven."""
    if not flag.value:
        if state.mostly_ng:
            return _with(state, "after", f"tables are marked, as by the rewrite{flag}")
        return _with(state, "unknown", f"tables are marked, and leaves are left that are not nG{flag}")
    if state.state == "in-progress":
        return replace(state, reason=f"no CPU is in the rewrite{flag}; {state.reason}")
    return _with(state, "unknown", f"tables are marked although the rewrite has not finished{flag}")


def _without_code(view: GuestView, state: KptiState) -> KptiState:
    """Judge where the rewrite's code is not known."""
    image = view.image
    if image is not None and image.symbols and ENTRY not in image.symbols and view.placed:
        return _with(state, "not-needed", f"the kernel has no {ENTRY}: it never rewrites its tables")
    if state.counts.table_descriptors_marked or state.counts.leaves_ng or state.unseen:
        return state
    return _not_begun(view, state)


def _not_begun(view: GuestView, state: KptiState) -> KptiState:
    """Judge where nothing was rewritten: is it still to come?"""
    hints, flag = why_not(view), state.flag
    if state.mostly_ng:
        why = f"mappings are nG from the start, so that nothing is rewritten{flag}"
        return _with(state, "not-needed", why, *hints)
    if state.past:
        return _with(state, "not-needed", f"{state.past}, and nothing was rewritten{flag}", *hints)
    if state.decision == "off":
        why = f"the kernel has decided against KPTI and patched its code so{flag}"
        return _with(state, "not-needed", why, *hints)
    rest = {
        "on": "the kernel has decided for KPTI",
        "open": "the kernel has not decided yet whether it is needed",
    }.get(state.decision, "it may turn out not to be needed")
    return _with(state, "before", f"the rewrite has not begun{flag}; {rest}", *hints)


def _with(state: KptiState, verdict: State, *reasons: str) -> KptiState:
    """Return the state with another verdict, and its reasons in front of the counts."""
    reason = "; ".join([*reasons, state.counts.marks])
    return replace(state, state=verdict, reason=reason, frontier=None)
