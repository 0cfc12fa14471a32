"""`cpu`, `regs`: the CPUs, and the registers of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.arch.sysregs import CpuState, remarks
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import CPU, CPU_NUMBER, SNAP
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.condition import Cpu, cpus_of
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state, live_register, need_registers, register_of, state_of
from ptinspect.output.encode import Hex
from ptinspect.output.model import Note, Report, Styled, Table, escape, headings


@dataclass(frozen=True)
class CpusResult:
    """The CPUs, and the one that commands are about."""

    cpus: list[Cpu]
    current: int
    missing: str


@command(
    "cpu",
    aliases=("cpus",),
    group="Look",
    summary="List the CPUs, or choose the one that commands are about",
    example="cpu 0",
    arguments=(
        argument("number", nargs="?", type=CPU_NUMBER, metavar="N", help="CPU to choose; none: list them"),
    ),
    result=CpusResult,
    needs=Needs.STOPPED,
    details="After each stop it is the CPU that stopped the guest. --cpu N chooses for one command.",
    expectable=True,
    changes=True,
)
def cpu(guest: Guest, *, number: int | None = None) -> Report:
    """List the CPUs, or choose one."""
    session = guest.stopped
    if number is not None:
        session.current_cpu = cpu_state(guest, number).cpu
    result = CpusResult(cpus_of(guest), session.current_cpu, guest.kernel_missing)
    words = {True: "on", False: "off", None: "?"}
    rows = [
        (
            f"{'*' if one.cpu == result.current else ' '} {one.cpu}",
            f"EL{one.el}",
            words[one.mmu_on],
            "" if one.ttbr1 is None else f"pa:{one.ttbr1:#x} {one.ttbr1_is}".rstrip(),
            escape(one.task) + ("" if one.pid is None else f" ({one.pid})"),
            "" if one.stack is None else str(one.stack),
            one.place,
        )
        for one in result.cpus
    ]
    columns = headings("cpu", "EL", "MMU", "TTBR1", "task", "stack used", "pc")
    body: list[Table | Note] = [Table(columns, rows)]
    if result.missing:
        body.append(Note(f"{escape(result.missing)}: no symbols, tasks and stacks", "changed"))
    return Report(result, body)


@dataclass(frozen=True)
class RegistersResult:
    """Registers of a CPU, with a remark on those that are easily misread."""

    cpu: int
    registers: Mapping[str, Hex]
    source: str
    remarks: Mapping[str, str]


@command(
    "regs",
    group="Look",
    summary="Show the registers of a CPU",
    example="regs x0 x30 TTBR1_EL1",
    arguments=(
        argument("names", nargs="*", type=arguments.register_name, metavar="NAME", help="only these"),
        CPU,
        SNAP,
    ),
    result=RegistersResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Names: x0…x30, sp, pc, pstate, and system registers as the Arm ARM spells them.",
    expectable=True,
)
def regs(
    guest: Guest, *, names: Sequence[str] = (), cpu: int | None = None, snap: str | None = None
) -> Report:
    """Show registers."""
    state, label = state_of(guest, cpu, snap)
    if not snap:
        need_registers(guest)
    if names:
        return _shown(state, _chosen(guest, state, names, live=not snap), {}, label)
    general = {f"x{n}": value for n, value in enumerate(state.x)}
    general |= {"sp": state.sp, "pc": state.pc, "pstate": state.pstate}
    return _shown(state, general, dict(sorted(state.system.items())), label)


def _chosen(guest: Guest, state: CpuState, names: Sequence[str], *, live: bool) -> dict[str, int]:
    """Return the registers that were named. Raises UserError with all names that mean none."""
    found: dict[str, int] = {}
    wrong: list[UserError] = []
    for name in names:
        try:
            found[name] = live_register(guest, state, name) if live else register_of(state, name)
        except UserError as error:
            wrong.append(error)
    if wrong:
        raise UserError("; ".join(error.message for error in wrong), wrong[0].hint)
    return found


def _shown(state: CpuState, general: Mapping[str, int], system: Mapping[str, int], label: str) -> Report:
    """Show registers of a CPU, three to a line."""
    shown = {name.upper() for name in (*general, *system, *(state.unwritten if system else ()))}
    about = {name: text for name, text in remarks(state).items() if name.upper() in shown}
    registers = {name: Hex(value) for name, value in {**general, **system}.items()}
    body: list[Table | Note] = [_grid(general, f"cpu {state.cpu} ({escape(label)})", 3)]
    if system:
        body.append(_grid(system, "system registers", 2))
    for text in dict.fromkeys(about.values()):
        names = ", ".join(name for name, remark in about.items() if remark == text)
        body.append(Note(f"{names}: {text}", "dim"))
    return Report(RegistersResult(state.cpu, registers, label, about), body)


def _grid(values: Mapping[str, int], title: str, across: int) -> Table:
    rows = [(Styled(name, "level"), f"{value:#018x}") for name, value in values.items()]
    return Table(headings("", ""), rows, title, "none", across)
