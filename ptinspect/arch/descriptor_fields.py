"""Every field of a descriptor, in words."""

from __future__ import annotations

from ptinspect.arch.bits import bit, bits
from ptinspect.arch.descriptor import BIT11, SOFTWARE_BITS, Attributes, Descriptor, Kind
from ptinspect.arch.permissions import field, field_text
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass

_SOFTWARE_ERAS: dict[int, str] = {
    55: "Linux PTE_DIRTY: written to, as software keeps it",
    56: "Linux PTE_SPECIAL: no struct page behind it",
    57: "Linux PTE_DEVMAP (from v5.3; gone by v6.18)",
    58: "Linux PTE_UFFD_WP (from v6.10); on invalid entries PTE_PROT_NONE (to v6.9)",
    63: "no name in Linux",
}


@dataclass(frozen=True)
class Field:
    """Explain one field of a descriptor."""

    name: str
    """Name in the Arm ARM, or Linux's for a software bit."""
    bits: str
    """Position: `11` or `47:12`."""
    value: int
    """Value of the field, shifted down."""
    meaning: str
    """What the value means."""


def explain(d: Descriptor) -> list[Field]:
    """List every field of a descriptor with its position, value and meaning, from bit 63 down."""
    if d.kind is Kind.TABLE:
        return _explain_table(d)
    if d.is_leaf:
        return _explain_leaf(d)
    return _explain_fault(d)


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
    raw, regime, a = d.raw, d.regime, d.attributes
    assert a is not None
    apt = bits(raw, 62, 61)
    unused = f" (ignored: {_why_no_hierarchy(regime)})" if regime.hpd else ""
    if regime.name == "EL2":
        below = [
            Field(
                "APTable",
                "62:61",
                apt,
                ("read-only below" if apt & 2 else "no effect") + (unused if apt else ""),
            ),
            _flag("XNTable", 60, raw, "never executable below" + unused, "no effect"),
            *_rest(raw, 59, 59, "RES0", _RES0),
        ]
    elif regime.nv1:
        below = [
            Field("APTable", "62:61", apt, _APT[apt & 2] + (unused if apt else "")),
            _flag("PXNTable", 60, raw, "never executable at EL1 below" + unused, "no effect"),
            *_rest(raw, 59, 59, "RES0", _RES0),
        ]
    else:
        who = regime.privileged
        below = [
            Field("APTable", "62:61", apt, _APT[apt] + (unused if apt else "")),
            _flag("UXNTable", 60, raw, "never executable at EL0 below" + unused, "no effect"),
            _flag("PXNTable", 59, raw, f"never executable at {who} below" + unused, "no effect"),
        ]
    return [
        _flag("NSTable", 63, raw, "non-secure below", "no effect"),
        *below,
        *_rest(raw, 58, 50, "ignored", _IGNORED),
        *_address(d, "next table"),
        _flag("mark", 11, raw, "ignored by the CPU: KPTI was here", "ignored by the CPU: not marked"),
        _flag("AF", 10, raw, "table accessed (FEAT_HAFT)", "not set"),
        *(_high_address(d, "next table") if regime.ds else _rest(raw, 9, 8, "ignored", _IGNORED)),
        *_rest(raw, 7, 2, "ignored", _IGNORED),
        Field("type", "1:0", raw & 3, "table"),
    ]


def _why_no_hierarchy(regime: Regime) -> str:
    if regime.pie or regime.poe or regime.e0poe:
        return f"{regime.register('TCR2')}.{'PIE' if regime.pie else 'POE'}"
    return f"{regime.register('TCR')}.HPD"


def _explain_leaf(d: Descriptor) -> list[Field]:
    raw, regime, a = d.raw, d.regime, d.attributes
    assert a is not None and a.sh is not None and a.attr_index is not None
    if regime.ds:
        share = [Field("SH", "TCR", a.sh, _SH[a.sh]), *_high_address(d, "output address")]
    else:
        share = [Field("SH", "9:8", a.sh, _SH[a.sh])]
    unset = "the CPU sets it at the next access" if regime.ha else "an access faults"
    mair = regime.register("MAIR2" if a.attr_index > 7 else "MAIR")
    return [
        *_software(raw, 63),
        *_overlay(a, raw, regime),
        *(found for position in (58, 57, 56, 55) for found in _software(raw, position)),
        *_rights(a, raw, regime),
        _flag("GP", 50, raw, "guarded page (BTI)", "not guarded"),
        *_address(d, "output address"),
        _flag("nG", 11, raw, "not global: tagged with the ASID", "global"),
        _flag("AF", 10, raw, "accessed", f"not accessed: {unset}"),
        *share,
        *_access(a, raw, regime),
        _flag("NS", 5, raw, "non-secure", "as the security state has it"),
        Field("AttrIndx", "4:2", bits(raw, 4, 2), f"{mair} attribute {a.attr_index}: {a.memory_type}"),
        Field("type", "1:0", raw & 3, str(d.kind)),
    ]


