"""Follow one virtual address through the tables, as the CPU's table walk does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, bit
from ptinspect.arch.descriptor import Descriptor, Kind, decode
from ptinspect.arch.levels import level_name
from ptinspect.arch.permissions import Permissions, effective
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import MemoryReadError, UserError
from ptinspect.memory.source import PhysicalMemory, number_at

Outcome = Literal["mapped", "fault", "unreadable"]


@dataclass(frozen=True)
class Step:
    """Show one level of the walk."""

    level: int
    """Level of the table, -1 to 3."""
    name: str
    """Linux's name of the level: pgd, p4d, pud, pmd, pte."""
    table_pa: PhysAddr
    index: int
    """The slot that the address selects."""
    descriptor_pa: PhysAddr
    raw: int | None
    """The descriptor; None if it could not be read."""
    descriptor: Descriptor | None
    """The same decoded; None if it could not be read."""
    error: str = ""
    """Why it could not be read."""


@dataclass(frozen=True)
class Walk:
    """Hold the steps of one translation and where it ended."""

    va: VirtAddr
    root_pa: PhysAddr
    """The table at which the walk began."""
    steps: tuple[Step, ...]
    """One for each table that was looked at, the root first."""
    outcome: Outcome
    """Whether the address is mapped, faults, or leads to a table that cannot be read."""
    pa: PhysAddr | None = None
    """Where the address leads; None unless mapped."""
    fault_level: int | None = None
    """The level that the CPU would report for the fault; None unless it faults."""
    permissions: Permissions | None = None
    """What EL1 and EL0 may do, hierarchical bits included; None where no leaf was found."""
    reason: str = ""
    """Why it faults or cannot be read; empty if mapped."""

    @property
    def leaf(self) -> Descriptor | None:
        """The block or page descriptor at the end of the walk, if there is one."""
        last = self.steps[-1].descriptor if self.steps else None
        return last if last is not None and last.kind in (Kind.BLOCK, Kind.PAGE) else None


def walk(memory: PhysicalMemory, va: int, root_pa: int, regime: Regime, first: int | None = None) -> Walk:
    """Translate `va` with one read of eight bytes per level, from level `first` (None: the regime's) on.

    Works whether or not the MMU is on, at any exception level. An address that no half translates
    faults at the start level with no step taken. Memory that cannot be read is an outcome. Raises
    UserError if the address belongs to the other half, TargetError if the link to the guest failed.
    Source: Arm ARM D8.2 (translation process), D8.15 (translation, address size, Access flag faults).
    """
    start = VirtAddr(va & MASK64)
    if bit(start, 55) != regime.upper:
        half = "upper half, TTBR1" if regime.upper else "lower half, TTBR0"
        half = "EL2 has a lower half only" if regime.name == "EL2" else half
        raise UserError(f"{start:#x} is not translated by this root ({half})", "choose the other half's root")
    if not regime.contains(start):
        reason = f"translation fault: {start:#x} is outside both halves ({regime.va_bits}-bit addresses)"
        return _fault((start, root_pa, ()), regime.start_level, reason)
    steps: list[Step] = []
    table = PhysAddr(root_pa)
    for level in range(regime.start_level if first is None else first, LEVEL_LAST + 1):
        step = _step(memory, start, table, level, regime)
        steps.append(step)
        found = step.descriptor
        if found is None:
            return Walk(start, PhysAddr(root_pa), tuple(steps), "unreadable", reason=step.error)
        if found.kind is not Kind.TABLE or found.output_address is None:
            break
        wide = _too_wide(found.output_address, regime)
        if wide:
            return _fault((start, root_pa, steps), level, wide)
        table = found.output_address
    return _finish(start, root_pa, steps, regime)


def _finish(start: VirtAddr, root_pa: int, steps: list[Step], regime: Regime) -> Walk:
    """Judge the last descriptor of a walk that could read all of them."""
    last = steps[-1].descriptor
    assert last is not None
    level = last.level
    if last.kind not in (Kind.BLOCK, Kind.PAGE) or last.output_address is None:
        what = "a reserved encoding" if last.kind is Kind.RESERVED else "an invalid descriptor"
        return _fault((start, root_pa, steps), level, f"translation fault: {what} at level {level}")
    above = [s.descriptor for s in steps[:-1] if s.descriptor is not None]
    permissions = effective(last, above, regime)
    wide = _too_wide(last.output_address, regime)
    if wide:
        return _fault((start, root_pa, steps), level, wide, permissions)
    if regime.epd:
        register = f"{regime.register('TCR')}.EPD{int(regime.upper)}"
        reason = f"translation fault: {register} disables walks of this half"
        return _fault((start, root_pa, steps), 0, reason, permissions)
    if not last.raw >> 10 & 1 and not regime.ha:
        reason = f"Access flag fault: AF is clear at level {level}"
        return _fault((start, root_pa, steps), level, reason, permissions)
    offset = start & (regime.entry_size(level) - 1)
    pa = PhysAddr(last.output_address | offset)
    return Walk(start, PhysAddr(root_pa), tuple(steps), "mapped", pa=pa, permissions=permissions)


def _step(memory: PhysicalMemory, va: int, table: PhysAddr, level: int, regime: Regime) -> Step:
    """Read and decode the descriptor that `va` selects in one table."""
    index = regime.index(va, level)
    where = PhysAddr(table + 8 * index)
    name = level_name(level, regime)
    try:
        raw = number_at(memory, where)
    except MemoryReadError as error:
        return Step(level, name, table, index, where, None, None, error.message)
    return Step(level, name, table, index, where, raw, decode(raw, level, regime))


def _too_wide(address: int, regime: Regime) -> str:
    """Return the reason if an output address needs more bits than the regime has (address size fault)."""
    if address >> regime.pa_bits:
        return f"address size fault: {address:#x} needs more than {regime.pa_bits} bits"
    return ""


def _fault(
    path: tuple[VirtAddr, int, Sequence[Step]],
    level: int,
    reason: str,
    permissions: Permissions | None = None,
) -> Walk:
    va, root_pa, steps = path
    return Walk(va, PhysAddr(root_pa), tuple(steps), "fault", None, level, permissions, reason)
