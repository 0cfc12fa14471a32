"""One descriptor, as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.arch.descriptor import Descriptor
    from ptinspect.arch.regime import Regime

KIND_STYLES: dict[str, Style] = {"invalid": "dim", "reserved": "bad", "table": "level"}


def decoded(descriptor: Descriptor, regime: Regime, source: str, *, mair_known: bool = True) -> Report:
    """Explain a descriptor field by field; `source` says where the regime comes from."""
    kind = str(descriptor.kind)
    fields = []
    rows = []
    for found in descriptor.explain():
        unnamed = found.name == "AttrIndx" and not mair_known
        meaning = f"MAIR_EL1 attribute {found.value} (--mair names it)" if unnamed else found.meaning
        fields.append({"field": found.name, "bits": found.bits, "value": found.value, "meaning": meaning})
        rows.append((found.name, found.bits, hex_address(found.value), meaning))
    result: dict[str, Any] = {
        "raw": hex_address(descriptor.raw),
        "level": descriptor.level,
        "kind": kind,
        "output_address": None
        if descriptor.output_address is None
        else hex_address(descriptor.output_address),
        "fields": fields,
        "regime": {
            "granule": regime.granule,
            "va_bits": regime.va_bits,
            "pa_bits": regime.pa_bits,
            "source": source,
        },
    }
    target = "" if descriptor.output_address is None else f" -> pa:{descriptor.output_address:#x}"
    head = f"{descriptor.raw:#018x} at level {descriptor.level}: {kind}{target}"
    columns = (Column("field"), Column("bits"), Column("value", "right"), Column("meaning"))
    return Report(
        result,
        (
            Note(head, "bad" if kind == "reserved" else "title"),
            Table(columns, rows),
            Note(
                f"{regime.granule >> 10}K granule, {regime.va_bits}-bit VA, {regime.pa_bits}-bit PA "
                f"({source})",
                "dim",
            ),
        ),
    )


def kind_cell(kind: str) -> Styled:
    """Return the kind of a descriptor in its colour."""
    return Styled(kind, KIND_STYLES.get(kind, "plain"))
