"""Effective permissions, against the table of the Arm ARM and one bit at a time."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from ptinspect.arch.descriptor import decode
from ptinspect.arch.permissions import effective
from ptinspect.arch.regime import Regime

K4 = Regime(12, 48, 48, True)
AP0, AP1, AP2, AP3 = 0 << 6, 1 << 6, 2 << 6, 3 << 6
PXN, UXN, DBM = 1 << 53, 1 << 54, 1 << 51
PXN_TABLE, UXN_TABLE, NO_EL0, NO_WRITE = 1 << 59, 1 << 60, 1 << 61, 1 << 62


def perms(leaf: int, tables: tuple[int, ...] = (), regime: Regime = K4) -> tuple[str, str]:
    found = effective(decode(leaf | 3, 3, regime), [decode(t | 3, 0, regime) for t in tables], regime)
    return found.el1, found.el0


@pytest.mark.parametrize("position", [0, 1, 2])
def test_hierarchical_bits_count_at_every_level(position: int) -> None:
    def at(bits: int) -> tuple[int, ...]:
        return tuple(bits if i == position else 0 for i in range(3))

    assert perms(AP1, at(NO_WRITE)) == ("r-x", "r-x")
    assert perms(AP1, at(NO_EL0)) == ("rwx", "--x")
    assert perms(AP3, at(PXN_TABLE)) == ("r--", "r-x")
    assert perms(AP3, at(UXN_TABLE)) == ("r-x", "r--")


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


def one_field(value: int, index: int = 0) -> int:
    return value << 4 * index


PIE_LETTERS = {
    0: "---", 1: "r--", 2: "--x", 3: "r-x", 4: "---", 5: "rw-", 6: "rw-", 7: "rwx",
    8: "r--", 9: "r--", 10: "r-x", 11: "---", 12: "rw-", 13: "---", 14: "rwx", 15: "---",
}  # fmt: skip
"""Arm ARM PIR_EL1: what each field gives alone; 6 may be written to, so it is not executed."""


@pytest.mark.parametrize(("kernel", "user"), list(itertools.product(range(16), range(16))))
def test_every_pair_of_indirect_permissions(kernel: int, user: int) -> None:
    """R_VFPJF: who may execute, or use as a shadow stack, what EL0 may write or use as one, may nothing."""
    taken = (kernel in (2, 3, 6, 7, 9, 10, 14)) and (user in (5, 6, 7, 9, 12, 14))
    for index in range(16):
        regime = dataclasses.replace(
            K4, pie=True, hpd=True, pir=one_field(kernel, index), pire0=one_field(user, index)
        )
        leaf = (index & 8) << 51 | (index & 4) << 51 | (index & 2) << 50 | (index & 1) << 6 | 3
        found = effective(decode(leaf, 3, regime), [decode(3 | 15 << 59, 2, regime)], regime)
        expected = ("---", "---") if taken else (PIE_LETTERS[kernel], PIE_LETTERS[user])
        assert (found.el1, found.el0) == expected
        assert (found.el1_gcs, found.el0_gcs) == (not taken and kernel == 9, not taken and user == 9)


def test_a_clean_page_is_written_to_only_where_the_cpu_makes_it_dirty() -> None:
    regime = dataclasses.replace(K4, pie=True, hpd=True, pir=one_field(0xE), pire0=one_field(8))
    for clean, hd, letters, told in ((0, 0, "rwx", 0), (0, 1, "rwx", 0), (1, 0, "r-x", 0), (1, 1, "rwx", 1)):
        held = dataclasses.replace(regime, hd=bool(hd))
        found = effective(decode(3 | clean << 7, 3, held), [], held)
        assert (found.el1, found.el0, found.writable_clean) == (letters, "r--", bool(told))


def test_wxn_hierarchy_and_dbm_have_no_part_in_indirect_permissions() -> None:
    regime = dataclasses.replace(K4, pie=True, hpd=True, wxn=True, pir=one_field(0xE), pire0=0)
    assert perms(3, (15 << 59,), regime) == ("rwx", "---")


def test_one_level_of_privilege_has_no_el0_and_one_bit_against_execution() -> None:
    el2 = Regime(12, 48, 48, False, name="EL2")
    assert perms(AP0, (), el2) == ("rwx", "---")
    assert perms(AP1, (), el2) == ("rwx", "---"), "AP[1] is RES1 there"
    assert perms(AP3 | UXN, (), el2) == ("r--", "---"), "the kernel's rodata as EL2 has it"
    assert perms(AP1 | PXN, (), el2) == ("rwx", "---"), "bit 53 is RES0"
    assert perms(AP1, (NO_WRITE | UXN_TABLE,), el2) == ("r--", "---")
    assert perms(AP1, (PXN_TABLE | NO_EL0,), el2) == ("rwx", "---")
    assert perms(AP1, (), dataclasses.replace(el2, wxn=True)) == ("rw-", "---")
    pie = dataclasses.replace(el2, pie=True, hpd=True, pir=one_field(10), pire0=one_field(5))
    assert perms(0, (), pie) == ("r-x", "---")


def test_tables_of_a_hypervisor_at_el1() -> None:
    """FEAT_NV, HCR_EL2.NV and NV1: bit 54 is PXN, bit 60 PXNTable, AP[1] and APTable[0] count as 0."""
    nv = dataclasses.replace(K4, nv1=True)
    assert perms(AP1, (), nv) == ("rwx", "--x")
    assert perms(AP0 | UXN, (), nv) == ("rw-", "--x")
    assert perms(AP0 | PXN, (), nv) == ("rwx", "--x")
    assert perms(AP0, (UXN_TABLE,), nv) == ("rw-", "--x")
    assert perms(AP0, (PXN_TABLE | NO_EL0,), nv) == ("rwx", "--x")


OVERLAY = {0: "---", 1: "r--", 2: "--x", 3: "r-x", 4: "-w-", 5: "rw-", 6: "-wx", 7: "rwx"}


@pytest.mark.parametrize("field", range(16))
def test_overlays_only_take_away(field: int) -> None:
    """Arm ARM POR_EL1; as Linux's compute_s1_overlay_permissions() has it (arch/arm64/kvm/at.c)."""
    allowed = OVERLAY.get(field, "---")
    both = "".join(a if a == b else "-" for a, b in zip("rwx", allowed, strict=True))
    for index in range(8):
        leaf = AP0 | UXN | index << 60
        direct = dataclasses.replace(K4, hpd=True, poe=True, por=one_field(field, index))
        assert perms(leaf, (15 << 59,), direct) == (both, "---")
        user = dataclasses.replace(K4, hpd=True, e0poe=True, por0=one_field(field, index))
        found = "".join(a if a == b else "-" for a, b in zip("rw-", allowed, strict=True))
        assert perms(AP1 | UXN | PXN | index << 60, (), user) == ("rw-", found)
        pie = dataclasses.replace(user, e0poe=False, poe=True, por=one_field(field, index), pie=True)
        assert perms(index << 60, (), dataclasses.replace(pie, pir=7))[0] == both
        assert perms(index << 60, (), dataclasses.replace(pie, pir=14))[0] == "rwx", "no overlay from 8 on"


def test_wxn_under_an_overlay_takes_writing_and_not_execution() -> None:
    """R_QXXPC: with an overlay that lets execute, WXN takes writing; without one, execution."""
    pie = dataclasses.replace(K4, pie=True, hpd=True, poe=True, pir=6)
    assert [perms(0, (), dataclasses.replace(pie, por=por))[0] for por in (7, 3, 5, 6)] == [
        *("r-x", "r-x", "rw-", "--x")
    ]
