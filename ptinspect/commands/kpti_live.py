"""Where a live guest stands with respect to the rewrite: its code, its registers and its tables."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.capturing import capture_snapshot
from ptinspect.commands.context import Context
from ptinspect.commands.sources import Source
from ptinspect.errors import GuestError, KernelFileError, MemoryReadError

if TYPE_CHECKING:
    from ptinspect.linux.kpti import KptiCode
    from ptinspect.linux.kpti_state import KptiState
    from ptinspect.snapshot.model import Snapshot


def live_state(ctx: Context) -> KptiState:
    """Judge from code, registers, the kernel's own flag, and tables. Raises GuestError, TargetError."""
    from ptinspect.linux.kpti_state import Census, KptiState, state_from_tables

    view = ctx.view()
    try:
        root = view.swapper()
    except GuestError as error:
        return KptiState("before", f"the kernel has no tables yet ({error.message})", Census(0, 0, 0, 0))
    source = Source(ctx.stopped.memory, root, view.regime, "guest")
    snapshot = capture_snapshot(ctx, source, "(kpti status)")
    state = state_from_tables(snapshot)
    code = _code(ctx)
    if code is None:
        return state
    state = dataclasses.replace(state, algorithm=code.algorithm)
    return _inside(ctx, code, snapshot, state) or _outside(ctx, code, state)


def _code(ctx: Context) -> KptiCode | None:
    from ptinspect.linux.kpti import recognise

    if ctx.kernel is None:
        return None
    try:
        return recognise(ctx.kernel)
    except KernelFileError:
        return None


def _inside(ctx: Context, code: KptiCode, snapshot: Snapshot, state: KptiState) -> KptiState | None:
    """Return the state if the boot CPU stands in the identity-mapped function, else None."""
    from ptinspect.linux.kpti import cursors, frontier_of
    from ptinspect.linux.kpti_state import Frontier, descriptor_for

    view = ctx.view()
    try:
        entry = view.pa_of_link(code.entry_va)
    except (GuestError, KernelFileError):
        return None
    boot = next((cpu for cpu in view.states if cpu.cpu == 0), None)
    if boot is None or not code.contains(boot.pc, entry):
        return None
    offset = boot.pc - entry
    done = code.points["after_writes"] <= offset <= code.points["return"]
    where = f"cpu 0 is at +{offset:#x} of idmap_kpti_install_ng_mappings"
    if done:
        return dataclasses.replace(state, state="after", reason=f"{where}, behind all writes; {state.reason}")
    if offset < code.points["before_first_write"] and not state.census.marked:
        return dataclasses.replace(
            state, state="before", reason=f"{where}, nothing is written; {state.reason}"
        )
    found = cursors(boot, code, snapshot.regime)
    va = frontier_of(found, snapshot.regime)
    if va is None:
        return dataclasses.replace(state, state="in-progress", reason=f"{where}; {state.reason}")
    last = found[-1]
    pa = descriptor_for(snapshot, va, last.level, snapshot.regime) if last.index < last.entries else None
    frontier = Frontier(VirtAddr(va), last.level, pa, "walk registers")
    return dataclasses.replace(
        state, state="in-progress", reason=f"{where}; {state.reason}", frontier=frontier
    )


def _outside(ctx: Context, code: KptiCode, state: KptiState) -> KptiState:
    """Refine with the flag, which the rewrite counts up and clears as its last step."""
    if code.flag_va is None:
        return state
    try:
        raw = ctx.stopped.memory.read(ctx.view().pa_of_link(code.flag_va), 4)
    except (MemoryReadError, GuestError, KernelFileError):
        return state
    flag = int.from_bytes(raw, "little")
    if flag == 0 and state.state in ("not-needed", "unknown", "after"):
        return dataclasses.replace(
            state, state="after", reason=f"the rewrite has finished (its flag is 0); {state.reason}"
        )
    if flag == 1:
        return dataclasses.replace(state, reason=f"the rewrite has not run (its flag is 1); {state.reason}")
    return state
