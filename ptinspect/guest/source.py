"""Where tables are read from: the stopped guest or a snapshot; and which root, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, bit
from ptinspect.arch.regime import Regime
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import SnapshotNames, cpu_state
from ptinspect.guest.roots import choose

if TYPE_CHECKING:
    from ptinspect.memory.source import PhysicalMemory
    from ptinspect.snapshot.model import Root, Snapshot


@dataclass(frozen=True)
class Tables:
    """Say which tables are meant: whose, from which root, by which rules."""

    root: str | Address | None = None
    """A word of roots.WORDS, `task:PID`, the address of a table; None for the kernel's own, or TTBR0's."""
    regime: str | None = None
    """A word of roots.RULES: by whose rules a root given by its address is used."""
    cpu: int | None = None
    """Whose registers count; None for the CPU that stopped."""
    snap: str | None = None
    """A snapshot, by its name or its file; None for the guest."""


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


def source(guest: Guest, tables: Tables, va: int | None = None) -> Source:
    """Choose memory, root and regime; `va` decides about the half.

    Raises UserError, TargetRunning or TargetLost if there is neither a stopped guest nor a snapshot.
    """
    if tables.snap:
        return _captured(guest, tables, guest.snapshot_or_file(tables.snap), va)
    session = guest.stopped
    state = cpu_state(guest, tables.cpu)
    found = choose(guest, tables.root, state, va, tables.regime)
    return Source(session.memory, found.root, found.regime, f"guest, cpu {state.cpu}", None, found.facts)


def _captured(guest: Guest, tables: Tables, snapshot: Snapshot, va: int | None) -> Source:
    from ptinspect.snapshot.memory import SnapshotMemory

    root = snapshot.root
    if tables.regime:
        raise UserError(f"snapshot {snapshot.name!r} was captured by the rules of {snapshot.regime.name}")
    if tables.root is not None:
        root = _captured_root(guest, tables.root, tables.cpu, snapshot)
    if va is not None and bit(va, 55) != snapshot.regime.upper:
        half = "kernel" if snapshot.regime.upper else "user"
        raise UserError(f"{va:#x} is not in the {half} half, which snapshot {snapshot.name!r} holds")
    memory = SnapshotMemory(snapshot)
    return Source(memory, root, snapshot.regime, f"snapshot {snapshot.name}", snapshot)


def _captured_root(guest: Guest, root: str | Address, cpu: int | None, snapshot: Snapshot) -> Root:
    from ptinspect.snapshot.model import Root

    if isinstance(root, str):
        raise UserError(
            f"snapshot {snapshot.name!r} was captured from {snapshot.root.provenance}",
            "--root takes the address of a table in it, or leave it out",
        )
    return Root(PhysAddr(root.value(SnapshotNames(guest, snapshot, cpu))), "--root")
