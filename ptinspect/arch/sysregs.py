"""Registers of a CPU under the names of the Arm ARM, and their fields."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.arch.bits import PhysAddr, bit, bits
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import RegimeError
from ptinspect.typed import Literal

ALIASES: Mapping[str, tuple[str, ...]] = {
    "SCTLR_EL1": ("SCTLR_EL1", "SCTLR"),
    "VBAR_EL1": ("VBAR_EL1", "VBAR"),
    "CPACR_EL1": ("CPACR_EL1", "CPACR"),
    "CNTKCTL_EL1": ("CNTKCTL_EL1", "CNTKCTL"),
    "AMAIR_EL1": ("AMAIR_EL1", "AMAIR0"),
    "ID_AA64MMFR3_EL1": ("ID_AA64MMFR3_EL1", "ID_AA64MMFR3_EL1_RESERVED"),
}
"""Arm ARM name -> the names that gdbstubs use, best first. Others are spelled as in the Arm ARM.

Source: QEMU target/arm/helper.c: no suffix up to 10.1, _EL1 from 10.2 on; _RESERVED while no field of
ID_AA64MMFR3_EL1 was known.
"""

SYSTEM_REGISTERS: tuple[str, ...] = (
    "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "SCTLR_EL1", "VBAR_EL1", "ESR_EL1", "FAR_EL1",
    "ELR_EL1", "SPSR_EL1", "SP_EL0", "SP_EL1", "TPIDR_EL0", "TPIDR_EL1", "TPIDRRO_EL0", "CONTEXTIDR_EL1",
    "ID_AA64MMFR0_EL1", "ID_AA64MMFR1_EL1", "ID_AA64MMFR2_EL1", "ID_AA64PFR0_EL1", "HCR_EL2",
    "ID_AA64MMFR3_EL1", "TCR2_EL1", "PIR_EL1", "PIRE0_EL1", "POR_EL0", "POR_EL1", "MAIR2_EL1",
    "TCR2_EL2", "PIR_EL2", "PIRE0_EL2", "POR_EL2", "MAIR2_EL2", "HCRX_EL2", "SCR_EL3",
    "TTBR0_EL2", "TTBR1_EL2", "TCR_EL2", "MAIR_EL2", "SCTLR_EL2", "VBAR_EL2", "ESR_EL2", "FAR_EL2",
    "ELR_EL2", "SPSR_EL2", "TPIDR_EL2",
)  # fmt: skip
"""What is read at every stop; those that a stub does not offer are left out of the state."""
UNWRITTEN = 0x1DE7_EC7E_DBAD_C0DE
"""What KVM gives for a system register that the guest has never written: poison, no data.

Source: Linux arch/arm64/kvm/sys_regs.h, reset_unknown().
"""


@dataclass(frozen=True)
class CpuState:
    """Hold the registers of one stopped CPU; those that are not what they seem are put right.

    A stub gives what is banked: of the stack pointers, the one in use is stale there while SP holds it.
    """

    cpu: int
    """Index from 0; GDB's thread number minus one."""
    x: tuple[int, ...]
    """x0 to x30."""
    sp: int
    """The stack pointer in use, which is SP_EL0 or SP_ELn by PSTATE.SP."""
    pc: int
    """The program counter: a physical address while the identity map runs."""
    pstate: int
    """CPSR as the gdbstub gives it: NZCV, DAIF, EL and SPSel."""
    system: Mapping[str, int]
    """System registers under their Arm ARM names; without those that the stub lacks, or that nobody wrote."""
    unwritten: tuple[str, ...] = ()
    """System registers that the guest has never written, as KVM marks them (UNWRITTEN)."""

    def __post_init__(self) -> None:
        """Leave out what was never written, and put the live SP in its place."""
        never = tuple(name for name, value in self.system.items() if value == UNWRITTEN)
        live = self.live_sp
        stale = live in self.system and self.system[live] != self.sp
        if never or stale:
            system = {name: value for name, value in self.system.items() if name not in never}
            object.__setattr__(self, "system", system | ({live: self.sp} if live in self.system else {}))
            object.__setattr__(self, "unwritten", (*self.unwritten, *never))

    @property
    def live_sp(self) -> str:
        """Name of the register that SP is: SP_EL0, or that of the exception level; empty in AArch32.

        Source: Arm ARM D1.2.2 (stack pointer selection); QEMU's SP_ELx are env->sp_el[], written when
        the bank changes (target/arm/internals.h, aarch64_save_sp).
        """
        if self.aarch32:
            return ""
        return f"SP_EL{self.el if bit(self.pstate, 0) else 0}"

    @property
    def el(self) -> int:
        """The exception level, PSTATE[3:2]."""
        return bits(self.pstate, 3, 2)

    @property
    def aarch32(self) -> bool:
        """Whether the CPU runs a 32-bit process, PSTATE.nRW."""
        return bool(bit(self.pstate, 4))


