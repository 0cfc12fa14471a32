"""What reports on tables begin with: whose tables, from which root, and what is missing."""

from __future__ import annotations

import re

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.levels import size_text
from ptinspect.dataclass import dataclass
from ptinspect.output.encode import filled
from ptinspect.output.model import Note, escape
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.arch.regime import Regime
    from ptinspect.snapshot.model import Root, Snapshot


@dataclass(frozen=True)
class RootResult:
    """A root table, and why it was chosen."""

    pa: PhysAddr
    provenance: str


def root_result(root: Root) -> RootResult:
    """Return a root as results have it."""
    return filled(RootResult, root)


@dataclass(frozen=True)
class RegimeResult:
    """The rules by which tables translate."""

    granule: int
    va_bits: int
    pa_bits: int
    start_level: int
    upper: bool
    mmu_on: bool
    name: str
    indirect: bool
    doubt: str


def regime_result(regime: Regime) -> RegimeResult:
    """Return a regime as results have it."""
    return filled(RegimeResult, regime, indirect=regime.pie)


def geometry_text(regime: Regime) -> str:
    """Return the geometry of a regime in words."""
    return f"{size_text(regime.granule)} granule, {regime.va_bits}-bit VA, {regime.pa_bits}-bit PA"


def source_of(snapshot: Snapshot) -> str:
    """Return where the tables of a snapshot come from: `snapshot NAME`, or `guest, cpu 0`.

    A capture that only one command looks at is named in parentheses after its guest.
    """
    name = snapshot.name
    return name[1:-1] if name.startswith("(") and name.endswith(")") else f"snapshot {name}"


def root_note(root: Root, source: str, regime: Regime) -> Note:
    """Say which root is looked at and why, and whose tables they are."""
    off = "" if regime.mmu_on else "; the MMU is off"
    whose, _, cpu = source.partition(", ")
    if cpu and re.search(rf"\b{re.escape(cpu)}\b", root.provenance):  # it is said already
        source = whose
    return Note(f"root pa:{root.pa:#x}: {escape(root.provenance)} ({escape(source)}{off})", "dim")


def heads(snapshot: Snapshot) -> list[Note]:
    """Say which root is looked at and why, and what is missing."""
    return [root_note(snapshot.root, source_of(snapshot), snapshot.regime), *warnings(snapshot)]


def warnings(snapshot: Snapshot) -> list[Note]:
    """Return what is missing in a snapshot, so that nobody takes a part for the whole."""
    from ptinspect.snapshot.coverage import unseen

    return [Note(escape(text), "bad") for text in unseen(snapshot)]
