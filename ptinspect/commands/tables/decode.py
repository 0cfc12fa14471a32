"""`decode`: explain one descriptor, with or without a guest."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.descriptor import Descriptor
from ptinspect.arch.descriptor import decode as decode_descriptor
from ptinspect.arch.descriptor_fields import explain
from ptinspect.arch.levels import level_number
from ptinspect.arch.permissions import effective
from ptinspect.arch.regime import Regime, regime_from_registers
from ptinspect.arch.sysregs import regime_at_el2, register_of_regime
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import switch
from ptinspect.commands.framework.command import argument, command
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import RegimeError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.output.descriptor_words import (
    PermissionsResult,
    permissions_result,
    permissions_text,
    regime_notes,
)
from ptinspect.output.encode import Hex, filled
from ptinspect.output.model import Note, Report, Table, headings
from ptinspect.output.table_heads import geometry_text

BY_DIRECT_BITS = "permissions by the direct bits; --pir reads them as an index (FEAT_S1PIE)"
GRANULES = {4096: 12, 16384: 14, 65536: 16}
"""Bits of a granule by its size."""


@dataclass(frozen=True)
class FieldResult:
    """One field of a descriptor."""

    field: str
    bits: str
    value: int
    meaning: str


@dataclass(frozen=True)
class RulesResult:
    """The rules that a descriptor was read by, and where they come from."""

    granule: int
    va_bits: int
    pa_bits: int
    source: str
    name: str
    indirect: bool
    doubt: str


@dataclass(frozen=True)
class DecodeResult:
    """One descriptor, field by field."""

    raw: Hex
    level: int
    kind: str
    output_address: PhysAddr | None
    fields: Sequence[FieldResult]
    regime: RulesResult
    permissions: PermissionsResult | None
    """Those of the descriptor alone; None unless it is a leaf."""


@command(
    "decode",
    group="Tables",
    summary="Explain one descriptor, field by field",
    example="decode 0x00680000411f7f03 --level 3",
    arguments=(
        argument("value", type=arguments.number, help="raw descriptor: 0x…, or 16 hex digits"),
        argument(
            "--level", "-l", type=arguments.level, required=True, help="-1 to 3, or pgd, p4d, pud, pmd, pte"
        ),
        argument("--granule", type=arguments.size, help="4K (default), 16K or 64K"),
        argument("--va-bits", type=arguments.whole(16, 55), help="width of virtual addresses: 48"),
        argument("--pa-bits", type=arguments.whole(32, 52), help="width of physical addresses: 48"),
        switch("--ds", "TCR_EL1.DS is set (LPA2: 52-bit addresses)"),
        argument("--regime", dest="rules", choices=("el1", "el2"), help="el2: a table of EL2's own regime"),
        argument("--pir", type=arguments.number, help="PIR_EL1 or PIR_EL2: permissions are indirect"),
        argument("--pire0", type=arguments.number, help="PIRE0_EL1: what EL0 may do then (0)"),
        argument("--mair", type=arguments.number, help="MAIR_EL1, which gives memory types their names"),
    ),
    expectable=True,
    result=DecodeResult,
    details="Without options the regime is the attached guest's if it is stopped and has one, else 4K, "
    "48-bit addresses. Memory types have names only if MAIR is known. Permissions are those of the "
    "descriptor alone, read as an index (FEAT_S1PIE) where the guest does so, or with --pir, "
    "--pire0.",
)
def decode(
    guest: Guest,
    *,
    value: int,
    level: int | str,
    granule: int | None,
    va_bits: int | None,
    pa_bits: int | None,
    ds: bool,
    rules: str | None,
    pir: int | None,
    pire0: int | None,
    mair: int | None,
) -> Report:
    """Explain one descriptor."""
    live = None if granule or va_bits or pa_bits or ds else _guest_regime(guest, rules)
    regime = live or _given(granule or 4096, va_bits, pa_bits, ds, rules)
    if pir is not None or pire0 is not None:
        regime = replace(regime, pie=True, hpd=True, pir=pir or 0, pire0=pire0 or 0, doubt="")
    if mair is not None:
        regime = replace(regime, mair=mair)
    number = level_number(level, regime.start_level)
    if number < regime.start_level:
        raise UserError(
            f"level {number} does not exist: with {regime.va_bits}-bit addresses the root is at level "
            f"{regime.start_level}",
            "--va-bits gives another width",
        )
    source = "options and defaults" if live is None else "the guest's registers"
    return _report(decode_descriptor(value, number, regime), source)


def _given(granule: int, va_bits: int | None, pa_bits: int | None, ds: bool, rules: str | None) -> Regime:
    """Return the regime that the options describe."""
    if granule not in GRANULES:
        raise UserError(f"granule of {granule} bytes", "use 4K, 16K or 64K")
    wide, el2 = 52 if ds else 48, rules == "el2"
    try:
        return Regime(
            GRANULES[granule],
            va_bits or wide,
            pa_bits or wide,
            not el2,
            ds=ds,
            name="EL2" if el2 else "EL1&0",
            doubt=BY_DIRECT_BITS,
        )
    except RegimeError as error:
        raise UserError(error.message, "see --granule, --va-bits, --pa-bits and --ds") from error


def _guest_regime(guest: Guest, rules: str | None) -> Regime | None:
    """Return the regime of the CPU that stopped, or of its EL1 or EL2; None without a stopped guest."""
    if guest.state != "stopped":
        return None
    state = guest.stopped.cpu_state(guest.stopped.current_cpu)
    if rules == "el2":
        name = regime_at_el2(state)
        if register_of_regime(name, "TCR") not in state.system:
            return None  # the CPU has no EL2
        return regime_from_registers(state, name != "EL2", name)
    return regime_from_registers(state, True, None if rules is None else "EL1&0")


def _report(found: Descriptor, source: str) -> Report:
    """Explain a descriptor field by field; `source` is where its regime comes from."""
    regime, kind = found.regime, str(found.kind)
    fields = [
        FieldResult(part.name, part.bits, part.value, _meaning(part.name, part.meaning, regime))
        for part in explain(found)
    ]
    may = effective(found, [], replace(regime, epd=False, e0pd=False)) if found.is_leaf else None
    result = DecodeResult(
        raw=Hex(found.raw),
        level=found.level,
        kind=kind,
        output_address=found.output_address,
        fields=fields,
        regime=filled(RulesResult, regime, source=source, indirect=regime.pie),
        permissions=None if may is None else permissions_result(may, regime),
    )
    target = "" if found.output_address is None else f" -> pa:{found.output_address:#x}"
    head = f"{found.raw:#018x} at level {found.level}: {kind}{target}"
    columns = headings("field", "bits", ">value", "meaning")
    body: list[Note | Table] = [
        Note(head, "bad" if kind == "reserved" else "title"),
        Table(columns, [(f.field, f.bits, f"{f.value:#x}", f.meaning) for f in fields]),
    ]
    if may is not None:
        hierarchy = "" if regime.hpd else ", if the tables above take nothing away"
        body += [Note(f"{permissions_text(may, regime)}{hierarchy}"), *regime_notes(regime)]
    return Report(result, (*body, Note(f"{geometry_text(regime)} ({source})", "dim")))


def _meaning(field: str, meaning: str, regime: Regime) -> str:
    """Return what a field means; the memory type only where MAIR is known."""
    unnamed = field == "AttrIndx" and not regime.mair
    return f"{meaning.partition(':')[0]} (--mair names it)" if unnamed else meaning