def _overlay(a: Attributes, raw: int, regime: Regime) -> list[Field]:
    """Describe bits 62:59, which FEAT_S1POE and FEAT_AIE take from software and PBHA."""
    if a.po_index is None and not regime.aie:
        what = "IMPLEMENTATION DEFINED; [62:60] the overlay index, Linux's pkey (FEAT_S1POE)"
        return _rest(raw, 62, 59, "PBHA", what)
    found = _rest(raw, 62, 60, "PBHA", "IMPLEMENTATION DEFINED")
    if a.po_index is not None:
        parts = [f"{regime.register('POR')} {field(regime.por, a.po_index):#06b}"] if regime.poe else []
        parts += [f"POR_EL0 {field(regime.por0, a.po_index):#06b}"] if regime.e0poe else []
        found = [Field("POIndex", "62:60", a.po_index, "overlay " + ", ".join(parts))]
    if regime.aie:
        return [*found, Field("AttrIndx[3]", "59", bits(raw, 59, 59), "high bit of the attribute's index")]
    return [*found, *_rest(raw, 59, 59, "PBHA", "IMPLEMENTATION DEFINED")]


def _rights(a: Attributes, raw: int, regime: Regime) -> list[Field]:
    """Describe bits 54:51: execution, or the index of indirect permissions, and what is beside them."""
    who = regime.privileged
    hint = [_flag("Contiguous", 52, raw, "one of a group of entries", "on its own")]
    if a.protected is not None:
        hint = [_flag("Protected", 52, raw, "protected (FEAT_THE)", "not protected")]
    if a.pi_index is not None:
        parts = [field_text(regime.register("PIR"), regime.pir, a.pi_index)]
        if regime.name != "EL2" and not regime.nv1:
            parts.append(field_text(regime.register("PIRE0"), regime.pire0, a.pi_index))
        high = Field("PIIndex[3:2]", "54:53", a.pi_index >> 2, f"index {a.pi_index}: {'; '.join(parts)}")
        return [high, *hint, Field("PIIndex[1]", "51", a.pi_index >> 1 & 1, f"of index {a.pi_index}")]
    dbm = Field("DBM", "51", int(bool(a.dbm)), _dirty_state(a, regime))
    if regime.name == "EL2":
        xn = _flag("XN", 54, raw, "never executable", "executable, unless WXN forbids it")
        return [xn, *_rest(raw, 53, 53, "RES0", _RES0), *hint, dbm]
    pxn = ("never executable at " + who, f"executable at {who}, unless EL0 may write it")
    if regime.nv1:
        return [_flag("PXN", 54, raw, *pxn), *_rest(raw, 53, 53, "RES0", _RES0), *hint, dbm]
    uxn = _flag("UXN", 54, raw, "never executable at EL0", "executable at EL0, unless WXN forbids it")
    return [uxn, _flag("PXN", 53, raw, *pxn), *hint, dbm]


def _access(a: Attributes, raw: int, regime: Regime) -> list[Field]:
    """Describe bits 7:6, or bit 7 where bit 6 belongs to the index."""
    if a.pi_index is not None:
        clean = "clean: " + ("the CPU clears it at the first write" if regime.hd else "a write faults")
        low = Field("PIIndex[0]", "6", a.pi_index & 1, f"of index {a.pi_index}")
        return [_flag("nDirty", 7, raw, clean, "dirty: written to"), low]
    ap = bits(raw, 7, 6)
    if regime.name == "EL2":
        return [Field("AP", "7:6", ap, "EL2 read-only" if ap & 2 else "EL2 read/write")]
    return [Field("AP", "7:6", ap, _AP[a.ap or 0].replace("EL1", regime.privileged))]


def _software(raw: int, position: int) -> list[Field]:
    return _rest(raw, position, position, SOFTWARE_BITS[position], _SOFTWARE_ERAS[position])


def _dirty_state(a: Attributes, regime: Regime) -> str:
    """Return what DBM means with AP[2] and TCR_EL1.HD (Arm ARM D8.4.6); Linux calls it PTE_WRITE."""
    if not a.dbm:
        return "not set"
    clean = a.ap is not None and a.ap & 2
    if regime.hd:
        return "PTE_WRITE: writable, " + (
            "clean: the CPU clears AP[2] at the first write" if clean else "dirty"
        )
    return "PTE_WRITE: software may make it writable" if clean else "PTE_WRITE: writable"
