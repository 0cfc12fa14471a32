"""Descriptors, their attributes and permissions, in results and in words."""

from __future__ import annotations

from ptinspect.dataclass import dataclass
from ptinspect.output.model import Note
from ptinspect.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptinspect.arch.descriptor import Attributes, Descriptor
    from ptinspect.arch.permissions import Permissions
    from ptinspect.arch.regime import Regime


@dataclass(frozen=True)
class PermissionsResult:
    """Permissions by level."""

    el1: str
    """What the privileged level may do, which `privileged` names."""
    el0: str
    privileged: str
    gcs: list[str]
    """The levels for which it is a guarded control stack."""
    writable_clean: bool


def permissions_result(found: Permissions, regime: Regime) -> PermissionsResult:
    """Return permissions by level."""
    stacks = ((regime.privileged, found.el1_gcs), ("EL0", found.el0_gcs))
    return PermissionsResult(
        el1=found.el1,
        el0=found.el0,
        privileged=regime.privileged,
        gcs=[level for level, usable in stacks if usable],
        writable_clean=found.writable_clean,
    )


def permissions_text(found: Permissions, regime: Regime) -> str:
    """Write permissions as people do: `EL1 rw-, EL0 ---`; EL2's own regime has no EL0."""
    parts = [f"{regime.privileged} {found.el1}" + (" (GCS)" if found.el1_gcs else "")]
    if regime.name != "EL2":
        parts.append(f"EL0 {found.el0}" + (" (GCS)" if found.el0_gcs else ""))
    return ", ".join(parts)


def regime_notes(regime: Regime) -> list[Note]:
    """Say by which rules permissions were found, where these are not the usual ones or are in doubt."""
    notes = []
    if regime.name == "EL2":
        notes.append(Note("regime EL2: one level of privilege, no EL0", "dim"))
    if regime.pie:
        by = f"{regime.register('PIR')} {regime.pir:#x}"
        by += "" if regime.name == "EL2" else f", {regime.register('PIRE0')} {regime.pire0:#x}"
        notes.append(Note(f"indirect permissions: {by}", "dim"))
    if regime.doubt:
        notes.append(Note(regime.doubt, "changed"))
    return notes


def attributes_json(attributes: Attributes) -> dict[str, Any]:
    """Return the attributes by name; those that the descriptor does not have are left out."""
    return {name: found for name, found in vars(attributes).items() if found is not None}


SHAREABILITY = ("NSH", "SH=reserved", "OSH", "ISH")
ACCESS = ("EL1:rw", "EL1:rw,EL0:rw", "EL1:ro", "EL1:ro,EL0:ro")
TABLE_ACCESS = ("", "APTable:EL0-none", "APTable:ro", "APTable:ro,EL0-none")


def words(descriptor: Descriptor) -> str:
    """Return attributes in one line by the names that Arm and Linux use; bit 11 is always named."""
    a, regime = descriptor.attributes, descriptor.regime
    if a is None:
        return ""
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
    alone = regime.name == "EL2"
    flags = (
        ("nG" if a.ng else "global", True),
        ("AF" if a.af else "AF-clear", True),
        (SHAREABILITY[a.sh or 0], True),
        (ACCESS[(a.ap or 0) & (2 if alone else 3)].replace("EL1", regime.privileged), a.ap is not None),
        (f"PIIndex={a.pi_index}", a.pi_index is not None),
        (f"POIndex={a.po_index}", a.po_index is not None),
        ("nDirty", a.ndirty),
        ("PXN", a.pxn),
        ("XN" if alone else "UXN", a.uxn),
        ("Cont", a.contiguous),
        ("Protected", a.protected),
        ("DBM", a.dbm),
        ("GP", a.gp),
        ("NS", a.ns),
        (f"AttrIndx={a.attr_index}({a.memory_type})", True),
        *((name, True) for name in a.software),
    )
    return " ".join(word for word, shown in flags if shown)


def in_words(descriptor: Descriptor) -> str:
    """Return a descriptor in one line: kind, where it leads, attributes."""
    if descriptor.output_address is None:
        return str(descriptor.kind)
    return f"{descriptor.kind} -> pa:{descriptor.output_address:#x} {words(descriptor)}"
