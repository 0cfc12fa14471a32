"""`status`, and how a guest stands after `launch` and `attach`."""

from __future__ import annotations

from ptinspect.commands.framework.arguments import CPU
from ptinspect.commands.framework.command import command
from ptinspect.guest.condition import Condition, condition
from ptinspect.guest.guest import Guest
from ptinspect.output.model import Cell, Column, Report, Style, Styled, Table, escape

STATE_STYLES: dict[str, Style] = {"stopped": "good", "running": "changed", "dead": "bad"}


@command(
    "status",
    group="Guest",
    summary="Say what ptinspect is attached to and how it stands",
    example="status",
    arguments=(CPU,),
    result=Condition,
    expectable=True,
)
def status(guest: Guest, *, cpu: int | None = None) -> Report:
    """Say what ptinspect is attached to."""
    found = condition(guest, cpu)
    return Report(found, (condition_table(guest, found),))


def condition_table(guest: Guest, found: Condition) -> Table:
    """Show how a guest stands, line by line."""
    mmu = "" if found.mmu_on is None else f", MMU {'on' if found.mmu_on else 'off'}"
    where = "" if found.pc is None else f"cpu {found.cpu} at {guest.place(found.pc)}, EL{found.el}{mmu}"
    used = None if guest.session is None or found.slots is None else guest.session.slots_used()
    state = found.state if found.state != "none" else "not attached"
    lines: list[tuple[str, Cell]] = [
        ("guest", Styled(state, STATE_STYLES.get(found.state, "dim"))),
        ("stub", found.address),
        ("stands", where),
        ("stopped by", found.reason),
        ("CPUs", str(found.cpus) if found.cpus else ""),
        ("QEMU", found.qemu + (f" (pid {found.pid})" if found.pid is not None else "")),
        ("runs by", found.accel.upper() if found.accel in ("kvm", "tcg") else found.accel),
        ("slots", "" if used is None else str(used)),
        ("GDB", found.gdb),
        ("memory by", found.memory),
        ("kernel", found.kernel),
        ("not used", Styled(escape(found.kernel_refused), "bad")),
        ("console", found.console),
        ("snapshots", ", ".join(found.snapshots)),
    ]
    rows = [(name, value if isinstance(value, Styled) else escape(value)) for name, value in lines]
    return Table((Column(""), Column("")), [row for row in rows if str(row[1]).strip()])
