"""Collect from a stopped guest what a verdict needs."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.esr import decode_esr
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import PtinspectError
from ptinspect.linux.stacks import Stacks
from ptinspect.paging.walk import Walk, walk
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.stack.depth import Depth
from ptinspect.stack.why import Change, Facts, path_changes

STORES = 0x80
"""Bytes behind a label of the exception entry in which it stores the interrupted registers."""
BAD_STACK = ("handle_bad_stack", "panic_bad_stack")


def entry_ranges(stacks: Stacks) -> list[tuple[int, int]]:
    """Return where the exception entry stores registers, at run-time addresses: (first, behind)."""
    offset = stacks.view.kaslr_offset
    return [((label + offset) & MASK64, (label + offset + STORES) & MASK64) for label in stacks.entry.labels]


def collect(stacks: Stacks, state: CpuState, depth: Depth, snapshots: Sequence[Snapshot]) -> Facts:
    """Read the facts of one CPU; `snapshots` with the newest first."""
    system = state.system
    esr = decode_esr(system.get("ESR_EL1", 0))
    far, elr = system.get("FAR_EL1", 0), system.get("ELR_EL1", 0)
    ranges = entry_ranges(stacks)
    sp = state.sp
    position = depth.position
    stack = stacks.of_task(position.task) if position.task is not None else position.stack
    if position.kind == "overflow":
        sp = (system.get("TPIDR_EL0", 0) + stacks.entry.frame_size) & MASK64
    elif position.stack is not None:
        stack, sp = position.stack, position.sp
    frames = depth.unwound.frames
    kept = [f for f in frames if f.kind == "function" and stack is not None and f.stack == stack.kind]
    unwritten = sum(f.count for f in frames if f.kind == "unwritten")
    in_entry = any(first <= elr < behind for first, behind in ranges) and bool(state.el)
    walked = _walk(stacks, far)
    changes: tuple[Change, ...] = ()
    for snapshot in snapshots:
        if walked is None or changes or not _alike(snapshot.regime, stacks.view.regime):
            continue
        then = walk(SnapshotMemory(snapshot), far, snapshot.root.pa, snapshot.regime)
        changes = path_changes(walked, then, snapshot.name)
    used = None
    if kept and stack is not None:
        used = stack.top - kept[0].sp
    elif stack is not None and stack.contains(state.x[29]):
        used = stack.top - state.x[29]
    return Facts(
        esr,
        far,
        in_entry,
        _handling(stacks, state, ranges),
        stack,
        sp,
        stacks.entry.frame_size,
        used,
        unwritten,
        len(kept),
        walked,
        changes,
    )


def _handling(stacks: Stacks, state: CpuState, ranges: Sequence[tuple[int, int]]) -> bool:
    """Tell whether the CPU is at the beginning of an exception, or where a bad stack is reported."""
    offset = stacks.view.kaslr_offset
    first = (stacks.entry.vectors[0].va + offset) & MASK64
    if first <= state.pc < first + 0x200 or any(low <= state.pc < high for low, high in ranges):
        return True
    image = stacks.tasks.image
    near = image.nearest((state.pc - offset) & MASK64)
    bad = stacks.entry.bad_stack
    at_label = bad is not None and 0 <= state.pc - offset - bad < STORES
    return at_label or (near is not None and near[0] in BAD_STACK)


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
