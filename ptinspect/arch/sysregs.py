"""Registers of a CPU under the names of the Arm ARM, and their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptinspect.arch.bits import PhysAddr, bits

ALIASES: Mapping[str, tuple[str, ...]] = {
    "SCTLR_EL1": ("SCTLR_EL1", "SCTLR"),
    "VBAR_EL1": ("VBAR_EL1", "VBAR"),
    "CPACR_EL1": ("CPACR_EL1", "CPACR"),
    "CNTKCTL_EL1": ("CNTKCTL_EL1", "CNTKCTL"),
    "AMAIR_EL1": ("AMAIR_EL1", "AMAIR0"),
}
"""Arm ARM name -> the names that gdbstubs use, best first. Others are spelled as in the Arm ARM.

Source: QEMU target/arm/helper.c: no suffix up to 10.1, _EL1 from 10.2 on.
"""

SYSTEM_REGISTERS: tuple[str, ...] = (
    "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "SCTLR_EL1", "VBAR_EL1", "ESR_EL1", "FAR_EL1",
    "ELR_EL1", "SPSR_EL1", "SP_EL0", "SP_EL1", "TPIDR_EL0", "TPIDR_EL1", "TPIDRRO_EL0", "CONTEXTIDR_EL1",
    "ID_AA64MMFR0_EL1", "ID_AA64MMFR1_EL1", "ID_AA64MMFR2_EL1", "ID_AA64PFR0_EL1", "HCR_EL2",
    "TTBR0_EL2", "TTBR1_EL2", "TCR_EL2", "MAIR_EL2", "SCTLR_EL2", "VBAR_EL2", "ESR_EL2", "FAR_EL2",
    "ELR_EL2", "SPSR_EL2", "TPIDR_EL2",
)  # fmt: skip
"""What is read at every stop; those that a stub does not offer are left out of the state."""


@dataclass(frozen=True)
class CpuState:
    """Hold the registers of one stopped CPU."""

    cpu: int
    """Index from 0; GDB's thread number minus one."""
    x: tuple[int, ...]
    """x0 to x30."""
    sp: int
    """The stack pointer in use (SP_EL0 or SP_ELn by SPSel); SP_EL1 may be stale."""
    pc: int
    """The program counter: a physical address while the identity map runs."""
    pstate: int
    """CPSR as the gdbstub gives it: NZCV, DAIF, EL and SPSel."""
    system: Mapping[str, int]
    """System registers under their Arm ARM names; one that the stub lacks is absent."""

    @property
    def el(self) -> int:
        """The exception level, PSTATE[3:2]."""
        return bits(self.pstate, 3, 2)


def ttbr_base(ttbr: int, *, pa52: bool = False) -> PhysAddr:
    """Return the table address in a TTBR: ASID [63:48] and CnP [0] removed.

    With 52-bit addresses TTBR[5:2] hold address bits [51:48] (Arm ARM TTBR1_EL1.BADDR).
    """
    if pa52:
        return PhysAddr((ttbr & 0x0000_FFFF_FFFF_FFC0) | bits(ttbr, 5, 2) << 48)
    return PhysAddr(ttbr & 0x0000_FFFF_FFFF_FFFE)
