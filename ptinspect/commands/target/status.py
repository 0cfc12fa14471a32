"""What stands where: the facts that `status`, `launch` and `attach` show."""

from __future__ import annotations

from ptinspect.arch.sysregs import mmu_on
from ptinspect.commands.framework.context import Context
from ptinspect.guest.names import cpu_state
from ptinspect.link.session import Capability
from ptinspect.output.model import Report
from ptinspect.output.views import target as views


def status_report(ctx: Context, headline: str, cpu: int | None = None) -> Report:
    """Show the session, QEMU, kernel and snapshots as they are now. Raises TargetError."""
    return views.status_report(collect(ctx, cpu), headline)


def collect(ctx: Context, chosen: int | None = None) -> views.Status:
    """Ask the session and QEMU for the facts, a CPU's too. Raises TargetError, UserError."""
    session, qemu = ctx.session, ctx.qemu
    facts: dict[str, object] = {
        "kernel": "" if ctx.guest.kernel_path is None else str(ctx.guest.kernel_path),
        "snapshots": tuple(ctx.snapshots),
    }
    if qemu is not None:
        facts |= {"pid": qemu.pid, "console": str(qemu.console)}
    if session is not None:
        state = ctx.state
        facts |= {"address": session.address, "state": state}
        if state != "dead":
            facts |= {"cpus": session.cpu_count, "qemu": session.qemu_version, "gdb": session.gdb_version}
            facts["accel"] = session.accel
        if state == "stopped" and Capability.REGISTERS not in session.capabilities:
            facts["memory"] = session.memory.label
        elif state == "stopped":
            refused = ctx.guest.kernel_refused
            cpu = cpu_state(ctx.guest, chosen)
            facts |= {
                "cpu": cpu.cpu,
                "pc": cpu.pc,
                "place": ctx.place(cpu.pc),
                "el": cpu.el,
                "mmu_on": mmu_on(cpu),
                "reason": str(session.stop.reason),
                "memory": session.memory.label,
                "refused": "" if refused is None else refused.message,
            }
            found = session.slots_used()
            if found is not None:
                facts |= {"slots": found.as_json(), "slots_text": str(found)}
    return views.Status(**facts)  # type: ignore[arg-type]
