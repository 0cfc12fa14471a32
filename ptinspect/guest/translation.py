"""What the translation registers of a CPU mean, and which tables they hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ptinspect.arch.regime import Regime, regime_from_registers, root_pa
from ptinspect.arch.sysregs import CpuState, RegimeName, kernel_regime, regime_at_el2, register_of_regime
from ptinspect.errors import PtinspectError, RegimeError
from ptinspect.guest.guest import Guest


@dataclass(frozen=True)
class Half:
    """A TTBR, what it means, and what it holds."""

    register: str
    """Its name: `TTBR0_EL1`."""
    regime: Regime | RegimeError
    """The half that it translates, or why it makes no sense."""
    holds: str = ""
    """What the table is, as far as something shows it; else empty."""
    reason: str = ""
    """What shows it."""


@dataclass(frozen=True)
class Halves:
    """The TTBRs of a CPU."""

    lower: Half
    """TTBR0 of the kernel's regime."""
    upper: Half
    """TTBR1 of the kernel's regime."""
    el2: Half | None
    """TTBR0_EL2 where EL2 has a regime of its own, and tables; else None."""

    @property
    def all(self) -> tuple[Half, ...]:
        """Those that there are."""
        return (self.lower, self.upper, *([self.el2] if self.el2 else []))


def halves_of(state: CpuState, guest: Guest | None = None) -> Halves:
    """Return what the TTBRs of a CPU mean; of a CPU of the stopped `guest`, what they hold too."""
    name = kernel_regime(state)
    lower, upper = _half(state, name, False), _half(state, name, True)
    if guest is not None:
        lower, upper = _holding(guest, state, lower), _holding(guest, state, upper)
    own = "TCR_EL2" in state.system and regime_at_el2(state) == "EL2" and state.system.get("TTBR0_EL2")
    return Halves(lower, upper, _half(state, "EL2", False) if own else None)


def _half(state: CpuState, name: RegimeName, upper: bool) -> Half:
    register = register_of_regime(name, "TTBR1" if upper else "TTBR0")
    try:
        return Half(register, regime_from_registers(state, upper, name))
    except RegimeError as error:
        return Half(register, error)


def _holding(guest: Guest, state: CpuState, half: Half) -> Half:
    """Add what a register of the guest holds, as far as something shows it."""
    from ptinspect.linux.running.ttbr import lower_role, ttbr1_role

    if isinstance(half.regime, RegimeError):
        return half
    try:
        if half.regime.upper:
            role = ttbr1_role(guest.view, state)
            return half if role.name == "unknown" else replace(half, holds=role.name, reason=role.reason)
        found = lower_role(guest.view, state, root_pa(state, half.regime))
        return replace(half, holds=found.holds, reason=found.reason)
    except PtinspectError:
        return half
