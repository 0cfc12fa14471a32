"""One half of the EL1&0 stage-1 translation regime, as the registers describe it."""

from __future__ import annotations

from dataclasses import dataclass

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, bits, mask
from ptinspect.arch.sysregs import (
    PA_SIZES,
    CpuState,
    Tcr,
    decode_sctlr,
    decode_tcr,
    needed,
    translation_register,
)
from ptinspect.errors import RegimeError

LEVEL_LAST = 3
"""The level whose valid descriptors are pages (Arm ARM D8.2)."""


@dataclass(frozen=True)
class Regime:
    """Give the geometry and the controls of the half that one TTBR translates.

    The controls are those in effect, not the bits of TCR_EL1: `regime_from_registers` clamps them.
    Raises RegimeError on a geometry that the architecture does not have.
    Source: Arm ARM D8.2 (translation process), D8.3 (descriptor formats), TCR_EL1.
    """

    granule_bits: int
    """log2 of the granule: 12 (4K), 14 (16K) or 16 (64K)."""
    va_bits: int
    """Width of the input address: 64 - TxSZ."""
    pa_bits: int
    """Width of the output address: 32, 36, 40, 42, 44, 48, or 52 with the 64K granule or `ds`.

    An address that needs more bits is an address size fault.
    """
    upper: bool
    """True for the TTBR1 half (addresses that begin with ones)."""
    ds: bool = False
    """TCR_EL1.DS in effect (FEAT_LPA2, 4K and 16K granules): descriptors hold 52-bit addresses."""
    hpd: bool = False
    """TCR_EL1.HPDn: hierarchical permissions of table descriptors are ignored."""
    epd: bool = False
    """TCR_EL1.EPDn: walks of this half are disabled; every access faults at level 0."""
    e0pd: bool = False
    """TCR_EL1.E0PDn: EL0 accesses to this half always fault at level 0."""
    tbi: bool = False
    """TCR_EL1.TBIn: the top byte of an address is ignored."""
    ha: bool = False
    """TCR_EL1.HA: the CPU sets the Access flag."""
    hd: bool = False
    """TCR_EL1.HD with HA: the CPU manages the dirty state (DBM)."""
    wxn: bool = False
    """SCTLR_EL1.WXN: writable implies never executable."""
    mair: int = 0
    """MAIR_EL1, eight attribute bytes."""
    mmu_on: bool = True
    """SCTLR_EL1.M. Tables can be walked all the same when it is clear."""
    sh: int = 3
    """TCR_EL1.SHn: the shareability of leaves where descriptors have no SH field (LPA2)."""
    pa_max: int = 0
    """Width of the addresses that the CPU implements (PAMax); 0 if unknown, taken as `pa_bits`."""

    def __post_init__(self) -> None:
        if self.granule_bits not in (12, 14, 16):
            raise RegimeError(f"granule of 2^{self.granule_bits} bytes: not 4K, 16K or 64K")
        if self.ds and self.granule_bits == 16:
            raise RegimeError("TCR_EL1.DS has no effect with the 64K granule")
        if not (17 if self.granule_bits == 16 else 16) <= self.va_bits <= 52:
            raise RegimeError(f"{self.va_bits}-bit virtual addresses: not a size the architecture has")
        if self.pa_bits not in PA_SIZES:
            raise RegimeError(f"{self.pa_bits}-bit physical addresses: not a size the architecture has")
        widest = 52 if self.ds or self.granule_bits == 16 else 48
        if max(self.va_bits, self.pa_bits) > widest:
            raise RegimeError("addresses of more than 48 bits need the 64K granule or TCR_EL1.DS")

    @property
    def granule(self) -> int:
        """The granule in bytes: the size of a page and of a full table."""
        return 1 << self.granule_bits

    @property
    def stride(self) -> int:
        """Address bits that one full level resolves: 9 (4K), 11 (16K) or 13 (64K)."""
        return self.granule_bits - 3

    @property
    def levels(self) -> int:
        """The number of levels of lookup."""
        return -(-(self.va_bits - self.granule_bits) // self.stride)

    @property
    def start_level(self) -> int:
        """The level of the root table, -1 to 3 (Arm ARM D8.2, initial lookup level)."""
        return LEVEL_LAST + 1 - self.levels

    def shift(self, level: int) -> int:
        """Return log2 of the bytes that one entry at `level` maps."""
        return self.granule_bits + (LEVEL_LAST - level) * self.stride

    def entry_size(self, level: int) -> int:
        """Return the bytes of address space that one entry at `level` maps."""
        return 1 << self.shift(level)

    def entries(self, level: int) -> int:
        """Return the number of entries of a table at `level`; the root may be smaller than a granule."""
        if level == self.start_level:
            return 1 << (self.va_bits - self.shift(level))
        return 1 << self.stride

    def index(self, va: int, level: int) -> int:
        """Return the slot that `va` uses in its table at `level`."""
        return (va >> self.shift(level)) & (self.entries(level) - 1)

    @property
    def root_size(self) -> int:
        """The bytes of the root table: 16 to a granule."""
        return 8 * self.entries(self.start_level)

    @property
    def root_alignment(self) -> int:
        """What the root table's address is a multiple of: its size; at least 64 where TTBR[5:2] are address.

        Source: Arm ARM TTBR1_EL1.BADDR (the bits below are RES0 and not used).
        """
        return max(self.root_size, 64 if self.wide_oa else 0)

    @property
    def va_min(self) -> VirtAddr:
        """The lowest address of this half."""
        return VirtAddr((MASK64 << self.va_bits) & MASK64 if self.upper else 0)

    @property
    def va_max(self) -> VirtAddr:
        """The highest address of this half."""
        return VirtAddr(MASK64 if self.upper else mask(self.va_bits - 1, 0))

    def contains(self, va: int) -> bool:
        """Tell whether `va` is translated by this half, TBI considered."""
        if self.tbi:
            va = va | (0xFF << 56) if self.upper else va & mask(55, 0)
        return self.va_min <= va <= self.va_max

    def allows_block(self, level: int) -> bool:
        """Tell whether a block descriptor is legal at `level`.

        4K: levels 1 and 2, and 0 with DS; 16K: 2, and 1 with DS; 64K: 2, and 1 if PAMax is 52 (FEAT_LPA).
        Source: Arm ARM D8.3.1, pseudocode AArch64.BlockDescSupported().
        """
        widest = self.pa_max or self.pa_bits
        lowest = {12: 0 if self.ds else 1, 14: 1 if self.ds else 2, 16: 1 if widest >= 52 else 2}
        return lowest[self.granule_bits] <= level <= 2

    @property
    def wide_oa(self) -> bool:
        """True where address bits beyond 47 are out of line, in descriptors and in TTBR[5:2] (LPA, LPA2).

        64K and 52-bit output addresses: descriptor[15:12] hold bits 51:48. DS: descriptor[49:48] hold
        bits 49:48 and [9:8] hold bits 51:50, in place of SH (Arm ARM D8.3.1).
        """
        return self.ds or (self.granule_bits == 16 and self.pa_bits == 52)

    def output_address(self, raw: int, level: int) -> PhysAddr:
        """Return the output address of a block or page descriptor found at `level`."""
        return self._oa(raw, self.shift(level))

    def next_table(self, raw: int) -> PhysAddr:
        """Return the address of the table that a table descriptor points to."""
        return self._oa(raw, self.granule_bits)

    def _oa(self, raw: int, shift: int) -> PhysAddr:
        if self.ds:
            low = raw & mask(49, max(shift, 12))
            return PhysAddr(low | ((raw >> 8) & 3) << 50)
        low = raw & mask(47, shift)
        if self.wide_oa:
            return PhysAddr(low | ((raw >> 12) & 0xF) << 48)
        return PhysAddr(low)


def regime_from_registers(state: CpuState, upper: bool) -> Regime:
    """Return the half of the translation regime that the registers of a CPU describe.

    What the registers ask for is cut to what the CPU implements, as its ID registers tell; where the
    stub does not offer those, the registers are believed. TxSZ out of range takes the nearest size,
    which is one of the two things a CPU may do (the other is to fault at level 0).
    Raises RegimeError if a register is missing or the granule is reserved, as before the kernel sets it.
    Source: Arm ARM TCR_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1; pseudocode AArch64.PhysicalAddressSize(),
    AArch64.S1MinTxSZ(), AArch64.MaxTxSZ().
    """
    raw_tcr, raw_sctlr, mair = (needed(state, stem) for stem in ("TCR", "SCTLR", "MAIR"))
    tcr_name = translation_register(state, "TCR")
    tcr, sctlr = decode_tcr(raw_tcr), decode_sctlr(raw_sctlr)
    granule_bits = tcr.granule1_bits if upper else tcr.granule0_bits
    if not granule_bits:
        raise RegimeError(f"{tcr_name}={raw_tcr:#x}: reserved granule; the tables are not set up yet")
    mmfr0 = state.system.get("ID_AA64MMFR0_EL1")
    ds = tcr.ds and _has_lpa2(granule_bits, mmfr0)
    smallest, largest = _txsz_range(granule_bits, ds, state.system.get("ID_AA64MMFR2_EL1"))
    pa_max = 0 if mmfr0 is None else PA_SIZES[min(bits(mmfr0, 3, 0), len(PA_SIZES) - 1)]
    return Regime(
        granule_bits=granule_bits,
        va_bits=64 - min(max(tcr.t1sz if upper else tcr.t0sz, smallest), largest),
        pa_bits=_pa_bits(tcr, 52 if ds or granule_bits == 16 else 48, pa_max),
        upper=upper,
        ds=ds,
        hpd=tcr.hpd1 if upper else tcr.hpd0,
        epd=tcr.epd1 if upper else tcr.epd0,
        e0pd=tcr.e0pd1 if upper else tcr.e0pd0,
        tbi=tcr.tbi1 if upper else tcr.tbi0,
        ha=tcr.ha,
        hd=tcr.ha and tcr.hd,
        wxn=sctlr.wxn,
        mair=mair,
        mmu_on=sctlr.m,
        sh=tcr.sh1 if upper else tcr.sh0,
        pa_max=pa_max,
    )


def _has_lpa2(granule_bits: int, mmfr0: int | None) -> bool:
    """Tell whether TCR_EL1.DS can take effect: ID_AA64MMFR0_EL1.TGran4 is 1, .TGran16 is 2 or more."""
    if granule_bits == 16:
        return False
    if mmfr0 is None:
        return True
    return bits(mmfr0, 31, 28) == 1 if granule_bits == 12 else bits(mmfr0, 23, 20) >= 2


def _txsz_range(granule_bits: int, ds: bool, mmfr2: int | None) -> tuple[int, int]:
    """Return the smallest and the largest TxSZ that the CPU takes.

    12 with DS, and with 64K and FEAT_LVA (ID_AA64MMFR2_EL1.VARange), else 16; 48 (64K: 47) with
    FEAT_TTST (ID_AA64MMFR2_EL1.ST), else 39.
    """
    lva = mmfr2 is None or bits(mmfr2, 19, 16) > 0
    ttst = mmfr2 is None or bits(mmfr2, 31, 28) > 0
    smallest = 12 if ds or (granule_bits == 16 and lva) else 16
    return smallest, (47 if granule_bits == 16 else 48) if ttst else 39


def _pa_bits(tcr: Tcr, widest: int, pa_max: int) -> int:
    """Return the output address width that IPS asks for, cut to the format's and to the CPU's."""
    return min(tcr.pa_bits, widest, pa_max or widest)
