"""Translation table descriptors of the VMSAv8-64 stage 1 formats, one value at a time."""

from __future__ import annotations

from enum import StrEnum

from ptinspect.arch.bits import PhysAddr, bit, bits
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.arch.sysregs import mair_type_name
from ptinspect.dataclass import dataclass, replace

BIT11 = 1 << 11
"""nG on a block or page; ignored by the CPU on a table descriptor, where KPTI's rewrite leaves its mark."""

SOFTWARE_BITS: dict[int, str] = {55: "DIRTY", 56: "SPECIAL", 57: "DEVMAP", 58: "UFFD_WP", 63: "SW63"}
"""Bits of a leaf that the CPU ignores, by the names Linux gave them; `descriptor_fields` has the releases.

Source: Linux arch/arm64/include/asm/pgtable-prot.h; commit 73b20c84d42d ("arm64: mm: implement
pte_devmap support") (in v5.3).
"""


class Kind(StrEnum):
    """Name what a descriptor is at its level (Arm ARM D8.3.1)."""

    INVALID = "invalid"
    """Bit 0 clear: a translation fault."""
    TABLE = "table"
    """Points to the next level's table."""
    BLOCK = "block"
    """Maps a range larger than a granule."""
    PAGE = "page"
    """Maps one granule."""
    RESERVED = "reserved"
    """Bits 1:0 are 0b01 where no block is allowed: a translation fault."""


@dataclass(frozen=True)
class Attributes:
    """Give the attribute fields of a valid descriptor; those of the other format are None."""

    bit11: bool
    """Bit 11 as it stands."""
    table_mark: bool | None = None
    """Tables: bit 11, the mark of KPTI's rewrite."""
    ng: bool | None = None
    """Leaves: bit 11, not global."""
    af: bool = False
    """Bit 10: Access flag; on a table descriptor FEAT_HAFT's table access flag."""
    sh: int | None = None
    """Shareability, 0 to 3; from TCR_EL1 with 52-bit output addresses of FEAT_LPA2."""
    ap: int | None = None
    """AP[2:1]: bit 1 read-only, bit 0 accessible from EL0. AP, PXN, UXN, DBM are None with FEAT_S1PIE."""
    pxn: bool | None = None
    """Bit 53: never executable at EL1; None in EL2's own tables."""
    uxn: bool | None = None
    """Bit 54: never executable at EL0; XN in EL2's own tables."""
    attr_index: int | None = None
    """Index of the attribute byte in MAIR_EL1; with FEAT_AIE 0 to 15."""
    memory_type: str | None = None
    """What that byte means."""
    contiguous: bool | None = None
    """Bit 52: one of a group that a single TLB entry may cover; None where it is the Protected attribute."""
    dbm: bool | None = None
    """Bit 51: dirty bit modifier; Linux's PTE_WRITE."""
    gp: bool | None = None
    """Bit 50: guarded page (FEAT_BTI)."""
    ns: bool | None = None
    """Bit 5: non-secure."""
    software: tuple[str, ...] = ()
    """Software bits that are set, by Linux name."""
    apt: int | None = None
    """Tables: APTable, 0 to 3."""
    pxn_table: bool | None = None
    """Tables: bit 59."""
    uxn_table: bool | None = None
    """Tables: bit 60."""
    ns_table: bool | None = None
    """Tables: bit 63."""
    pi_index: int | None = None
    """PIIndex, bits 54, 53, 51 and 6: the field of PIR_EL1 and PIRE0_EL1 (FEAT_S1PIE); else None."""
    ndirty: bool | None = None
    """nDirty, bit 7: not written to since it was cleared; None without FEAT_S1PIE."""
    po_index: int | None = None
    """POIndex, bits 62:60: the field of POR_EL1 and POR_EL0 (FEAT_S1POE); None without overlays."""
    protected: bool | None = None
    """Bit 52 where TCR2_EL1.PnCH makes it the Protected attribute (FEAT_THE)."""


