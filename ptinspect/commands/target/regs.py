"""`regs`, `regime`, `cpu`: the registers of a CPU, what they mean for translation, and which CPU it is."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ptinspect.arch.regime import regime_from_registers, root_pa
from ptinspect.arch.sysregs import (
    CpuState,
    RegimeName,
    kernel_regime,
    mmu_on,
    regime_at_el2,
    register_of_regime,
)
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import CPU_NUMBER, SNAP, add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError, RegimeError, UserError
from ptinspect.guest.names import (
    captured_cpu,
    cpu_state,
    live_register,
    need_registers,
    register_of,
)
from ptinspect.output.model import Report
from ptinspect.output.views.regime import Half, RegimeFacts, regime_report
from ptinspect.output.views.target import CpuLine, CpuStack, cpus, registers


def _configure_regs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", type=argtypes.register_name, metavar="NAME", help="only these")
    _configure(parser)


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cpu_option(parser)
    parser.add_argument("--snap", type=argtypes.snapshot, metavar="SNAP", help=SNAP.options["help"])


def _configure_cpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "number", nargs="?", type=CPU_NUMBER, metavar="N", help="CPU to choose; none: list them"
    )


@command(
    "cpu",
    aliases=("cpus",),
    group="Look",
    summary="List the CPUs, or choose the one that commands are about",
    example="cpu 0",
    needs=Needs.STOPPED,
    configure=_configure_cpu,
    details="After each stop it is the CPU that stopped the guest. --cpu N chooses for one command.",
    expectable=True,
    changes=True,
)
def cpu(ctx: Context, args: argparse.Namespace) -> Report:
    """List the CPUs, or choose one."""
    session = ctx.stopped
    if args.number is not None:
        session.current_cpu = cpu_state(ctx.guest, args.number).cpu
    lines = [_line(ctx, number) for number in range(session.cpu_count)]
    return cpus(lines, session.current_cpu, ctx.guest.kernel_missing)


def _line(ctx: Context, number: int) -> CpuLine:
    """Say what is known of a CPU: where it stands, its tables, its task and stack."""
    from ptinspect.linux.running.tasks import Tasks
    from ptinspect.linux.running.ttbr import upper_root

    state = ctx.stopped.cpu_state(number)
    line = CpuLine(number, state.pc, ctx.place(state.pc), state.el, mmu_on(state))
    try:
        view = ctx.view()
        root, what = upper_root(state, view) or (None, "")
        line = replace(line, ttbr1=root, ttbr1_is=what)
    except PtinspectError:
        return line
    try:
        task = Tasks(view).current(state)
        if task is not None:
            line = replace(line, task=task.comm, pid=task.pid)
        return replace(line, stack=_stack(ctx, state))
    except PtinspectError:
        return line


def _stack(ctx: Context, state: CpuState) -> CpuStack:
    """Say which stack SP is on. Raises GuestError, KernelFileError, UserError."""
    from ptinspect.guest.kernel_stacks import open_stacks
    from ptinspect.stack.depth import with_true_sp

    stacks = open_stacks(ctx.guest)
    found = stacks.locate(with_true_sp(stacks, state))
    return CpuStack(found.kind, found.used, None if found.stack is None else found.stack.size)


def _state(ctx: Context, args: argparse.Namespace, name: str) -> tuple[CpuState, str]:
    if args.snap:
        snapshot = ctx.snapshot_or_file(args.snap)
        return captured_cpu(snapshot, args.cpu), f"snapshot {snapshot.name}"
    ctx.guest.require(name, stopped=True)
    return cpu_state(ctx.guest, args.cpu), "guest"


@command(
    "regs",
    group="Look",
    summary="Show the registers of a CPU",
    example="regs x0 x30 TTBR1_EL1",
    configure=_configure_regs,
    details="Names: x0…x30, sp, pc, pstate, and system registers as the Arm ARM spells them.",
    expectable=True,
)
def regs(ctx: Context, args: argparse.Namespace) -> Report:
    """Show registers."""
    state, label = _state(ctx, args, "regs")
    if not args.snap:
        need_registers(ctx.guest)
    if args.names:
        return registers(state, _chosen(ctx, state, args), {}, label)
    general = {f"x{n}": value for n, value in enumerate(state.x)}
    general |= {"sp": state.sp, "pc": state.pc, "pstate": state.pstate}
    return registers(state, general, dict(sorted(state.system.items())), label)


def _chosen(ctx: Context, state: CpuState, args: argparse.Namespace) -> dict[str, int]:
    """Return the registers that were named. Raises UserError with all names that mean none."""
    found: dict[str, int] = {}
    wrong: list[UserError] = []
    for name in args.names:
        try:
            found[name] = register_of(state, name) if args.snap else live_register(ctx.guest, state, name)
        except UserError as error:
            wrong.append(error)
    if wrong:
        raise UserError("; ".join(error.message for error in wrong), wrong[0].hint)
    return found


@command(
    "regime",
    group="Look",
    summary="Decode TTBR0/1, TCR, MAIR and SCTLR of a CPU",
    example="regime --cpu 0",
    configure=_configure,
    details="Says the granule, address sizes, start level, ASID and CnP of each half, what its table is, "
    "and whether the MMU is on; EL2's own table where there is one, and where permissions come from.",
    expectable=True,
)
def regime(ctx: Context, args: argparse.Namespace) -> Report:
    """Decode the translation registers."""
    state, label = _state(ctx, args, "regime")
    name = kernel_regime(state)
    lower, upper = _half(state, name, False), _half(state, name, True)
    if not args.snap:
        lower, upper = _holding(ctx, state, lower), _holding(ctx, state, upper)
    return regime_report(RegimeFacts(state, lower, upper, _own_of_el2(state), label))


def _half(state: CpuState, name: RegimeName, upper: bool) -> Half:
    register = register_of_regime(name, "TTBR1" if upper else "TTBR0")
    try:
        return Half(register, regime_from_registers(state, upper, name))
    except RegimeError as error:
        return Half(register, error)


def _own_of_el2(state: CpuState) -> Half | None:
    """Return TTBR0_EL2 where EL2 has a regime of its own and has been set up."""
    if "TCR_EL2" not in state.system or regime_at_el2(state) != "EL2" or not state.system.get("TTBR0_EL2"):
        return None
    return _half(state, "EL2", False)


def _holding(ctx: Context, state: CpuState, half: Half) -> Half:
    """Add what a register of the guest holds, as far as something shows it."""
    from ptinspect.linux.running.ttbr import lower_role, ttbr1_role

    if isinstance(half.regime, RegimeError):
        return half
    try:
        if half.regime.upper:
            role = ttbr1_role(ctx.view(), state)
            return half if role.name == "unknown" else replace(half, holds=role.name, reason=role.reason)
        found = lower_role(ctx.view(), state, root_pa(state, half.regime))
        return replace(half, holds=found.holds, reason=found.reason)
    except PtinspectError:
        return half
