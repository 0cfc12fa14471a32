"""One half of a stage 1 translation regime, EL1&0, EL2&0 or EL2, as the registers describe it."""

from __future__ import annotations

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, align_down, bit, bits, mask
from ptinspect.arch.sysregs import (
    PA_SIZES,
    CpuState,
    RegimeName,
    Tcr,
    decode_sctlr,
    decode_tcr,
    decode_tcr2,
    decode_tcr_el2,
    kernel_regime,
    needed,
    register_of_regime,
    ttbr_base,
)
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import RegimeError

LEVEL_LAST = 3
"""The level whose valid descriptors are pages (Arm ARM D8.2)."""

NO_UPPER_HALF = "the EL2 regime has no upper half: HCR_EL2.E2H is 0"


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
    """Hierarchical permissions of tables are ignored: TCR_EL1.HPDn, PIE or POE (R_JHSVW, R_BVXDG)."""
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
    name: RegimeName = "EL1&0"
    """The regime of the root: who uses the table, and at how many levels of privilege."""
    pie: bool = False
    """TCR2_EL1.PIE: permissions are indirect (FEAT_S1PIE), and the bits of a leaf are an index."""
    pir: int = 0
    """PIR_EL1: sixteen fields of four bits, what the privileged level may do."""
    pire0: int = 0
    """PIRE0_EL1: the same for EL0."""
    poe: bool = False
    """TCR2_EL1.POE: `por` takes permissions away from the privileged level (FEAT_S1POE)."""
    e0poe: bool = False
    """TCR2_EL1.E0POE: `por0` takes permissions away from EL0."""
    por: int = 0
    """POR_EL1: sixteen fields of four bits."""
    por0: int = 0
    """POR_EL0; the kernel changes it with the task."""
    aie: bool = False
    """TCR2_EL1.AIE: bit 59 of a leaf is AttrIndx[3] (FEAT_AIE)."""
    mair2: int = 0
    """MAIR2_EL1, attribute bytes 8 to 15."""
    pnch: bool = False
    """TCR2_EL1.PnCH: bit 52 of a leaf is the Protected attribute, and no contiguous hint."""
    nv1: bool = False
    """HCR_EL2.NV and NV1: a hypervisor's tables at EL1; bit 54 is PXN, and EL0 has no access (FEAT_NV)."""
    doubt: str = ""
    """Why the permissions may be others than these; empty if nothing is in the way of knowing them."""

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
        if self.upper and self.name == "EL2":
            raise RegimeError(NO_UPPER_HALF)
        if max(self.va_bits, self.pa_bits) > widest:
            raise RegimeError("addresses of more than 48 bits need the 64K granule or TCR_EL1.DS")

    @property
    def privileged(self) -> str:
        """The level of privilege above EL0: EL1 or EL2."""
        return "EL1" if self.name == "EL1&0" else "EL2"

    def register(self, stem: str) -> str:
        """Return the name of a translation register of this regime: `TCR_EL1` for `TCR`."""
        return register_of_regime(self.name, stem)

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

    def table_span(self, level: int) -> int:
        """Return the bytes of address space that a table at `level` maps."""
        return self.entries(level) << self.shift(level)

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

    def address_fields(self, shift: int) -> tuple[tuple[int, int], ...]:
        """Return the fields of a descriptor that hold an address, a multiple of 1 << `shift`.

        Each is a mask of descriptor bits, and by how many bits they move up to their place in the address.
        """
        if self.ds:
            return (mask(49, max(shift, 12)), 0), (mask(9, 8), 42)
        return ((mask(47, shift), 0), (mask(15, 12), 36)) if self.wide_oa else ((mask(47, shift), 0),)

    def output_address(self, raw: int, level: int) -> PhysAddr:
        """Return the output address of a block or page descriptor found at `level`."""
        return PhysAddr(sum((raw & bits) << up for bits, up in self.address_fields(self.shift(level))))

    def next_table(self, raw: int) -> PhysAddr:
        """Return the address of the table that a table descriptor points to."""
        return PhysAddr(sum((raw & bits) << up for bits, up in self.address_fields(self.granule_bits)))