def ttbr_base(ttbr: int, *, pa52: bool = False) -> PhysAddr:
    """Return the table address in a TTBR: ASID [63:48] and CnP [0] removed.

    With 52-bit addresses TTBR[5:2] hold address bits [51:48] (Arm ARM TTBR1_EL1.BADDR). Bits that are
    RES0 because of the root table's size are left in; `root_pa` removes them.
    """
    if pa52:
        return PhysAddr((ttbr & 0x0000_FFFF_FFFF_FFC0) | bits(ttbr, 5, 2) << 48)
    return PhysAddr(ttbr & 0x0000_FFFF_FFFF_FFFE)


RegimeName = Literal["EL1&0", "EL2&0", "EL2"]
"""A stage 1 translation regime of a kernel or a hypervisor (Arm ARM D8.1.2)."""


def kernel_regime(state: CpuState) -> RegimeName:
    """Return the regime that runs the kernel: EL2&0 where it uses VHE, else EL1&0.

    A kernel with VHE runs at EL2 with HCR_EL2.E2H (bit 34) set, its processes at EL0 with TGE (bit 27),
    and both use the _EL2 registers; the _EL1 ones are then a guest's (Arm ARM D8.1.2).
    """
    hcr = state.system.get("HCR_EL2", 0)
    vhe = bit(hcr, 34) and (state.el == 2 or (state.el == 0 and bit(hcr, 27)))
    return "EL2&0" if vhe else "EL1&0"


def current_regime(state: CpuState) -> RegimeName:
    """Return the regime in which a CPU runs: the kernel's, or EL2's own (HCR_EL2.E2H is 0)."""
    return regime_at_el2(state) if state.el == 2 else kernel_regime(state)


def regime_at_el2(state: CpuState) -> RegimeName:
    """Return the regime that the _EL2 registers describe: EL2&0 with HCR_EL2.E2H, else EL2."""
    return "EL2&0" if bit(state.system.get("HCR_EL2", 0), 34) else "EL2"


def register_of_regime(name: RegimeName, stem: str) -> str:
    """Return the name of a translation register of a regime: `TCR_EL2` for `TCR` of EL2&0."""
    return f"{stem}_EL1" if name == "EL1&0" else f"{stem}_EL2"


def translation_register(state: CpuState, stem: str) -> str:
    """Return the name of a translation register of the regime that runs the kernel."""
    return register_of_regime(kernel_regime(state), stem)


def needed(state: CpuState, stem: str, regime: RegimeName | None = None) -> int:
    """Return a translation register of a regime, by default of the kernel's.

    Raises RegimeError if the stub lacks it, or it was never written.
    """
    name = register_of_regime(regime or kernel_regime(state), stem)
    if name in state.unwritten:
        raise RegimeError(f"{name} was never written", "let the guest run until it has set up its tables")
    if name not in state.system:
        hint = "has this CPU an EL2? launch --machine virt,virtualization=on" if name.endswith("_EL2") else ""
        raise RegimeError(f"the gdbstub does not offer {name}", hint or "is this QEMU, and an arm64 CPU?")
    return state.system[name]


