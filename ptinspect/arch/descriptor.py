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

SOFTWARE_BITS: dict[int, str] = {55: "DIRTY", 56: "SPECIAL", 57: "DEVMAP", 58: "UFFD_WP", 63: "SW63"}
"""Bits of a leaf that the CPU ignores, by the names Linux gave them; `explain()` says when.

Source: Linux arch/arm64/include/asm/pgtable-prot.h; commit 73b20c84d42d ("arm64: mm: implement
pte_devmap support") (in v5.3).
"""

_SOFTWARE_ERAS: dict[int, str] = {
    55: "Linux PTE_DIRTY: written to, as software keeps it",
    56: "Linux PTE_SPECIAL: no struct page behind it",
    57: "Linux PTE_DEVMAP (from v5.3; gone by v7.3)",
    58: "Linux PTE_UFFD_WP (from v6.10); on invalid entries PTE_PROT_NONE (to v6.9)",
    63: "no name in Linux",
}


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
        return _explain_fault(self)


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
_IGNORED = "ignored by the CPU"
_RES0 = "reserved, should be 0"


def _flag(name: str, position: int, raw: int, yes: str, no: str) -> Field:
    value = int(bit(raw, position))
    return Field(name, str(position), value, yes if value else no)


def _rest(raw: int, high: int, low: int, name: str, meaning: str) -> list[Field]:
    """Describe bits that have no field of their own, if any is set."""
    if high < low or not bits(raw, high, low):
        return []
    return [Field(name, str(low) if high == low else f"{high}:{low}", bits(raw, high, low), meaning)]


def _address(d: Descriptor, name: str) -> list[Field]:
    """Describe bits 49:12: the output address, which LPA and LPA2 spread over two fields, and the rest."""
    regime, raw = d.regime, d.raw
    assert d.output_address is not None
    shift = regime.granule_bits if d.kind is Kind.TABLE else regime.shift(d.level)
    high = 49 if regime.ds else 47
    meaning = f"{d.output_address:#x}"
    if d.output_address >> regime.pa_bits:
        meaning += f": more than {regime.pa_bits} bits, an address size fault"
    fields = [] if regime.ds else _rest(raw, 49, 48, "RES0", _RES0)
    fields.append(Field(name, f"{high}:{shift}", bits(raw, high, shift), meaning))
    far = regime.wide_oa and not regime.ds
    if d.kind is Kind.BLOCK:
        fields += _rest(raw, shift - 1, 17, "RES0", _RES0)
        fields += _rest(raw, 16, 16, "nT", "may change size without break-before-make (FEAT_BBM)")
        fields += [] if far else _rest(raw, 15, 12, "RES0", _RES0)
    elif not far:
        fields += _rest(raw, shift - 1, 12, "RES0", _RES0)
    if far:
        fields.append(Field(f"{name}[51:48]", "15:12", bits(raw, 15, 12), "high bits of the address (LPA)"))
    return fields


def _high_address(d: Descriptor, name: str) -> list[Field]:
    """Describe bits 9:8 where LPA2 keeps address bits 51:50 in them."""
    return [Field(f"{name}[51:50]", "9:8", bits(d.raw, 9, 8), "high bits of the address (LPA2)")]


def _explain_fault(d: Descriptor) -> list[Field]:
    """Explain an invalid or reserved entry, whose other bits mean nothing to the CPU (Arm ARM D8.3)."""
    raw = d.raw
    if d.kind is Kind.INVALID:
        why, whose = "invalid: a translation fault", "software's own (swap or present-invalid)"
    else:
        why, whose = "reserved: a translation fault", "no meaning: the encoding is reserved"
    mark = "not nG: no valid entry"
    if d.kind is Kind.INVALID:
        mark += "; Linux PTE_PRESENT_INVALID (from v6.10)"
    if raw & BIT11:
        fields = [
            *_rest(raw, 63, 12, "ignored", whose),
            Field("bit 11", "11", 1, mark),
            *_rest(raw, 10, 2, "ignored", whose),
        ]
    else:
        fields = _rest(raw, 63, 2, "ignored", whose)
    return [*fields, Field("type", "1:0", raw & 3, why)]


