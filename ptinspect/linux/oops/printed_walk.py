"""The walk that the kernel printed, level by level, under the regime that the log lets one infer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from ptinspect.arch.bits import bit
from ptinspect.arch.descriptor import Descriptor, Kind, decode
from ptinspect.arch.levels import level_name
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import RegimeError
from ptinspect.linux.oops.incident import Fault, Incident, Pagetable
from ptinspect.linux.releases import mair_el1, parse

LEVEL_OF: Mapping[str, int] = {"pgd": -1, "p4d": 0, "pud": 1, "pmd": 2, "pte": 3}
"""Linux's name of a level -> its number where no level is folded: names count from the pages."""


@dataclass(frozen=True)
class PathStep:
    """One level of the printed walk."""

    level: int
    """The level in the Arm ARM's count."""
    name: str
    """Linux's name of it, folded levels left out."""
    descriptor: Descriptor
    """What was printed, decoded."""


@dataclass(frozen=True)
class Path:
    """The walk of one address as the kernel printed it while it died."""

    address: int
    """The address."""
    steps: tuple[PathStep, ...]
    """The root first."""
    regime: Regime
    """The regime that the log names, or the assumed one."""
    assumed: bool
    """True if the log does not name granule and size of addresses: 4K, 48 bits are assumed."""
    pgdp: int | None = None
    """Address of the root as printed; None if hidden or not printed."""
    user: bool = False
    """True if it goes through a task's tables, which the rewrite of the kernel's does not mark."""

    @property
    def end(self) -> PathStep | None:
        """The first level whose descriptor translates nothing; None if the address was mapped."""
        wrong = (Kind.INVALID, Kind.RESERVED)
        return next((step for step in self.steps if step.descriptor.kind in wrong), None)

    @property
    def tables(self) -> tuple[PathStep, ...]:
        """The levels that point to a next table."""
        return tuple(step for step in self.steps if step.descriptor.kind is Kind.TABLE)

    def same_entry(self, address: int, level: int) -> bool:
        """Tell whether `address` is translated through the same descriptor at `level`."""
        shift = self.regime.shift(level)
        return address >> shift == self.address >> shift


def regime_of(pagetable: Pagetable | None, release: str) -> Regime:
    """Return the regime of the kernel's half: as the log names it, or 4K and 48 bits.

    Memory types come from the release's MAIR_EL1 where it is known, else MAIR is 0.
    """
    mair = mair_el1(parse(release)) or 0
    if pagetable is not None:
        granule_bits, wide = pagetable.page_size.bit_length() - 1, pagetable.va_bits > 48
        pa_bits, ds = 52 if wide else 48, wide and granule_bits < 16
        with suppress(RegimeError):
            return Regime(granule_bits, pagetable.va_bits, pa_bits, True, ds=ds, mair=mair)
    return Regime(12, 48, 48, True, mair=mair)


def incident_regime(incident: Incident) -> tuple[Regime, bool]:
    """Return the kernel half's regime for a death, and whether it is only assumed."""
    faults = (incident.first, *incident.later)
    lines = [fault.pagetable for fault in faults if fault.pagetable is not None]
    pagetable = next((line for line in lines if line.owner == "swapper"), lines[0] if lines else None)
    return regime_of(pagetable, incident.release), pagetable is None


def path_of(fault: Fault, release: str) -> Path | None:
    """Return the walk that a report holds, folded levels left out; None if it holds none.

    A level that is folded is printed with the value of the level above it, or, where folding is
    decided at boot (LPA2 kernels on a CPU without it), with a slot that is not used at all; the
    root is the last of them in either case (Linux arch/arm64/mm/fault.c, show_pte).
    """
    if fault.path_address is None or not fault.path:
        return None
    regime = regime_of(fault.pagetable, release)
    start = regime.start_level
    rooted = [entry for entry in fault.path if LEVEL_OF[entry.name] <= start]
    below = [entry for entry in fault.path if LEVEL_OF[entry.name] > start]
    chosen = [(start, rooted[-1].raw)] if rooted else []
    chosen += [(LEVEL_OF[entry.name], entry.raw) for entry in below]
    steps: list[PathStep] = []
    for level, raw in chosen:
        if steps and level != steps[-1].level + 1:
            break
        steps.append(PathStep(level, level_name(level, regime), decode(raw, level, regime)))
    if not steps:
        return None
    pgdp = fault.pagetable.pgdp if fault.pagetable is not None else None
    user = not bit(fault.path_address, 55)
    return Path(fault.path_address, tuple(steps), regime, fault.pagetable is None, pgdp, user)