def regime_from_registers(state: CpuState, upper: bool, name: RegimeName | None = None) -> Regime:
    """Return the half of a translation regime that the registers of a CPU describe; by default the kernel's.

    What the registers ask for is cut to what the CPU implements, according to its ID registers; where the
    stub does not offer those, the registers are believed. TxSZ out of range takes the nearest size,
    which is one of the two things a CPU may do (the other is to fault at level 0).
    Raises RegimeError if a register is missing, the granule is reserved, as before the kernel sets it, or
    descriptors have 128 bits.
    Source: Arm ARM TCR_EL1, TCR_EL2, ID_AA64MMFR0_EL1 to 2; pseudocode AArch64.PhysicalAddressSize(),
    AArch64.S1MinTxSZ(), AArch64.MaxTxSZ(), AArch64.GetS1TTWParams().
    """
    name = name or kernel_regime(state)
    if upper and name == "EL2":
        raise RegimeError(NO_UPPER_HALF)
    raw_tcr, raw_sctlr = needed(state, "TCR", name), needed(state, "SCTLR", name)
    early = not bit(raw_sctlr, 0) and register_of_regime(name, "MAIR") in state.unwritten
    mair = 0 if early else needed(state, "MAIR", name)  # without the MMU it has no effect
    tcr_name = register_of_regime(name, "TCR")
    tcr, sctlr = decode_tcr_el2(raw_tcr) if name == "EL2" else decode_tcr(raw_tcr), decode_sctlr(raw_sctlr)
    granule_bits = tcr.granule1_bits if upper else tcr.granule0_bits
    if not granule_bits:
        raise RegimeError(f"{tcr_name}={raw_tcr:#x}: reserved granule; the tables are not set up yet")
    mmfr0, mmfr1, mmfr2 = (state.system.get(f"ID_AA64MMFR{n}_EL1") for n in range(3))
    ds = tcr.ds and _has_lpa2(granule_bits, mmfr0)
    smallest, largest = _txsz_range(granule_bits, ds, mmfr2)
    pa_max = 0 if mmfr0 is None else PA_SIZES[min(bits(mmfr0, 3, 0), len(PA_SIZES) - 1)]
    ha = tcr.ha and (mmfr1 is None or bits(mmfr1, 3, 0) >= 1)
    e0pd = tcr.e0pd1 if upper else tcr.e0pd0
    found = Regime(
        granule_bits=granule_bits,
        va_bits=64 - min(max(tcr.t1sz if upper else tcr.t0sz, smallest), largest),
        pa_bits=_pa_bits(tcr, 52 if ds or granule_bits == 16 else 48, pa_max),
        upper=upper,
        ds=ds,
        hpd=tcr.hpd1 if upper else tcr.hpd0,
        epd=tcr.epd1 if upper else tcr.epd0,
        e0pd=e0pd and (mmfr2 is None or bits(mmfr2, 63, 60) >= 1),
        tbi=tcr.tbi1 if upper else tcr.tbi0,
        ha=ha,
        hd=ha and tcr.hd and (mmfr1 is None or bits(mmfr1, 3, 0) >= 2),
        wxn=sctlr.wxn,
        mair=mair,
        mmu_on=sctlr.m,
        sh=tcr.sh1 if upper else tcr.sh0,
        pa_max=pa_max,
        name=name,
        nv1=name == "EL1&0" and bits(state.system.get("HCR_EL2", 0), 43, 42) == 3,
    )
    return _with_tcr2(found, state)


