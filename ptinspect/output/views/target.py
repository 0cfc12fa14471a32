"""The target and its registers as reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptinspect.arch.sysregs import CpuState, remarks
from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table, escape, hex_address

STATE_STYLES: dict[str, Style] = {"stopped": "good", "running": "changed", "dead": "bad"}


@dataclass(frozen=True)
class Status:
    """What `status` tells; empty strings and None where nothing is known."""

    address: str = ""
    """The gdbstub, empty if not attached."""
    state: str = "none"
    """stopped, running, dead, none."""
    cpus: int = 0
    """Number of CPUs."""
    cpu: int | None = None
    """The chosen CPU."""
    pc: int | None = None
    """Where it stands."""
    place: str = ""
    """The same with its symbol."""
    el: int | None = None
    """Its exception level."""
    mmu_on: bool | None = None
    """SCTLR_EL1.M."""
    reason: str = ""
    """Why it stopped."""
    qemu: str = ""
    """Version of QEMU."""
    gdb: str = ""
    """GDB in use."""
    accel: str = ""
    """kvm, tcg, other; empty if QEMU does not say."""
    slots: Mapping[str, int] | None = None
    """Hardware breakpoints and watchpoints, used and free; None where they are not limited."""
    slots_text: str = ""
    """The same in words."""
    memory: str = ""
    """How guest memory is read."""
    kernel: str = ""
    """Kernel file."""
    refused: str = ""
    """Why it is not used; empty if it is, or nobody knows yet."""
    pid: int | None = None
    """Process of the QEMU that was launched here."""
    console: str = ""
    """Its console file."""
    snapshots: Sequence[str] = ()
    """Names of the snapshots in memory."""


def status_report(status: Status, headline: str = "") -> Report:
    """Show the status, with what was just done as first line."""
    result: dict[str, Any] = {
        "attached": status.state in ("stopped", "running"),
        "address": status.address,
        "state": status.state,
        "cpus": status.cpus,
        "cpu": status.cpu,
        "pc": None if status.pc is None else hex_address(status.pc),
        "el": status.el,
        "mmu_on": status.mmu_on,
        "reason": status.reason,
        "qemu": status.qemu,
        "gdb": status.gdb,
        "accel": status.accel,
        "slots": None if status.slots is None else dict(status.slots),
        "memory": status.memory,
        "kernel": status.kernel,
        "kernel_refused": status.refused,
        "pid": status.pid,
        "console": status.console,
        "snapshots": list(status.snapshots),
    }
    mmu = "" if status.mmu_on is None else f", MMU {'on' if status.mmu_on else 'off'}"
    where = f"cpu {status.cpu} at {status.place}, EL{status.el}{mmu}" if status.pc is not None else ""
    state = status.state if status.state != "none" else "not attached"
    lines: list[tuple[str, Cell]] = [
        ("guest", Styled(state, STATE_STYLES.get(status.state, "dim"))),
        ("stub", status.address),
        ("stands", where),
        ("stopped by", status.reason),
        ("CPUs", str(status.cpus) if status.cpus else ""),
        ("QEMU", status.qemu + (f" (pid {status.pid})" if status.pid is not None else "")),
        ("runs by", status.accel.upper() if status.accel in ("kvm", "tcg") else status.accel),
        ("slots", status.slots_text),
        ("GDB", status.gdb),
        ("memory by", status.memory),
        ("kernel", status.kernel),
        ("not used", Styled(escape(status.refused), "bad")),
        ("console", status.console),
        ("snapshots", ", ".join(status.snapshots)),
    ]
    rows = [(name, value if isinstance(value, Styled) else escape(value)) for name, value in lines]
    shown = [row for row in rows if str(row[1]).strip()]
    head = [Note(headline, "good")] if headline else []
    return Report(result, (*head, Table((Column(""), Column("")), shown)))


@dataclass(frozen=True)
class CpuLine:
    """One CPU in a list."""

    cpu: int
    """Its number, from 0."""
    pc: int
    """Where it stands."""
    place: str
    """The same with its symbol."""
    el: int
    """Its exception level."""
    mmu_on: bool | None
    """SCTLR_EL1.M; None where the stub does not tell."""
    ttbr1: int | None = None
    """Root table of the upper half; None where there is none yet."""
    ttbr1_is: str = ""
    """What that table is: swapper, trampoline, reserved, temporary, init; empty if unknown."""
    task: str = ""
    """Name of the task that runs; empty if unknown."""
    pid: int | None = None
    """Its PID; None if unknown."""
    stack: CpuStack | None = None
    """Which stack SP is on; None if it is not known."""


@dataclass(frozen=True)
class CpuStack:
    """The stack of a CPU, in a list."""

    kind: str
    """task, irq, overflow, user, …"""
    used: int | None
    """Bytes in use; None where there is no stack."""
    size: int | None
    """Bytes in all."""

    def __str__(self) -> str:
        """Write it short: `task 912 of 16384`."""
        return self.kind if self.used is None else f"{self.kind} {self.used} of {self.size}"


def cpus(lines: Sequence[CpuLine], current: int, missing: str = "") -> Report:
    """List CPUs; a star marks the chosen one. `missing`: what is lacking to name tasks and stacks."""
    result = {
        "cpus": [
            {
                "cpu": x.cpu,
                "pc": hex_address(x.pc),
                "place": x.place,
                "el": x.el,
                "mmu_on": x.mmu_on,
                "ttbr1": None if x.ttbr1 is None else hex_address(x.ttbr1),
                "ttbr1_is": x.ttbr1_is,
                "task": x.task,
                "pid": x.pid,
                "stack": None
                if x.stack is None
                else {"kind": x.stack.kind, "used": x.stack.used, "size": x.stack.size},
            }
            for x in lines
        ],
        "current": current,
        "missing": missing,
    }
    words = {True: "on", False: "off", None: "?"}
    rows = [
        (
            f"{'*' if x.cpu == current else ' '} {x.cpu}",
            f"EL{x.el}",
            words[x.mmu_on],
            "" if x.ttbr1 is None else f"pa:{x.ttbr1:#x} {x.ttbr1_is}".rstrip(),
            escape(x.task) + ("" if x.pid is None else f" ({x.pid})"),
            "" if x.stack is None else str(x.stack),
            x.place,
        )
        for x in lines
    ]
    columns = tuple(Column(title) for title in ("cpu", "EL", "MMU", "TTBR1", "task", "stack used", "pc"))
    note = (Note(f"{escape(missing)}: no symbols, tasks and stacks", "changed"),) if missing else ()
    return Report(result, (Table(columns, rows), *note))


def registers(state: CpuState, general: Mapping[str, int], system: Mapping[str, int], label: str) -> Report:
    """Show registers of a CPU, three to a line, with a remark on those that are easily misread."""
    shown = {name.upper() for name in (*general, *system, *(state.unwritten if system else ()))}
    said = {name: text for name, text in remarks(state).items() if name.upper() in shown}
    result = {
        "cpu": state.cpu,
        "registers": {name: hex_address(value) for name, value in {**general, **system}.items()},
        "source": label,
        "remarks": said,
    }
    body: list[Table | Note] = [_grid(general, f"cpu {state.cpu} ({escape(label)})", 3)]
    if system:
        body.append(_grid(system, "system registers", 2))
    for text in dict.fromkeys(said.values()):
        names = ", ".join(name for name, about in said.items() if about == text)
        body.append(Note(f"{names}: {text}", "dim"))
    return Report(result, body)


def _grid(values: Mapping[str, int], title: str, across: int) -> Table:
    cells = [(name, f"{value:#018x}") for name, value in values.items()]
    down = -(-len(cells) // across)
    rows = []
    for line in range(down):
        row: list[Cell] = []
        for part in cells[line::down]:
            row.extend((Styled(part[0], "level"), part[1]))
        row.extend("" for _ in range(2 * across - len(row)))
        rows.append(row)
    return Table([Column("") for _ in range(2 * across)], rows, title, "none")