def remarks(state: CpuState) -> Mapping[str, str]:
    """Return what has to be known of registers that are easily misread: name -> remark."""
    found = dict.fromkeys(state.unwritten, "never written")
    if state.live_sp in state.system:
        found[state.live_sp] = "in use: this is sp; a stub's own value of it is stale"
    level = translation_register(state, "ELR")[4:]
    for stem in ("ELR", "SPSR", "ESR", "FAR"):
        if f"{stem}_{level}" in state.system:
            found[f"{stem}_{level}"] = "of the last exception, which may be over"
    if state.system.get(tcr := f"TCR_{level}") == 0:
        found[tcr] = "0: translation is not set up yet"
    return found


_DEVICE = ("nGnRnE", "nGnRE", "nGRE", "GRE")
_SPECIAL_TYPES = {
    0x40: ("NC", "Normal NC XS=0"),
    0xA0: ("WT", "Normal WT RA XS=0"),
    0xF0: ("WB", "Normal Tagged WB"),
}
"""Bytes whose halves do not mean what they do elsewhere (FEAT_XS, FEAT_MTE2): cacheability and name."""


def mair_type_name(byte: int) -> str:
    """Name the memory type of one MAIR attribute byte: `Normal WB`, `Normal NC`, `Device-nGnRE`.

    WB and WT alone allocate on reads and writes, and are not transient.
    Source: Arm ARM MAIR_EL1, Attr<n> encodings.
    """
    if byte in _SPECIAL_TYPES:
        return _SPECIAL_TYPES[byte][1]
    if byte >> 4 == 0:
        if byte & 2:
            return f"reserved ({byte:#04x})"
        return f"Device-{_DEVICE[byte >> 2]}" + (" XS=0" if byte & 1 else "")
    if byte & 0xF == 0:
        return f"reserved ({byte:#04x})"
    outer, inner = _cache_policy(byte >> 4), _cache_policy(byte & 0xF)
    return f"Normal {outer}" if outer == inner else f"Normal outer {outer}, inner {inner}"


def cacheability(byte: int) -> tuple[str, str]:
    """Return outer and inner cacheability, NC, WT or WB, that a MAIR attribute byte gives Normal memory."""
    if byte in _SPECIAL_TYPES:
        return (_SPECIAL_TYPES[byte][0],) * 2
    return _cacheability(byte >> 4), _cacheability(byte & 0xF)


def _cacheability(nibble: int) -> str:
    return "NC" if nibble == 0b0100 else "WB" if nibble & 0b0100 else "WT"


def _cache_policy(nibble: int) -> str:
    kind = _cacheability(nibble)
    if kind == "NC":
        return kind
    transient = " transient" if nibble >> 3 == 0 else ""
    hints = {0b00: " no-allocate", 0b01: " WA", 0b10: " RA", 0b11: ""}[nibble & 3]
    return kind + hints + transient


def decode_mair(mair: int) -> tuple[str, ...]:
    """Return the memory types of the eight attribute bytes, index 0 first."""
    return tuple(mair_type_name((mair >> 8 * i) & 0xFF) for i in range(8))


PA_SIZES = (32, 36, 40, 42, 44, 48, 52)
"""Address widths by the encoding of TCR_EL1.IPS and ID_AA64MMFR0_EL1.PARange."""