@dataclass(frozen=True)
class Descriptor:
    """Hold one decoded descriptor."""

    raw: int
    """The eight bytes, as a number."""
    level: int
    """Level of the table it stands in."""
    kind: Kind
    output_address: PhysAddr | None
    """Next table, block or page; None if not valid."""
    attributes: Attributes | None
    """None if not valid."""
    regime: Regime
    """The regime it was decoded under."""

    @property
    def is_leaf(self) -> bool:
        """True for a block or page."""
        return self.kind in (Kind.BLOCK, Kind.PAGE)


def kind(raw: int, level: int, regime: Regime) -> Kind:
    """Return what `raw` is in a table at `level` (Arm ARM D8.3.1)."""
    if not raw & 1:
        return Kind.INVALID
    if level == LEVEL_LAST:
        return Kind.PAGE if raw & 2 else Kind.RESERVED
    if raw & 2:
        return Kind.TABLE
    return Kind.BLOCK if regime.allows_block(level) else Kind.RESERVED


def decode(raw: int, level: int, regime: Regime) -> Descriptor:
    """Decode the descriptor `raw` of a table at `level`. Raises ValueError unless raw fits 64 bits."""
    if not 0 <= raw < 1 << 64:
        raise ValueError(f"{raw:#x} is not a 64-bit descriptor")
    what = kind(raw, level, regime)
    if what is Kind.TABLE:
        return Descriptor(raw, level, what, regime.next_table(raw), _table(raw, regime), regime)
    if what in (Kind.BLOCK, Kind.PAGE):
        return Descriptor(raw, level, what, regime.output_address(raw, level), _leaf(raw, regime), regime)
    return Descriptor(raw, level, what, None, None, regime)


def _table(raw: int, regime: Regime) -> Attributes:
    """Decode a table's attributes; a hypervisor's tables have bit 60 for the one level (D8.4.2, FEAT_NV)."""
    return Attributes(
        bit11=bit(raw, 11),
        table_mark=bit(raw, 11),
        af=bit(raw, 10),
        apt=bits(raw, 62, 61) & (2 if regime.nv1 else 3),
        pxn_table=bit(raw, 60 if regime.nv1 else 59),
        uxn_table=bit(raw, 60) and not regime.nv1,
        ns_table=bit(raw, 63),
    )


def _leaf(raw: int, regime: Regime) -> Attributes:
    index = bits(raw, 4, 2) | (bits(raw, 59, 59) << 3 if regime.aie else 0)
    found = Attributes(
        bit11=bit(raw, 11),
        ng=bit(raw, 11),
        af=bit(raw, 10),
        sh=regime.sh if regime.ds else bits(raw, 9, 8),
        attr_index=index,
        memory_type=mair_type_name((regime.mair2 << 64 | regime.mair) >> 8 * index & 0xFF),
        contiguous=None if regime.pnch else bit(raw, 52),
        protected=bit(raw, 52) if regime.pnch else None,
        gp=bit(raw, 50),
        ns=bit(raw, 5),
        software=tuple(name for position, name in SOFTWARE_BITS.items() if bit(raw, position)),
        po_index=bits(raw, 62, 60) if regime.poe or regime.e0poe else None,
    )
    if regime.pie:
        index = bits(raw, 54, 53) << 2 | bits(raw, 51, 51) << 1 | bits(raw, 6, 6)
        return replace(found, pi_index=index, ndirty=bit(raw, 7))
    direct = replace(found, ap=bits(raw, 7, 6), pxn=bit(raw, 53), uxn=bit(raw, 54), dbm=bit(raw, 51))
    if regime.name == "EL2":
        return replace(direct, pxn=None)
    if regime.nv1:
        return replace(direct, ap=bits(raw, 7, 7) << 1, pxn=direct.uxn, uxn=False)
    return direct
