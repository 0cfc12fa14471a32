"""Translation table descriptors of the VMSAv8-64 stage 1 formats, one value at a time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ptinspect.arch.bits import PhysAddr, bit, bits
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.arch.sysregs import mair_type_name

BIT11 = 1 << 11
"""nG on a block or page; ignored by the CPU on a table descriptor, where KPTI's rewrite leaves its mark."""

SOFTWARE_BITS: dict[int, str] = {55: "DIRTY", 56: "SPECIAL", 57: "DEVMAP", 58: "SW58", 63: "SW63"}
"""Bits of a leaf that the CPU ignores, by the names Linux gave them.

Source: Linux arch/arm64/include/asm/pgtable-prot.h: 55 PTE_DIRTY, 56 PTE_SPECIAL, 57 PTE_DEVMAP (5.4 to
6.12), 58 PROT_NONE (to 6.9, invalid entries only) or UFFD_WP (from 6.10).
"""


class Kind(StrEnum):
    """Say what a descriptor is at its level (Arm ARM D8.3.1)."""

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
    """AP[2:1]: bit 1 read-only, bit 0 accessible from EL0."""
    pxn: bool | None = None
    """Bit 53: never executable at EL1."""
    uxn: bool | None = None
    """Bit 54: never executable at EL0."""
    attr_index: int | None = None
    """Index of the attribute byte in MAIR_EL1."""
    memory_type: str | None = None
    """What that byte means."""
    contiguous: bool | None = None
    """Bit 52: one of a group that a single TLB entry may cover."""
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


class Field(NamedTuple):
    """Explain one field of a descriptor."""

    name: str
    """Name in the Arm ARM, or Linux's for a software bit."""
    bits: str
    """Position: `11` or `47:12`."""
    value: int
    """Value of the field, shifted down."""
    meaning: str
    """What the value says."""


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

    def explain(self) -> list[Field]:
        """List every field with its position, value and meaning, from bit 63 down."""
        if self.kind is Kind.TABLE:
            return _explain_table(self)
        if self.is_leaf:
            return _explain_leaf(self)
        why = "invalid: a translation fault" if self.kind is Kind.INVALID else "reserved: a translation fault"
        fields = [Field("type", "1:0", self.raw & 3, why)]
        if self.raw >> 2:
            fields.insert(
                0, Field("ignored", "63:2", self.raw >> 2, "software's own (swap or present-invalid)")
            )
        return fields


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
        raise ValueError(f"{raw:#x} is no 64-bit descriptor")
    what = kind(raw, level, regime)
    if what is Kind.TABLE:
        attributes = Attributes(
            bit11=bit(raw, 11),
            table_mark=bit(raw, 11),
            af=bit(raw, 10),
            apt=bits(raw, 62, 61),
            pxn_table=bit(raw, 59),
            uxn_table=bit(raw, 60),
            ns_table=bit(raw, 63),
        )
        return Descriptor(raw, level, what, regime.next_table(raw), attributes, regime)
    if what in (Kind.BLOCK, Kind.PAGE):
        return Descriptor(raw, level, what, regime.output_address(raw, level), _leaf(raw, regime), regime)
    return Descriptor(raw, level, what, None, None, regime)


def _leaf(raw: int, regime: Regime) -> Attributes:
    index = bits(raw, 4, 2)
    return Attributes(
        bit11=bit(raw, 11),
        ng=bit(raw, 11),
        af=bit(raw, 10),
        sh=regime.sh if regime.ds else bits(raw, 9, 8),
        ap=bits(raw, 7, 6),
        pxn=bit(raw, 53),
        uxn=bit(raw, 54),
        attr_index=index,
        memory_type=mair_type_name((regime.mair >> 8 * index) & 0xFF),
        contiguous=bit(raw, 52),
        dbm=bit(raw, 51),
        gp=bit(raw, 50),
        ns=bit(raw, 5),
        software=tuple(name for position, name in SOFTWARE_BITS.items() if bit(raw, position)),
    )