@dataclass(frozen=True)
class Tcr:
    """Give the fields of TCR_EL1; sizes as the register has them (Arm ARM TCR_EL1)."""

    t0sz: int
    """64 minus the VA bits of the lower half."""
    t1sz: int
    """64 minus the VA bits of the upper half."""
    epd0: bool
    """Walks of the lower half are disabled."""
    epd1: bool
    """Walks of the upper half are disabled."""
    granule0_bits: int
    """log2 of the lower half's granule; 0 for the reserved encoding."""
    granule1_bits: int
    """log2 of the upper half's granule; 0 for the reserved encoding."""
    sh0: int
    """Shareability of walks of the lower half."""
    sh1: int
    """Shareability of walks of the upper half."""
    a1: bool
    """The ASID is taken from TTBR1."""
    ips: int
    """Encoded output address size."""
    asid16: bool
    """AS: 16-bit ASIDs."""
    tbi0: bool
    """Top byte of lower addresses ignored."""
    tbi1: bool
    """Top byte of upper addresses ignored."""
    ha: bool
    """Hardware sets the Access flag."""
    hd: bool
    """Hardware manages the dirty state."""
    hpd0: bool
    """Hierarchical permissions of the lower half are ignored."""
    hpd1: bool
    """Hierarchical permissions of the upper half are ignored."""
    e0pd0: bool
    """EL0 accesses to the lower half always fault."""
    e0pd1: bool
    """EL0 accesses to the upper half always fault."""
    ds: bool
    """52-bit output addresses with 4K and 16K granules (FEAT_LPA2)."""

    @property
    def pa_bits(self) -> int:
        """Output address width that IPS asks for; the reserved value 7 behaves as 6, 52 bits."""
        return PA_SIZES[min(self.ips, len(PA_SIZES) - 1)]


def decode_tcr(tcr: int) -> Tcr:
    """Decode TCR_EL1. TG0 and TG1 have different encodings (Arm ARM TCR_EL1.TG0, .TG1)."""
    return Tcr(
        t0sz=bits(tcr, 5, 0),
        t1sz=bits(tcr, 21, 16),
        epd0=bit(tcr, 7),
        epd1=bit(tcr, 23),
        granule0_bits={0: 12, 1: 16, 2: 14}.get(bits(tcr, 15, 14), 0),
        granule1_bits={1: 14, 2: 12, 3: 16}.get(bits(tcr, 31, 30), 0),
        sh0=bits(tcr, 13, 12),
        sh1=bits(tcr, 29, 28),
        a1=bit(tcr, 22),
        ips=bits(tcr, 34, 32),
        asid16=bit(tcr, 36),
        tbi0=bit(tcr, 37),
        tbi1=bit(tcr, 38),
        ha=bit(tcr, 39),
        hd=bit(tcr, 40),
        hpd0=bit(tcr, 41),
        hpd1=bit(tcr, 42),
        e0pd0=bit(tcr, 55),
        e0pd1=bit(tcr, 56),
        ds=bit(tcr, 59),
    )


def decode_tcr_el2(tcr: int) -> Tcr:
    """Decode TCR_EL2 where HCR_EL2.E2H is 0: it has one half, given as the lower one.

    Source: Arm ARM TCR_EL2.
    """
    return replace(
        decode_tcr(0),
        t0sz=bits(tcr, 5, 0),
        sh0=bits(tcr, 13, 12),
        granule0_bits={0: 12, 1: 16, 2: 14}.get(bits(tcr, 15, 14), 0),
        ips=bits(tcr, 18, 16),
        tbi0=bit(tcr, 20),
        ha=bit(tcr, 21),
        hd=bit(tcr, 22),
        hpd0=bit(tcr, 24),
        ds=bit(tcr, 32),
    )


@dataclass(frozen=True)
class Tcr2:
    """Give the fields of TCR2_EL1 or TCR2_EL2 that matter for a walk (Arm ARM TCR2_EL1, TCR2_EL2)."""

    pnch: bool
    """Bit 52 of a leaf is the Protected attribute, not the contiguous hint (FEAT_THE)."""
    pie: bool
    """Permissions are indirect, through PIR and PIRE0 (FEAT_S1PIE)."""
    e0poe: bool
    """POR_EL0 takes permissions away from EL0 (FEAT_S1POE)."""
    poe: bool
    """POR_EL1 or POR_EL2 takes permissions away from the privileged level (FEAT_S1POE)."""
    aie: bool
    """Bit 59 of a leaf is AttrIndx[3], and MAIR2 holds attributes 8 to 15 (FEAT_AIE)."""
    d128: bool
    """Descriptors have 128 bits (FEAT_D128)."""


