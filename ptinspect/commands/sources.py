"""Where tables are read from: the stopped guest or a snapshot; and which root, and why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64, PhysAddr, bit
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.arch.sysregs import UNWRITTEN
from ptinspect.commands import argtypes
from ptinspect.commands.capturing import capture_snapshot
from ptinspect.commands.context import Context, kernel_offset
from ptinspect.commands.registry import Needs
from ptinspect.commands.rootchoice import ROOT_HELP, RULES, RULES_HELP, choose, root_choice
from ptinspect.errors import GuestError, UserError

if TYPE_CHECKING:
    from ptinspect.arch.regime import Regime
    from ptinspect.arch.sysregs import CpuState
    from ptinspect.memory.source import PhysicalMemory
    from ptinspect.snapshot.model import Root, Snapshot

CPU_NUMBER = argtypes.completes("cpu", argtypes.whole(0, 1023))
"""The type of `--cpu`."""
SNAPSHOT_HELP = "use this snapshot (a name, or a file) instead of the guest"


def add_root_options(parser: argparse.ArgumentParser) -> None:
    """Add `--root`, `--cpu` and `--snap`."""
    parser.add_argument(
        "--root",
        type=root_choice,
        metavar="ROOT",
        help=ROOT_HELP,
    )
    parser.add_argument("--regime", choices=RULES, help=RULES_HELP)
    add_cpu_option(parser)
    parser.add_argument("--snap", type=argtypes.snapshot, metavar="SNAP", help=SNAPSHOT_HELP)


def cpu_or_all(text: str) -> int | str:
    """Read the number of a CPU, or `all`."""
    return "all" if text == "all" else argtypes.whole(0, 1023)(text)


argtypes.completes("cpu", cpu_or_all)


def add_cpu_option(
    parser: argparse.ArgumentParser,
    help_text: str = "whose registers count (default: the one that stopped)",
    *,
    every: bool = False,
) -> None:
    """Add `--cpu`, the one way to choose a CPU for one command; with `every` it takes `all` too."""
    kind, name = (cpu_or_all, "N|all") if every else (CPU_NUMBER, "N")
    parser.add_argument("--cpu", type=kind, metavar=name, help=help_text)


@dataclass(frozen=True)
class Source:
    """Join what a look at tables needs."""

    memory: PhysicalMemory
    """Guest-physical memory, live or captured."""
    root: Root
    """The table to begin at, and why."""
    regime: Regime
    """The half that it translates."""
    label: str
    """`guest, cpu 0` or `snapshot before`."""
    snapshot: Snapshot | None = None
    """The snapshot, where it is not the guest."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a snapshot of it keeps in Meta.extra: what its lower half is."""


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
        return (kernel.lookup(name) + kernel_offset(self._snapshot)) & MASK64

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
    if not getattr(ctx.stopped, "has_registers", True):
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


def source(ctx: Context, args: argparse.Namespace, name: str, va: int | None = None) -> Source:
    """Choose memory, root and regime for the command `name`; `va` decides about the half.

    Raises UserError, TargetRunning or TargetLost if there is neither a stopped guest nor a snapshot.
    """
    if args.snap:
        return _captured(ctx, args, va)
    ctx.check(Needs.STOPPED, name)
    state = cpu_state(ctx, args.cpu)
    found = choose(ctx, args.root, state, va, getattr(args, "regime", None))
    return Source(ctx.stopped.memory, found.root, found.regime, f"guest, cpu {state.cpu}", None, found.facts)


def _captured(ctx: Context, args: argparse.Namespace, va: int | None) -> Source:
    from ptinspect.snapshot.memory import SnapshotMemory

    snapshot = ctx.snapshot_or_file(args.snap)
    root = snapshot.root
    if getattr(args, "regime", None):
        raise UserError(f"snapshot {snapshot.name!r} was captured by the rules of {snapshot.regime.name}")
    if args.root is not None:
        root = _captured_root(ctx, args, snapshot)
    if va is not None and bit(va, 55) != snapshot.regime.upper:
        half = "kernel" if snapshot.regime.upper else "user"
        raise UserError(f"{va:#x} is not in the {half} half, which snapshot {snapshot.name!r} holds")
    memory = SnapshotMemory(snapshot)
    return Source(memory, root, snapshot.regime, f"snapshot {snapshot.name}", snapshot)


def _captured_root(ctx: Context, args: argparse.Namespace, snapshot: Snapshot) -> Root:
    from ptinspect.snapshot.model import Root

    if isinstance(args.root, str):
        raise UserError(
            f"snapshot {snapshot.name!r} was captured from {snapshot.root.provenance}",
            "--root takes the address of a table in it, or leave it out",
        )
    return Root(PhysAddr(args.root.value(SnapshotNames(ctx, snapshot, args.cpu))), "--root")


def snapshot_of(
    ctx: Context,
    args: argparse.Namespace,
    name: str,
    va_range: tuple[int, int] | None = None,
    *,
    max_level: int = LEVEL_LAST,
) -> Snapshot:
    """Return the snapshot that `--snap` names, or a capture of the guest.

    A whole capture is kept until the guest runs; a part is read each time.
    """
    found = source(ctx, args, name, None if va_range is None else va_range[0])
    if found.snapshot is not None and args.root is None:
        return found.snapshot
    label = f"({found.label})"
    if found.snapshot is not None:
        return capture_snapshot(ctx, found, label, va_range=va_range, max_level=max_level)
    key = (ctx.stopped.stop_token, found.root.pa, found.regime)
    if ctx.latest is not None and ctx.latest[0] == key:
        return ctx.latest[1]
    snapshot = capture_snapshot(ctx, found, label, va_range=va_range, max_level=max_level)
    if va_range is None and max_level == LEVEL_LAST:
        ctx.latest = (key, snapshot)
    return snapshot


def range_of(ctx: Context, args: argparse.Namespace, chosen: argtypes.Range | None) -> tuple[int, int] | None:
    """Return the first and last address of a range argument, or None if none was given."""
    return None if chosen is None else chosen.value(names(ctx, args))
