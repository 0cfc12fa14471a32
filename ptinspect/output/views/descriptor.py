"""One descriptor, as a report."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, hex_address

if TYPE_CHECKING:
    from ptinspect.arch.descriptor import Attributes, Descriptor
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


def attributes_json(attributes: Attributes) -> dict[str, Any]:
    """Return the attributes by name; those that the descriptor does not have are left out."""
    found = dataclasses.asdict(attributes)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items() if v is not None}


SHAREABILITY = ("NSH", "SH=reserved", "OSH", "ISH")
ACCESS = ("EL1:rw", "EL1:rw,EL0:rw", "EL1:ro", "EL1:ro,EL0:ro")
TABLE_ACCESS = ("", "APTable:EL0-none", "APTable:ro", "APTable:ro,EL0-none")


def words(attributes: Attributes) -> str:
    """Return attributes in one line by the names that Arm and Linux use; bit 11 is always told."""
    a = attributes
    if a.table_mark is not None:
        flags: tuple[tuple[str, object], ...] = (
            ("bit11:marked" if a.table_mark else "bit11:not-marked", True),
            (TABLE_ACCESS[a.apt or 0], a.apt),
            ("PXNTable", a.pxn_table),
            ("UXNTable", a.uxn_table),
            ("NSTable", a.ns_table),
            ("AF", a.af),
        )
        return " ".join(word for word, shown in flags if shown)
    flags = (
        ("nG" if a.ng else "global", True),
        ("AF" if a.af else "AF-clear", True),
        (SHAREABILITY[a.sh or 0], True),
        (ACCESS[a.ap or 0], True),
        ("PXN", a.pxn),
        ("UXN", a.uxn),
        ("Cont", a.contiguous),
        ("DBM", a.dbm),
        ("GP", a.gp),
        ("NS", a.ns),
        (f"AttrIndx={a.attr_index}({a.memory_type})", True),
        *((name, True) for name in a.software),
    )
    return " ".join(word for word, shown in flags if shown)


def in_words(descriptor: Descriptor) -> str:
    """Return a descriptor in one line: kind, where it leads, attributes."""
    if descriptor.output_address is None or descriptor.attributes is None:
        return str(descriptor.kind)
    return f"{descriptor.kind} -> pa:{descriptor.output_address:#x} {words(descriptor.attributes)}"