def _explain_table(d: Descriptor) -> list[Field]:
    raw, ds = d.raw, d.regime.ds
    apt = bits(raw, 62, 61)
    unused = " (ignored: TCR_EL1.HPD)" if d.regime.hpd else ""
    return [
        _flag("NSTable", 63, raw, "non-secure below", "no effect"),
        Field("APTable", "62:61", apt, _APT[apt] + (unused if apt else "")),
        _flag("UXNTable", 60, raw, "never executable at EL0 below" + unused, "no effect"),
        _flag("PXNTable", 59, raw, "never executable at EL1 below" + unused, "no effect"),
        *_rest(raw, 58, 50, "ignored", _IGNORED),
        *_address(d, "next table"),
        _flag("mark", 11, raw, "ignored by the CPU: KPTI was here", "ignored by the CPU: not marked"),
        _flag("AF", 10, raw, "table accessed (FEAT_HAFT)", "not set"),
        *(_high_address(d, "next table") if ds else _rest(raw, 9, 8, "ignored", _IGNORED)),
        *_rest(raw, 7, 2, "ignored", _IGNORED),
        Field("type", "1:0", raw & 3, "table"),
    ]


def _explain_leaf(d: Descriptor) -> list[Field]:
    raw, regime, a = d.raw, d.regime, d.attributes
    assert a is not None and a.ap is not None and a.sh is not None and a.attr_index is not None
    if regime.ds:
        share = [Field("SH", "TCR", a.sh, _SH[a.sh]), *_high_address(d, "output address")]
    else:
        share = [Field("SH", "9:8", a.sh, _SH[a.sh])]
    unset = "the CPU sets it at the next access" if regime.ha else "an access faults"
    return [
        *_software(raw, 63),
        *_rest(
            raw,
            62,
            59,
            "PBHA",
            "IMPLEMENTATION DEFINED; [62:60] the overlay index, Linux's pkey (FEAT_S1POE)",
        ),
        *(field for position in (58, 57, 56, 55) for field in _software(raw, position)),
        _flag("UXN", 54, raw, "never executable at EL0", "executable at EL0, unless WXN forbids it"),
        _flag("PXN", 53, raw, "never executable at EL1", "executable at EL1, unless EL0 may write it"),
        _flag("Contiguous", 52, raw, "one of a group of entries", "on its own"),
        Field("DBM", "51", int(bool(a.dbm)), _dirty_state(a, regime)),
        _flag("GP", 50, raw, "guarded page (BTI)", "not guarded"),
        *_address(d, "output address"),
        _flag("nG", 11, raw, "not global: tagged with the ASID", "global"),
        _flag("AF", 10, raw, "accessed", f"not accessed: {unset}"),
        *share,
        Field("AP", "7:6", a.ap, _AP[a.ap]),
        _flag("NS", 5, raw, "non-secure", "as the security state has it"),
        Field("AttrIndx", "4:2", a.attr_index, f"MAIR_EL1 attribute {a.attr_index}: {a.memory_type}"),
        Field("type", "1:0", raw & 3, str(d.kind)),
    ]


def _software(raw: int, position: int) -> list[Field]:
    return _rest(raw, position, position, SOFTWARE_BITS[position], _SOFTWARE_ERAS[position])


def _dirty_state(a: Attributes, regime: Regime) -> str:
    """Say what DBM means with AP[2] and TCR_EL1.HD (Arm ARM D8.4.6); Linux calls it PTE_WRITE."""
    if not a.dbm:
        return "not set"
    clean = a.ap is not None and a.ap & 2
    if regime.hd:
        return "PTE_WRITE: writable, " + (
            "clean: the CPU clears AP[2] at the first write" if clean else "dirty"
        )
    return "PTE_WRITE: software may make it writable" if clean else "PTE_WRITE: writable"