def decode_tcr2(tcr2: int) -> Tcr2:
    """Decode TCR2_EL1 or TCR2_EL2."""
    return Tcr2(*(bit(tcr2, position) for position in range(6)))


@dataclass(frozen=True)
class Sctlr:
    """Give the fields of SCTLR_EL1 that matter for translation (Arm ARM SCTLR_EL1)."""

    m: bool
    """MMU on."""
    a: bool
    """Alignment checks."""
    c: bool
    """Data cacheability."""
    i: bool
    """Instruction cacheability."""
    wxn: bool
    """Writable implies never executable."""
    ee: bool
    """Big-endian data accesses and table walks at EL1."""


def decode_sctlr(sctlr: int) -> Sctlr:
    """Decode SCTLR_EL1."""
    return Sctlr(
        m=bit(sctlr, 0),
        a=bit(sctlr, 1),
        c=bit(sctlr, 2),
        i=bit(sctlr, 12),
        wxn=bit(sctlr, 19),
        ee=bit(sctlr, 25),
    )


@dataclass(frozen=True)
class Pstate:
    """Give the fields of PSTATE: where and how a CPU runs (Arm ARM SPSR_EL1)."""

    el: int
    """Exception level, M[3:2]; 0 in AArch32, of which Linux runs processes only."""
    spsel: bool
    """M[0]: SP is that of the exception level (`h`), not SP_EL0 (`t`)."""
    aarch32: bool
    """M[4]: AArch32 state."""
    nzcv: int
    """Condition flags, bits 31:28; N is the highest."""
    daif: int
    """Masks, bits 9:6; D is the highest. In AArch32 bit 9 is endianness, and D reads as 0."""
    flags: tuple[str, ...]
    """Further bits that are set: TCO, DIT, UAO, PAN, SS, IL, SSBS; none in AArch32."""

    @property
    def text(self) -> str:
        """The fields as people write them: `EL1h nZcv DAIF PAN`, a capital letter for a set bit."""
        mode = f"EL{self.el}" + ("" if self.el == 0 else "h" if self.spsel else "t")
        names = ((self.nzcv, "nzcv"), (self.daif, "daif"))
        letters = ["".join(c.upper() if bit(v, 3 - i) else c for i, c in enumerate(n)) for v, n in names]
        return " ".join([mode, *(["AArch32"] if self.aarch32 else []), *letters, *self.flags])


_PSTATE_FLAGS = {"TCO": 25, "DIT": 24, "UAO": 23, "PAN": 22, "SS": 21, "IL": 20, "SSBS": 12}


def decode_pstate(pstate: int) -> Pstate:
    """Decode PSTATE in the layout of SPSR_EL1, which is how a gdbstub gives CPSR."""
    aarch32 = bit(pstate, 4)
    positions = {} if aarch32 else _PSTATE_FLAGS
    return Pstate(
        el=0 if aarch32 else bits(pstate, 3, 2),
        spsel=not aarch32 and bit(pstate, 0),
        aarch32=aarch32,
        nzcv=bits(pstate, 31, 28),
        daif=bits(pstate, 8, 6) if aarch32 else bits(pstate, 9, 6),
        flags=tuple(name for name, position in positions.items() if bit(pstate, position)),
    )


def mmu_on(state: CpuState) -> bool | None:
    """Tell whether the MMU is on for the level a CPU runs at; None where the stub does not offer SCTLR."""
    value = state.system.get(register_of_regime(current_regime(state), "SCTLR"))
    return None if value is None else decode_sctlr(value).m
