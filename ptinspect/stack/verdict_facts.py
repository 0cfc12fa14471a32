"""Collect from a stopped guest what a verdict needs."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.esr import decode_esr
from ptinspect.arch.regime import LEVEL_LAST, Regime, root_pa
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import PtinspectError, RegimeError
from ptinspect.linux.image.entry import EL1H, SLOT
from ptinspect.linux.running.stacks import STORES, Stack, Stacks
from ptinspect.linux.stack_range import holding
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.stack.depth import Depth, regs_layout, sp_before_overflow, with_true_sp
from ptinspect.stack.kernel_code import KernelCode
from ptinspect.stack.unwind import FRAME_POINTER, KERNEL_MODES
from ptinspect.stack.verdict import Change, Facts, Gone, path_changes
from ptinspect.tables.walk import Walk, walk

BAD_STACK = ("handle_bad_stack", "panic_bad_stack")
DYING = ("panic", "vpanic", "die", "make_task_dead", *BAD_STACK)
"""Functions that a CPU never returns from into what it died of (kernel/panic.c, arm64 traps.c).

`vpanic` is what panic() and, in 7.x, nmi_panic() end in: an overflow never comes to panic() there.
"""
CALLERS = 4
"""Functions named on the way to a death."""
PAGE = 4096
"""Step in which a stack's mapping is looked at: the smallest page."""


@dataclass(frozen=True)
class Interrupted:
    """Where the exception in question found the CPU."""

    sp: int
    """SP, or what it was before the CPU changed to the overflow stack."""
    pc: int
    """Where the exception came from."""
    x29: int
    """The frame pointer then."""
    stack: Stack | None
    """The task's stack, or the one that SP is on."""
    saved: bool = False
    """True if the kernel stored these on the overflow stack, having found the task's stack used up."""


def collect(stacks: Stacks, state: CpuState, depth: Depth, snapshots: Sequence[Snapshot]) -> Facts:
    """Read the facts of one CPU; `snapshots` with the newest first."""
    state = with_true_sp(stacks, state)
    far = state.system.get(translation_register(state, "FAR"), 0)
    ranges = stacks.entry_ranges
    frames = depth.unwound.frames
    own = None if depth.position.task is None else stacks.of_task(depth.position.task)
    dying = _dying(stacks, depth)
    entering = _handling(stacks, state, ranges)
    at = _interrupted(stacks, state, depth, own, entering=entering, dying=bool(dying))
    stack = at.stack
    kept = [f for f in frames if f.kind == "function" and stack is not None and f.stack == stack.kind]
    unwritten = sum(f.count for f in frames if f.kind == "unwritten")
    in_entry = any(first <= at.pc < end for first, end in ranges) and bool(state.el)
    if at.saved and in_entry and stack is not None and stack.contains(at.x29) and not unwritten:
        unwritten = max(at.x29 - at.sp, 0) // stacks.entry.frame_size
    used = None
    if kept and stack is not None:
        used = stack.top - kept[0].sp
    elif stack is not None and stack.contains(at.x29):
        used = stack.top - at.x29
    walked = _walk(stacks, far)
    looked = own or at.stack  # the task is not known where the map of its task_struct is lost
    gone = None if looked is None else _gone(stacks, state, looked, snapshots, sure=at.saved)
    registers = [translation_register(state, stem) for stem in ("ESR", "FAR")]
    return Facts(
        esr=decode_esr(state.system.get(registers[0], 0)),
        far=far,
        in_entry=in_entry,
        handling=entering or at.saved or (bool(dying) and any(f.kind == "exception" for f in frames)),
        stack=stack,
        sp=at.sp,
        frame_size=stacks.entry.frame_size,
        used_before=used,
        repeated=unwritten,
        frames=len(kept),
        walk=walked,
        changes=_changes(stacks, far, walked, snapshots)[0],
        gone=gone,
        chain=tuple((_name(stacks, f.pc - 4 * f.returns), f.size) for f in kept),
        dying=dying,
        magic=None if stack is None or gone is not None else stacks.end_magic(stack),
        earlier=at.saved and far != at.sp,
        stacks=_nowhere(stacks, state, own, at.sp) if entering and not at.saved else (),
        level=registers[0][4:],
        unwritten=[name for name in registers if name in state.unwritten],
    )


