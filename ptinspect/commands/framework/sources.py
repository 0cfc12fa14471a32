"""Where tables are read from: the stopped guest or a snapshot; and which root, and why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, bit
from ptinspect.arch.regime import Regime
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.names import SnapshotNames, cpu_state
from ptinspect.commands.framework.registry import Needs
from ptinspect.commands.framework.rootchoice import ROOT_HELP, RULES, RULES_HELP, choose, root_choice
from ptinspect.errors import UserError

if TYPE_CHECKING:
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
