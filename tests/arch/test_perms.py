"""Effective permissions, against the table of the Arm ARM and one bit at a time."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from ptinspect.arch.descriptor import decode
from ptinspect.arch.perms import effective
from ptinspect.arch.regime import Regime

K4 = Regime(12, 48, 48, True)
AP0, AP1, AP2, AP3 = 0 << 6, 1 << 6, 2 << 6, 3 << 6
PXN, UXN, DBM = 1 << 53, 1 << 54, 1 << 51
PXN_TABLE, UXN_TABLE, NO_EL0, NO_WRITE = 1 << 59, 1 << 60, 1 << 61, 1 << 62


def perms(leaf: int, tables: tuple[int, ...] = (), regime: Regime = K4) -> tuple[str, str]:
    found = effective(decode(leaf | 3, 3, regime), [decode(t | 3, 0, regime) for t in tables], regime)
    return found.el1, found.el0


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (AP0, ("rwx", "--x")),
        (AP1, ("rw-", "rwx")),
        (AP2, ("r-x", "--x")),
        (AP3, ("r-x", "r-x")),
        (AP0 | PXN, ("rw-", "--x")),
        (AP0 | UXN, ("rwx", "---")),
        (AP1 | UXN, ("rw-", "rw-")),
        (AP3 | PXN | UXN, ("r--", "r--")),
    ],
)
def test_direct_permissions(leaf: int, expected: tuple[str, str]) -> None:
    assert perms(leaf) == expected


@pytest.mark.parametrize("position", [0, 1, 2])
def test_hierarchical_bits_count_at_every_level(position: int) -> None:
    def at(bits: int) -> tuple[int, ...]:
        return tuple(bits if i == position else 0 for i in range(3))

    assert perms(AP1, at(NO_WRITE)) == ("r-x", "r-x")
    assert perms(AP1, at(NO_EL0)) == ("rwx", "--x")
    assert perms(AP3, at(PXN_TABLE)) == ("r--", "r-x")
    assert perms(AP3, at(UXN_TABLE)) == ("r-x", "r--")


def test_hierarchical_bits_are_ignored_with_hpd() -> None:
    regime = dataclasses.replace(K4, hpd=True)
    tables = (PXN_TABLE | UXN_TABLE | NO_EL0 | NO_WRITE,)
    for leaf in (AP0, AP1, AP2, AP3):
        assert perms(leaf, tables, regime) == perms(leaf)


def test_writable_at_el0_is_never_executable_at_el1() -> None:
    for leaf in itertools.product((AP0, AP1, AP2, AP3), (0, PXN), (0, UXN)):
        el1, el0 = perms(leaf[0] | leaf[1] | leaf[2])
        assert not ("w" in el0 and "x" in el1)


def test_wxn_takes_execution_from_what_is_writable() -> None:
    regime = dataclasses.replace(K4, wxn=True)
    assert perms(AP0, (), regime) == ("rw-", "--x")
    assert perms(AP1, (), regime) == ("rw-", "rw-")
    assert perms(AP2, (), regime) == ("r-x", "--x")


def test_dbm_makes_clean_pages_writable_only_where_hardware_manages_them() -> None:
    assert perms(AP2 | DBM) == ("r-x", "--x")
    assert perms(AP2 | DBM, (), dataclasses.replace(K4, hd=True)) == ("rwx", "--x")
    assert perms(AP2 | DBM, (NO_WRITE,), dataclasses.replace(K4, hd=True)) == ("r-x", "--x")


def test_epd_and_e0pd() -> None:
    assert perms(AP1, (), dataclasses.replace(K4, epd=True)) == ("---", "---")
    assert perms(AP3, (), dataclasses.replace(K4, e0pd=True)) == ("r-x", "---")


def test_a_table_has_no_permissions_of_its_own() -> None:
    with pytest.raises(ValueError, match="no permissions"):
        effective(decode(3, 0, K4), [], K4)


DIRECT = {0b00: "rw..", 0b01: "rwrw", 0b10: "r...", 0b11: "r.r."}
"""AP[2:1] -> read and write at EL1, then at EL0 (Arm ARM D8.4.1)."""
HIERARCHY = {0b00: "rwrw", 0b01: "rw..", 0b10: "r.r.", 0b11: "r..."}
"""APTable -> what it lets through (Arm ARM D8.4.2)."""


def expected(
    ap: int, xn: tuple[bool, bool], table: tuple[int, tuple[bool, bool]], dbm: bool, regime: Regime
) -> tuple[str, str, bool]:
    """What AArch64.S1DirectBasePermissions() computes, as strings: EL1, EL0, writable-clean."""
    if regime.epd:
        return "---", "---", False
    apt, xn_table = table
    clean = dbm and regime.hd and ap >= 2
    base = DIRECT[ap & 1 if clean else ap]
    if not regime.hpd:
        base = "".join(c if c == HIERARCHY[apt][i] else "." for i, c in enumerate(base))
        xn = (xn[0] or xn_table[0], xn[1] or xn_table[1])
    px, ux = not xn[0] and base[3] != "w", not xn[1]
    if regime.wxn:
        px, ux = px and base[1] != "w", ux and base[3] != "w"
    el1 = base[:2] + ("x" if px else ".")
    el0 = "..." if regime.e0pd else base[2:] + ("x" if ux else ".")
    return el1.replace(".", "-"), el0.replace(".", "-"), clean and base[1] == "w"


@pytest.mark.parametrize("controls", list(itertools.product((False, True), repeat=5)))
def test_every_combination_of_bits_and_controls(controls: tuple[bool, ...]) -> None:
    names = ("hpd", "wxn", "hd", "e0pd", "epd")
    regime = dataclasses.replace(K4, **dict(zip(names, controls, strict=True)))  # type: ignore[arg-type]
    pairs = list(itertools.product((False, True), repeat=2))
    for ap, xn, apt, xn_table, dbm in itertools.product(range(4), pairs, range(4), pairs, (False, True)):
        leaf = ap << 6 | xn[0] << 53 | xn[1] << 54 | dbm << 51 | 3
        table = apt << 61 | xn_table[0] << 59 | xn_table[1] << 60 | 3
        found = effective(decode(leaf, 3, regime), [decode(table, 2, regime)], regime)
        wanted = expected(ap, xn, (apt, xn_table), dbm, regime)
        assert (found.el1, found.el0, found.writable_clean) == wanted, (hex(leaf), hex(table))


@pytest.mark.parametrize("leaf", [0, 1, 3])
def test_what_is_no_leaf_has_no_permissions(leaf: int) -> None:
    with pytest.raises(ValueError, match="no permissions"):
        effective(decode(leaf, 0, K4), [], K4)
