"""One half of the EL1&0 stage-1 translation regime, as the registers describe it."""

from __future__ import annotations

from dataclasses import dataclass

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, bits, mask
from ptinspect.arch.sysregs import CpuState, decode_sctlr, decode_tcr, translation_register
from ptinspect.errors import RegimeError

LEVEL_LAST = 3
"""The level whose valid descriptors are pages (Arm ARM D8.2)."""


@dataclass(frozen=True)
class Regime:
    """Give the geometry and the controls of the half that one TTBR translates.

    Raises RegimeError on a geometry that the architecture does not have.
    Source: Arm ARM D8.2 (translation process), D8.3 (descriptor formats), TCR_EL1.
    """

    granule_bits: int
    """log2 of the granule: 12 (4K), 14 (16K) or 16 (64K)."""
    va_bits: int
    """Width of the input address: 64 - TxSZ."""
    pa_bits: int
    """Width of the output address: 32, 36, 40, 42, 44, 48 or 52."""
    upper: bool
    """True for the TTBR1 half (addresses that begin with ones)."""
    ds: bool = False
    """TCR_EL1.DS in effect (FEAT_LPA2): 52-bit output addresses with 4K and 16K granules."""
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
    """TCR_EL1.HD: the CPU manages the dirty state (DBM)."""
    wxn: bool = False
    """SCTLR_EL1.WXN: writable implies never executable."""
    mair: int = 0
    """MAIR_EL1, eight attribute bytes."""
    mmu_on: bool = True
    """SCTLR_EL1.M. Tables can be walked all the same when it is clear."""
    sh: int = 3
    """TCR_EL1.SHn: the shareability of leaves where descriptors have no SH field (LPA2)."""

    def __post_init__(self) -> None:
        if self.granule_bits not in (12, 14, 16):
            raise RegimeError(f"granule of 2^{self.granule_bits} bytes: not 4K, 16K or 64K")
        if not 12 < self.va_bits <= 55 or self.va_bits <= self.granule_bits:
            raise RegimeError(f"{self.va_bits}-bit virtual addresses: not a size the architecture has")

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
        """The level of the root table: -1 to 3 (Arm ARM D8.2.x, initial lookup level)."""
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
        """Tell whether a block descriptor is legal at `level` (Arm ARM D8.3.1, table of block sizes)."""
        lowest = {12: 0 if self.ds else 1, 14: 1 if self.ds else 2, 16: 1 if self.pa_bits == 52 else 2}
        return lowest[self.granule_bits] <= level <= 2

    @property
    def wide_oa(self) -> bool:
        """True where descriptors carry output address bits 51:48 out of line (LPA with 64K, or LPA2)."""
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

    TxSZ and IPS outside what the CPU supports take the nearest value that it does, as the Arm ARM
    asks for (D8.2.3, D8.2.4). Raises RegimeError if a register is missing or the granule is reserved.
    """
    tcr_name = translation_register(state, "TCR")
    try:
        raw_tcr, raw_sctlr = state.system[tcr_name], state.system[translation_register(state, "SCTLR")]
        mair = state.system[translation_register(state, "MAIR")]
    except KeyError as error:
        raise RegimeError(
            f"the gdbstub does not offer {error.args[0]}", "is this QEMU, and an arm64 CPU?"
        ) from None
    tcr, sctlr = decode_tcr(raw_tcr), decode_sctlr(raw_sctlr)
    granule_bits = tcr.granule1_bits if upper else tcr.granule0_bits
    if not granule_bits:
        raise RegimeError(f"{tcr_name}={raw_tcr:#x}: reserved granule; the tables are not set up yet")
    mmfr2 = state.system.get("ID_AA64MMFR2_EL1", 0)
    ds = tcr.ds and granule_bits != 16
    smallest = 12 if ds or (granule_bits == 16 and bits(mmfr2, 19, 16)) else 16
    largest = (47 if granule_bits == 16 else 48) if bits(mmfr2, 31, 28) else 39
    size = min(max(tcr.t1sz if upper else tcr.t0sz, smallest), largest)
    pa_bits = tcr.pa_bits
    if not (ds or granule_bits == 16):
        pa_bits = min(pa_bits, 48)
    return Regime(
        granule_bits=granule_bits,
        va_bits=64 - size,
        pa_bits=pa_bits,
        upper=upper,
        ds=ds,
        hpd=tcr.hpd1 if upper else tcr.hpd0,
        epd=tcr.epd1 if upper else tcr.epd0,
        e0pd=tcr.e0pd1 if upper else tcr.e0pd0,
        tbi=tcr.tbi1 if upper else tcr.tbi0,
        ha=tcr.ha,
        hd=tcr.hd,
        wxn=sctlr.wxn,
        mair=mair,
        mmu_on=sctlr.m,
        sh=tcr.sh1 if upper else tcr.sh0,
    )
