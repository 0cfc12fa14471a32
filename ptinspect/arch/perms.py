"""Effective permissions of a leaf under the tables above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptinspect.arch.descriptor import Descriptor
from ptinspect.arch.regime import Regime


@dataclass(frozen=True)
class Permissions:
    """Say what an access may do: three letters `rwx`, a dash for what it may not."""

    el1: str
    """At EL1, PSTATE.PAN not considered."""
    el0: str
    """At EL0."""
    writable_clean: bool = False
    """Writable only by way of DBM: the CPU clears AP[2] at the first write, and so makes it dirty."""


NO_ACCESS = Permissions("---", "---")


def effective(leaf: Descriptor, tables: Sequence[Descriptor], regime: Regime) -> Permissions:
    """Return the permissions of `leaf` after the hierarchical bits of `tables` (root first).

    Direct permissions: Arm ARM D8.4.1; hierarchical: D8.4.2 (APTable, UXNTable, PXNTable, unless
    TCR_EL1.HPD); SCTLR_EL1.WXN: D8.4.3; writable at EL0 is never executable at EL1: D8.4.1;
    TCR_EL1.E0PD and EPD: D8.2. A leaf with AP[2] and DBM set is writable when hardware manages the
    dirty state (TCR_EL1.HD, D8.4.6), unless a table takes writing away. The Access flag is not a
    permission. Pseudocode: AArch64.S1DirectBasePermissions(). Permission indirection (FEAT_S1PIE) is
    not considered: Linux lays its indices out so that the bits keep their meaning.
    Raises ValueError if `leaf` is no block or page.
    """
    a = leaf.attributes
    if not leaf.is_leaf or a is None or a.ap is None:
        raise ValueError(f"{leaf.kind} descriptor {leaf.raw:#x} has no permissions")
    if regime.epd:
        return NO_ACCESS
    clean = bool(a.ap & 2 and a.dbm and regime.hd)
    read_only = bool(a.ap & 2) and not clean
    user = bool(a.ap & 1)
    pxn, uxn = bool(a.pxn), bool(a.uxn)
    if not regime.hpd:
        for table in tables:
            t = table.attributes
            if t is None or t.apt is None:
                continue
            read_only |= bool(t.apt & 2)
            user &= not t.apt & 1
            pxn |= bool(t.pxn_table)
            uxn |= bool(t.uxn_table)
    write = not read_only
    el1_x = not pxn and not (write and (user or regime.wxn))
    el0_x = not uxn and not (user and write and regime.wxn)
    el0 = _letters(user, user and write, el0_x) if not regime.e0pd else "---"
    return Permissions(_letters(True, write, el1_x), el0, writable_clean=clean and write)


def _letters(read: bool, write: bool, execute: bool) -> str:
    return ("r" if read else "-") + ("w" if write else "-") + ("x" if execute else "-")
