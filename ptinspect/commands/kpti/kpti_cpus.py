"""What every CPU does while the kernel rewrites its tables: one rewrites, the others wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptinspect.arch.sysregs import CpuState, mmu_on
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError
from ptinspect.guest.names import cpu_state
from ptinspect.output.model import Column, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.kpti.code import KptiCode
    from ptinspect.linux.running.guest_view import GuestView

HELD = ("multi_cpu_stop", "stop_machine_yield", "rcu_momentary_dyntick_idle", "rcu_momentary_eqs")
"""Functions in which CPUs wait for each other before and after the rewrite (kernel/stop_machine.c)."""
BOOT = {"before": "about to rewrite", "walking": "rewrites", "done": "has rewritten"}
"""What the boot CPU does in the function, by phase."""


def cpus_in(
    ctx: Context, view: GuestView, code: KptiCode | None, only: int | None = None
) -> list[dict[str, Any]]:
    """Say of each CPU, or of one, what it does, where it stands, what TTBR1 is, and if its MMU is on.

    Raises UserError if there is no CPU `only`.
    """
    chosen = range(ctx.stopped.cpu_count) if only is None else [only]
    return [_cpu(ctx, view, code, cpu_state(ctx.guest, cpu)) for cpu in chosen]


def _cpu(ctx: Context, view: GuestView, code: KptiCode | None, state: CpuState) -> dict[str, Any]:
    from ptinspect.linux.running.ttbr import ttbr1_role

    try:
        role = "unknown" if code is None else _role(ctx, view, code, state)
    except PtinspectError:
        role = "unknown"
    try:
        ttbr1 = str(ttbr1_role(view, state).name)
    except PtinspectError:
        ttbr1 = "unknown"
    return {
        "cpu": state.cpu,
        "role": role,
        "pc": hex_address(state.pc),
        "place": ctx.place(state.pc),
        "ttbr1": ttbr1,
        "mmu_on": mmu_on(state),
    }


def _role(ctx: Context, view: GuestView, code: KptiCode, state: CpuState) -> str:
    from ptinspect.linux.kpti.position import position

    entry = view.pa_of_link(code.entry_va)
    if not code.contains(state.pc, entry):
        near = ctx.nearest(state.pc)
        return "held by stop_machine" if near is not None and near[0] in HELD else "elsewhere"
    if code.secondary(state.pc, entry):
        return "waits for the flag"
    parted = state.pc - entry > code.points.get("parting", 0)
    if not parted and state.x[0] & 0xFFFF_FFFF:
        return "about to wait"
    return BOOT[position(state, code, view.regime, view.memory).phase]


def cpu_table(cpus: Sequence[dict[str, Any]]) -> Table:
    """Show what `cpus_in` has found."""
    columns = (Column("cpu", "right"), Column("does"), Column("TTBR1"), Column("MMU"), Column("pc"))
    words = {True: "on", False: "off", None: "?"}
    rows = [(str(c["cpu"]), c["role"], c["ttbr1"], words[c["mmu_on"]], c["place"]) for c in cpus]
    return Table(columns, rows)