def _interrupted(
    stacks: Stacks, state: CpuState, depth: Depth, own: Stack | None, *, entering: bool, dying: bool
) -> Interrupted:
    """Return where the exception found the CPU; `own` is the task's stack."""
    position, frames = depth.position, depth.unwound.frames
    elr = state.system.get(translation_register(state, "ELR"), 0)
    here = Interrupted(state.sp, elr, state.x[29], own)
    before = sp_before_overflow(stacks, state)
    may = [s for s in (own, *stacks.of_cpu(state)) if s is not None and s.kind != "overflow"]
    off = holding(before, may)
    if position.kind == "overflow" and entering and off is not None:
        return replace(here, sp=before, stack=off)
    if own is not None and (position.kind == "overflow" or any(f.stack == "overflow" for f in frames)):
        return _saved(stacks, state, may) or here
    if position.stack is not None and not dying:
        return replace(here, stack=position.stack, sp=position.sp)
    if own is not None and dying:
        return replace(here, sp=next((f.sp for f in frames if f.stack == own.kind), position.sp))
    return here


def _nowhere(stacks: Stacks, state: CpuState, own: Stack | None, sp: int) -> Sequence[Stack]:
    """Return a CPU's stacks if SP, at the exception entry, is on none of them; else nothing."""
    known = stacks.of_cpu(state)
    if own is None or not {"irq", "overflow"} <= {stack.kind for stack in known}:
        return ()
    return () if holding(sp, (own, *known)) is not None else (own, *known)


def _saved(stacks: Stacks, state: CpuState, may: Sequence[Stack]) -> Interrupted | None:
    """Read struct pt_regs at the top of the overflow stack, where `__bad_stack` puts it (entry.S).

    None if it is not there, or not of an exception on one of the stacks `may`.
    """
    overflow = next((s for s in stacks.of_cpu(state) if s.kind == "overflow"), None)
    if overflow is None:
        return None
    layout = regs_layout(stacks)
    regs = overflow.top - layout.size
    try:
        word = stacks.view.read_u64
        sp, pc, x29 = word(regs + layout.sp), word(regs + layout.pc), word(regs + FRAME_POINTER)
        mode = word(regs + layout.pstate)
    except PtinspectError:
        return None
    fits = not mode >> 32 and mode & 0xF in KERNEL_MODES and bit(pc, 55) and pc % 4 == 0
    off = holding(sp, may)
    return Interrupted(sp, pc, x29, off, saved=True) if fits and off is not None else None


def _name(stacks: Stacks, pc: int) -> str:
    """Name the function at a run-time address."""
    near = KernelCode(stacks.view).nearest(pc)
    return f"{pc:#x}" if near is None else near.symbol


def _dying(stacks: Stacks, depth: Depth) -> tuple[str, ...]:
    """Return the functions from the first one that means a death to the exception, or some callers."""
    names = [
        _name(stacks, f.pc - 4 * f.returns) if f.kind == "function" else ""
        for f in depth.unwound.frames
        if f.kind in ("function", "exception")
    ]
    last = max((i for i, name in enumerate(names) if name in DYING), default=None)
    if last is None:
        return ()
    first = next(i for i, name in enumerate(names) if name in DYING)
    rest = names[last + 1 : last + 1 + CALLERS]
    rest = rest[: rest.index("")] if "" in rest else rest
    return tuple(name for name in (*names[first : last + 1], *rest) if name)


