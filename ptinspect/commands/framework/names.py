"""What names stand for: symbols and registers of the guest, of a snapshot, or of the kernel file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64
from ptinspect.arch.sysregs import UNWRITTEN, CpuState
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, UserError
from ptinspect.link.session import Capability
from ptinspect.snapshot.fact_names import kernel_offset

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Snapshot


class GuestNames:
    """Names of the live guest."""

    def __init__(self, ctx: Context, cpu: int | None = None) -> None:
        self._ctx = ctx
        self._cpu = cpu

    def symbol(self, name: str) -> int:
        """Return the run-time address of a symbol."""
        return symbol(self._ctx, name)

    def register(self, name: str) -> int:
        """Return a register of the chosen CPU."""
        need_registers(self._ctx)
        return live_register(self._ctx, cpu_state(self._ctx, self._cpu), name)


class SnapshotNames:
    """Names of a snapshot: its registers, and symbols of the kernel file placed as it was then."""

    def __init__(self, ctx: Context, snapshot: Snapshot, cpu: int | None = None) -> None:
        self._ctx = ctx
        self._snapshot = snapshot
        self._cpu = cpu

    def symbol(self, name: str) -> int:
        """Return the address of a symbol at the time of the capture."""
        kernel = self._ctx.kernel
        if kernel is None:
            raise UserError(f"{name!r}: symbols need the kernel file", "kernel FILE, or a number: 0x…")
        return (kernel.lookup(name) + kernel_offset(self._snapshot.meta.extra)) & MASK64

    def register(self, name: str) -> int:
        """Return a register of the chosen CPU at the time of the capture."""
        return register_of(captured_cpu(self._snapshot, self._cpu), name)


class LinkNames:
    """Names of the kernel file as it is linked, for want of a stopped guest."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def symbol(self, name: str) -> int:
        """Return the link-time address of a symbol."""
        kernel = self._ctx.kernel
        if kernel is None:
            raise UserError(f"{name!r}: symbols need the kernel file", "kernel FILE, or a number: 0x…")
        return kernel.lookup(name)

    def register(self, name: str) -> int:
        """Raise UserError: there are no registers."""
        raise UserError(
            f"${name}: not attached to a stopped guest", "a snapshot has registers too: --snap NAME"
        )


def names_at_hand(ctx: Context, cpu: int | None = None, snap: str | None = None) -> argtypes.Names:
    """Return what resolves names: the snapshot if one is named, the stopped guest, or the kernel file."""
    if snap:
        return SnapshotNames(ctx, ctx.snapshot_or_file(snap), cpu)
    return GuestNames(ctx, cpu) if ctx.state == "stopped" else LinkNames(ctx)


def symbol(ctx: Context, name: str) -> int:
    """Return the run-time address of a symbol in the stopped guest; as linked while nobody knows better.

    Raises UserError without a kernel file, KernelFileError if it has no such symbol, GuestError while it
    is not known where a kernel runs whose file does not tell where it is linked.
    """
    if ctx.kernel is None:
        raise UserError(f"{name!r}: symbols need the kernel file", "kernel FILE, or a number: 0x…")
    try:
        return ctx.view().symbol(name)
    except GuestError as error:
        link = ctx.kernel.lookup(name)
        if not ctx.kernel.linked:
            what = f"{name}: {ctx.kernel.path.name} does not tell where it is linked, and {error.message}"
            raise GuestError(what, "until start_kernel runs to where that is known") from error
        return link


def cpu_state(ctx: Context, cpu: int | None) -> CpuState:
    """Return the registers of the chosen CPU of the stopped guest. Raises UserError if there is none."""
    session = ctx.stopped
    number = session.current_cpu if cpu is None else cpu
    if not 0 <= number < session.cpu_count:
        raise UserError(f"no CPU {number}: the guest has {session.cpu_count}, numbered from 0")
    return session.cpu_state(number)


def need_registers(ctx: Context) -> None:
    """Raise UserError if the guest is a file without registers of CPUs."""
    if Capability.REGISTERS not in ctx.stopped.capabilities:
        what = f"{ctx.stopped.address} has no registers of CPUs"
        raise UserError(what, "an ELF core of dump-guest-memory has them")


def captured_cpu(snapshot: Snapshot, cpu: int | None) -> CpuState:
    """Return the registers of a CPU in a snapshot: the chosen one, else the first."""
    for state in snapshot.cpus:
        if cpu is None or state.cpu == cpu:
            return state
    raise UserError(f"snapshot {snapshot.name!r} has no registers of CPU {0 if cpu is None else cpu}")


def register_of(state: CpuState, name: str) -> int:
    """Return a register by name: x0…x30, w0…w30, sp, pc, lr, fp, or a system register."""
    low = name.lower()
    aliases = {"fp": "x29", "lr": "x30"}
    low = aliases.get(low, low)
    if low in ("sp", "pc"):
        return state.sp if low == "sp" else state.pc
    if low[:1] in ("x", "w") and low[1:].isdigit() and int(low[1:]) < len(state.x):
        value = state.x[int(low[1:])]
        return value if low[0] == "x" else value & 0xFFFF_FFFF
    if low in ("cpsr", "pstate"):
        return state.pstate
    found = _by_any_name(state.system, name)
    if found is None and _by_any_name(dict.fromkeys(state.unwritten, 0), name) is not None:
        raise UserError(f"${name} was never written: it holds no value yet", "let the guest run further")
    if found is None:
        raise UserError(f"no register ${name}", "regs lists them")
    return found


def live_register(ctx: Context, state: CpuState, name: str) -> int:
    """Return a register of a stopped CPU by name, one that only the stub knows too.

    Raises UserError if there is none, or nobody has written it yet.
    """
    try:
        return register_of(state, name)
    except UserError:
        found = _by_any_name(ctx.stopped.registers(state.cpu), name)
        if found is None or found == UNWRITTEN:
            raise
        return found


def _by_any_name(registers: Mapping[str, int], name: str) -> int | None:
    """Look a register up whatever its case, with _EL1 where that was left out; None if there is none."""
    upper = {key.upper(): value for key, value in registers.items()}
    return upper.get(name.upper(), upper.get(f"{name.upper()}_EL1"))


def names(ctx: Context, args: argparse.Namespace) -> argtypes.Names:
    """Return what resolves symbols and registers for a command with `--snap` and `--cpu`."""
    cpu = getattr(args, "cpu", None)
    if getattr(args, "snap", None):
        return SnapshotNames(ctx, ctx.snapshot_or_file(args.snap), cpu)
    return GuestNames(ctx, cpu)


def range_of(ctx: Context, args: argparse.Namespace, chosen: argtypes.Range | None) -> tuple[int, int] | None:
    """Return the first and last address of a range argument, or None if none was given."""
    return None if chosen is None else chosen.value(names(ctx, args))