_SH = ("non-shareable", "reserved", "outer shareable", "inner shareable")
_AP = ("EL1 read/write", "EL1 and EL0 read/write", "EL1 read-only", "EL1 and EL0 read-only")
_APT = ("no effect", "EL0 has no access below", "read-only below", "read-only below, EL0 has no access")


def _flag(name: str, position: int, raw: int, yes: str, no: str) -> Field:
    value = int(bit(raw, position))
    return Field(name, str(position), value, yes if value else no)


def _address(d: Descriptor, name: str) -> list[Field]:
    """Describe the output address, which LPA and LPA2 spread over two fields."""
    regime, raw = d.regime, d.raw
    assert d.output_address is not None
    shift = regime.granule_bits if d.kind is Kind.TABLE else regime.shift(d.level)
    high = 49 if regime.ds else 47
    fields = [Field(name, f"{high}:{shift}", bits(raw, high, shift), f"{d.output_address:#x}")]
    if regime.ds:
        fields.append(Field(f"{name}[51:50]", "9:8", bits(raw, 9, 8), "high bits of the address (LPA2)"))
    elif regime.wide_oa:
        fields.append(Field(f"{name}[51:48]", "15:12", bits(raw, 15, 12), "high bits of the address (LPA)"))
    return fields


def _explain_table(d: Descriptor) -> list[Field]:
    raw = d.raw
    apt = bits(raw, 62, 61)
    ignored = " (ignored: TCR_EL1.HPD)" if d.regime.hpd else ""
    return [
        _flag("NSTable", 63, raw, "non-secure below", "no effect"),
        Field("APTable", "62:61", apt, _APT[apt] + ignored),
        _flag("UXNTable", 60, raw, "never executable at EL0 below" + ignored, "no effect"),
        _flag("PXNTable", 59, raw, "never executable at EL1 below" + ignored, "no effect"),
        *_address(d, "next table"),
        _flag("mark", 11, raw, "ignored by the CPU: KPTI was here", "ignored by the CPU: not marked"),
        _flag("AF", 10, raw, "table accessed (FEAT_HAFT)", "not set"),
        Field("type", "1:0", raw & 3, "table"),
    ]


def _explain_leaf(d: Descriptor) -> list[Field]:
    raw, regime, a = d.raw, d.regime, d.attributes
    assert a is not None and a.ap is not None and a.sh is not None and a.attr_index is not None
    software = [
        Field(SOFTWARE_BITS[p], str(p), 1, "software's own, ignored by the CPU")
        for p in sorted(SOFTWARE_BITS, reverse=True)
        if bit(raw, p)
    ]
    share = [Field("SH", "TCR", a.sh, _SH[a.sh])] if regime.ds else [Field("SH", "9:8", a.sh, _SH[a.sh])]
    return [
        *software,
        _flag("UXN", 54, raw, "never executable at EL0", "executable at EL0 if readable there"),
        _flag("PXN", 53, raw, "never executable at EL1", "executable at EL1"),
        _flag("Contiguous", 52, raw, "one of a group of entries", "on its own"),
        _flag("DBM", 51, raw, "PTE_WRITE: may be written, AP[2] tracks dirty", "not set"),
        _flag("GP", 50, raw, "guarded page (BTI)", "not guarded"),
        *_address(d, "output address"),
        _flag("nG", 11, raw, "not global: tagged with the ASID", "global"),
        _flag("AF", 10, raw, "accessed", "not accessed: an access faults or sets it"),
        *share,
        Field("AP", "7:6", a.ap, _AP[a.ap]),
        _flag("NS", 5, raw, "non-secure", "as the security state has it"),
        Field("AttrIndx", "4:2", a.attr_index, f"MAIR_EL1 attribute {a.attr_index}: {a.memory_type}"),
        Field("type", "1:0", raw & 3, str(d.kind)),
    ]