def root_pa(state: CpuState, regime: Regime) -> PhysAddr:
    """Return the table address in the TTBR of the half that `regime` describes, aligned as the CPU does.

    Raises RegimeError if the register is not known. Source: Arm ARM AArch64.TTBaseAddress().
    """
    ttbr = needed(state, "TTBR1" if regime.upper else "TTBR0", regime.name)
    return PhysAddr(align_down(ttbr_base(ttbr, pa52=regime.wide_oa), regime.root_alignment))


def _with_tcr2(regime: Regime, state: CpuState) -> Regime:
    """Add what TCR2 of a regime switches on, with the registers that it needs; without them, note the doubt.

    Source: Arm ARM TCR2_EL1, TCR2_EL2, PIR_EL1, POR_EL1, MAIR2_EL1; pseudocode IsTCR2EL1Enabled(),
    AArch64.S1POEnabled(), AArch64.S1E0POEnabled().
    """
    system, tcr2_name = state.system, regime.register("TCR2")
    if tcr2_name not in system:
        why = "was never written" if tcr2_name in state.unwritten else "not readable"
        doubt = f"permissions by the direct bits; {tcr2_name} {why}" if may_be_indirect(state) else ""
        return replace(regime, doubt=doubt)
    tcr2 = decode_tcr2(system[tcr2_name] if _tcr2_enabled(state, regime.name) else 0)
    if tcr2.d128:
        raise RegimeError(f"{tcr2_name}.D128: descriptors of 128 bits are not known here")
    alone = regime.name == "EL2" or regime.nv1
    wanted = {
        "pir": (tcr2.pie, regime.register("PIR")),
        "pire0": (tcr2.pie and not alone, regime.register("PIRE0")),
        "por": (tcr2.poe, regime.register("POR")),
        "por0": (tcr2.e0poe and not alone, "POR_EL0"),
        "mair2": (tcr2.aie, regime.register("MAIR2")),
    }
    missing = [register for used, register in wanted.values() if used and register not in system]
    doubt = f"{tcr2_name}={system[tcr2_name]:#x}, but not readable: {', '.join(missing)}" if missing else ""
    value = {field: system.get(register, 0) if used else 0 for field, (used, register) in wanted.items()}
    if not bit(system.get("SCR_EL3", 1 << 45), 45):
        value |= {"pir": 0, "pire0": 0}
    return replace(
        regime,
        hpd=regime.hpd or tcr2.pie or tcr2.poe or tcr2.e0poe,
        pie=tcr2.pie,
        poe=tcr2.poe,
        e0poe=tcr2.e0poe and not alone,
        aie=tcr2.aie,
        pnch=tcr2.pnch,
        doubt=doubt,
        pir=value["pir"],
        pire0=value["pire0"],
        por=value["por"],
        por0=value["por0"],
        mair2=value["mair2"],
    )


def _tcr2_enabled(state: CpuState, name: RegimeName) -> bool:
    """Tell whether TCR2 has effect: SCR_EL3.TCR2En, and for TCR2_EL1 HCRX_EL2.TCR2En, can switch it off.

    QEMU 11 offers HCRX_EL2 of a CPU that has no EL2, but not HCR_EL2 (target/arm/helper.c).
    """
    system = state.system
    if not bit(system.get("SCR_EL3", 1 << 43), 43):
        return False
    return name != "EL1&0" or "HCR_EL2" not in system or bit(system.get("HCRX_EL2", 1 << 14), 14)


def may_be_indirect(state: CpuState) -> bool:
    """Tell whether the CPU may have FEAT_S1PIE, as far as its ID registers show.

    ID_AA64MMFR3_EL1.S1PIE decides; without it, a CPU without FEAT_E0PD is older than Armv8.5, and FEAT_S1PIE
    came with Armv8.8 (Arm ARM, ID_AA64MMFR2_EL1.E0PD).
    """
    mmfr3, mmfr2 = (state.system.get(f"ID_AA64MMFR{n}_EL1") for n in (3, 2))
    if mmfr3 is not None:
        return bits(mmfr3, 11, 8) > 0
    return mmfr2 is None or bits(mmfr2, 63, 60) > 0


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
