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
    for name, bits, value, explained in descriptor.explain():
        unnamed = name.startswith("AttrIndx") and not mair_known
        meaning = "memory type: given by MAIR_EL1, which is not known (--mair)" if unnamed else explained
        fields.append({"field": name, "bits": bits, "value": value, "meaning": meaning})
        shown = value if isinstance(value, str) else hex_address(value)
        rows.append((name, bits, shown, meaning))
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
