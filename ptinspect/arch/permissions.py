"""Effective permissions of a leaf: direct or indirect, under the tables above it, through the overlays."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.descriptor import Attributes, Descriptor
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass, replace

INDIRECT = (
    *("---", "r--", "--x", "r-x", "---", "rw-", "rwx", "rwx"),
    *("r--", "r--", "r-x", "---", "rw-", "---", "rwx", "---"),
)
"""Field -> base permissions (Arm ARM R_LLZDZ, PIR_EL1)."""
GCS = 9
"""The field that allows a guarded control stack."""
WXN = 6
"""The field that forbids to execute what may be written (R_HJYGR)."""
PLAIN = 8
"""From this field on the overlay has no part (FEAT_S1POE)."""


@dataclass(frozen=True)
class Access:
    """Hold what one level may do, and what may still be taken from it."""

    read: bool = False
    write: bool = False
    execute: bool = False
    gcs: bool = False
    """It may use the memory as a guarded control stack (FEAT_GCS)."""
    wxn: bool = False
    """What may be written may not be executed."""
    overlay: bool = False
    """An overlay register may take from it."""

    @property
    def letters(self) -> str:
        """The access as `rwx`."""
        allowed = (self.read, self.write, self.execute)
        return "".join(letter if on else "-" for letter, on in zip("rwx", allowed, strict=True))


def field(register: int, index: int) -> int:
    """Return one of the sixteen fields of four bits that PIR and POR registers have."""
    return register >> 4 * index & 15


def base_access(register: int, index: int) -> Access:
    """Return the base permissions that a field of PIR_EL1, PIRE0_EL1 or PIR_EL2 gives one level."""
    found = field(register, index)
    read, write, execute = (letter != "-" for letter in INDIRECT[found])
    return Access(read, write, execute, found == GCS, found == WXN, found < PLAIN)


def field_text(name: str, register: int, index: int) -> str:
    """Write what a field gives: `PIR_EL1 0b1001 r--, GCS`."""
    found = field(register, index)
    more = ", GCS" if found == GCS else ", not executable where writable" if found == WXN else ""
    return f"{name} {found:#06b} {INDIRECT[found]}{more}"


@dataclass(frozen=True)
class Permissions:
    """Give what an access may do: three letters `rwx`, a dash for what it may not."""

    el1: str
    """At the privileged level of the regime, EL1 or EL2 (`Regime.privileged`); PSTATE.PAN not considered."""
    el0: str
    """At EL0."""
    writable_clean: bool = False
    """Writable only because the CPU marks it dirty at the first write, by way of DBM or nDirty."""
    el1_gcs: bool = False
    """The privileged level may use it as a guarded control stack (FEAT_GCS)."""
    el0_gcs: bool = False
    """EL0 may use it as a guarded control stack."""


NO_ACCESS = Permissions("---", "---")


def effective(leaf: Descriptor, tables: Sequence[Descriptor], regime: Regime) -> Permissions:
    """Return the permissions of `leaf` under `tables` (root first), as the CPU computes them.

    Base permissions come from the bits of the leaf and of the tables, or with TCR2_EL1.PIE from PIR_EL1
    and PIRE0_EL1 alone; overlays (FEAT_S1POE) take from them; then SCTLR_EL1.WXN, the dirty state,
    TCR_EL1.EPD and E0PD. The Access flag is not a permission.
    Source: Arm ARM D8.4; pseudocode AArch64.S1ComputePermissions() with what it calls, as QEMU's
    target/arm/ptw.c and Linux's arch/arm64/kvm/at.c have it. Raises ValueError if it is not a block or page.
    """
    a = leaf.attributes
    if not leaf.is_leaf or a is None:
        raise ValueError(f"{leaf.kind} descriptor {leaf.raw:#x} has no permissions")
    if regime.epd:
        return NO_ACCESS
    privileged, user = _indirect(a, regime) if regime.pie else _direct(a, tables, regime)
    privileged = _overlaid(privileged, regime.poe, regime.por, a)
    user = _overlaid(user, regime.e0poe, regime.por0, a) if not regime.e0pd else Access()
    clean = _is_clean(a)
    if clean and not regime.hd:
        privileged, user = replace(privileged, write=False), replace(user, write=False)
    return Permissions(
        privileged.letters,
        user.letters,
        writable_clean=clean and (privileged.write or user.write),
        el1_gcs=privileged.gcs,
        el0_gcs=user.gcs,
    )


def _is_clean(a: Attributes) -> bool:
    """Tell whether a leaf that may be written to has not been: nDirty, or DBM with AP[2] (D8.4.6)."""
    if a.pi_index is not None:
        return bool(a.ndirty)
    return bool((a.ap or 0) & 2 and a.dbm)


def _direct(a: Attributes, tables: Sequence[Descriptor], regime: Regime) -> tuple[Access, Access]:
    """Return the direct permissions (D8.4.1) after the hierarchical ones (D8.4.2): privileged, EL0.

    What EL0 may write to is never executable at the level above. With one level of privilege AP[1] and
    PXN mean nothing, and bit 54 is XN. Pseudocode: AArch64.S1DirectBasePermissions().
    """
    assert a.ap is not None
    user = bool(a.ap & 1)
    write = not a.ap & 2 or bool(a.dbm and regime.hd)
    no_execute, no_user_execute = bool(a.pxn), bool(a.uxn)
    for table in () if regime.hpd else tables:
        t = table.attributes
        if t is not None and t.apt is not None:
            write &= not t.apt & 2
            user &= not t.apt & 1
            no_execute |= bool(t.pxn_table)
            no_user_execute |= bool(t.uxn_table)
    alone = regime.name == "EL2"
    if alone:
        user, no_execute = False, no_user_execute
    privileged = Access(True, write, not no_execute and not (user and write), wxn=regime.wxn, overlay=True)
    if alone:
        return privileged, Access()
    return privileged, Access(user, user and write, not no_user_execute, wxn=regime.wxn, overlay=True)


def _indirect(a: Attributes, regime: Regime) -> tuple[Access, Access]:
    """Return the indirect permissions: privileged, EL0. Tables and SCTLR_EL1.WXN have no part in them.

    Where one level may execute, or use a guarded control stack, what EL0 may write to or use as one,
    neither has any access (R_VFPJF). Pseudocode: AArch64.S1IndirectBasePermissions().
    """
    assert a.pi_index is not None
    privileged = base_access(regime.pir, a.pi_index)
    if regime.name == "EL2":
        return privileged, Access()
    user = base_access(regime.pire0, a.pi_index)
    if (privileged.execute or privileged.gcs) and (user.write or user.gcs):
        return Access(), Access()
    return privileged, user


def _overlaid(access: Access, enabled: bool, register: int, a: Attributes) -> Access:
    """Apply an overlay, bit 0 of whose field lets read, 1 execute and 2 write; and WXN (R_QXXPC, R_NPBXC)."""
    if not (enabled and access.overlay):
        return replace(access, execute=access.execute and not (access.wxn and access.write))
    allowed = field(register, a.po_index or 0)
    read, execute, write = (bool(allowed < 8 and allowed & bit) for bit in (1, 2, 4))
    write &= not (access.wxn and execute)
    return replace(
        access, read=access.read and read, write=access.write and write, execute=access.execute and execute
    )