def _handling(stacks: Stacks, state: CpuState, ranges: Sequence[tuple[int, int]]) -> bool:
    """Tell whether the CPU is at the beginning of an exception, or where a bad stack is reported."""
    offset = stacks.view.kaslr_offset
    vectors = [(table + EL1H + offset) & MASK64 for table in stacks.vector_tables]
    if any(low <= state.pc < low + 4 * SLOT for low in vectors):
        return True
    if any(low <= state.pc < high for low, high in ranges):
        return True
    near = KernelCode(stacks.view, state).nearest(state.pc)
    bad = stacks.entry.bad_stack
    at_label = bad is not None and 0 <= state.pc - offset - bad < STORES
    return at_label or (near is not None and near.symbol in BAD_STACK)


def leads_elsewhere(stacks: Stacks, stack: Stack, snapshots: Sequence[Snapshot]) -> str:
    """Return where a stack leads to other memory than in a snapshot, by another table; empty if it does not.

    `snapshots` with the newest first.
    """
    gone = _gone(stacks, None, stack, snapshots)
    if gone is None or gone.pa is None or gone.walk.pa is None:
        return ""
    change = gone.changes[0]
    return (
        f"{gone.address:#x} leads to pa:{gone.walk.pa:#x}, and led to pa:{gone.pa:#x} in snapshot "
        f"{change.snapshot}: the table of level {change.level} is another one"
    )


def _gone(
    stacks: Stacks, state: CpuState | None, own: Stack, snapshots: Sequence[Snapshot], *, sure: bool = False
) -> Gone | None:
    """Find the lowest address of a stack that does not translate, or not to its own memory any more.

    Only while the CPU uses the kernel's own table, or once the kernel has found the stack unusable:
    before paging_init() that table is empty. What led to memory is compared by table descriptors
    alone, because a stack's own page entries are reused by later tasks.
    """
    if state is not None and not sure:
        try:
            root = root_pa(state, stacks.view.regime)
        except RegimeError:
            return None
        if root != stacks.view.swapper().pa:
            return None
    for address in range(own.base, own.top, PAGE):
        now = _walk(stacks, address)
        if now is None:
            continue
        changes, then = _changes(stacks, address, now, snapshots)
        if now.outcome == "unreadable" and not changes and _lacking(stacks, now):
            continue
        if now.outcome != "mapped":
            return Gone(address, now, changes, None if then is None else then.pa)
        if then is None or not changes or then.pa is None or now.pa == then.pa:
            continue
        if changes[0].level < LEVEL_LAST and changes[0].before & 3 == 3:
            return Gone(address, now, changes, then.pa)
    return None


def _lacking(stacks: Stacks, walked: Walk) -> bool:
    """Tell whether a table may be there that cannot be read: a dump may lack memory that the guest has."""
    ram = stacks.view.ram
    return not ram or any(block.contains(walked.steps[-1].descriptor_pa) for block in ram)


def _changes(
    stacks: Stacks, address: int, now: Walk | None, snapshots: Sequence[Snapshot]
) -> tuple[tuple[Change, ...], Walk | None]:
    """Return what changed on a path since the newest snapshot that holds it otherwise, and its walk there."""
    for snapshot in snapshots:
        if now is None or not _alike(snapshot.regime, stacks.view.regime):
            continue
        then = walk(SnapshotMemory(snapshot), address, snapshot.root.pa, snapshot.regime)
        changes = path_changes(now, then, snapshot.name, snapshot.regime)
        if changes:
            return changes, then
    return (), None


def _alike(a: Regime, b: Regime) -> bool:
    """Tell whether tables of two regimes have the same shape; whether the MMU was on does not matter."""
    return (a.granule, a.va_bits, a.start_level) == (b.granule, b.va_bits, b.start_level)


def _walk(stacks: Stacks, far: int) -> Walk | None:
    if not bit(far, 55):
        return None
    view = stacks.view
    try:
        return walk(view.memory, far, view.swapper().pa, view.regime)
    except PtinspectError:
        return None
