"""Descriptors bit by bit, for every granule, level and address format."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.arch.descriptor import BIT11, SOFTWARE_BITS, Kind, decode, kind
from ptinspect.arch.regime import Regime
from ptinspect.errors import RegimeError

K4 = Regime(12, 48, 48, True)
K4_LPA2 = Regime(12, 52, 52, True, ds=True)
K16 = Regime(14, 47, 48, True)
K16_LPA2 = Regime(14, 52, 52, True, ds=True)
K64 = Regime(16, 48, 48, True)
K64_LPA = Regime(16, 52, 52, True)
ALL = {"4k": K4, "4k-lpa2": K4_LPA2, "16k": K16, "16k-lpa2": K16_LPA2, "64k": K64, "64k-lpa": K64_LPA}
BLOCKS = {"4k": (1, 2), "4k-lpa2": (0, 1, 2), "16k": (2,), "16k-lpa2": (1, 2), "64k": (2,), "64k-lpa": (1, 2)}
"""Levels at which Arm ARM D8.3.1 allows a block."""
RAW = st.integers(min_value=0, max_value=(1 << 64) - 1)
MAIR_417 = 0xBBFF440C0400


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("level", range(-1, 4))
@pytest.mark.parametrize("low", range(4))
def test_kind_of_every_low_pair_at_every_level(name: str, level: int, low: int) -> None:
    if low in (0, 2):
        expected = Kind.INVALID
    elif level == 3:
        expected = Kind.PAGE if low == 3 else Kind.RESERVED
    elif low == 3:
        expected = Kind.TABLE
    else:
        expected = Kind.BLOCK if level in BLOCKS[name] else Kind.RESERVED
    for rest in (0, 0xFFFF_FFFF_FFFF_FFFC, BIT11):
        assert kind(rest & ~3 | low, level, ALL[name]) is expected


@pytest.mark.parametrize(
    ("regime", "level", "bit", "oa"),
    [
        (K4, 3, 12, 1 << 12),
        (K4, 3, 47, 1 << 47),
        (K4, 3, 48, 0),
        (K4, 3, 8, 0),
        (K4, 2, 20, 0),
        (K4, 2, 21, 1 << 21),
        (K4, 1, 29, 0),
        (K4, 1, 30, 1 << 30),
        (K4_LPA2, 3, 8, 1 << 50),
        (K4_LPA2, 3, 9, 1 << 51),
        (K4_LPA2, 3, 49, 1 << 49),
        (K4_LPA2, 3, 50, 0),
        (K16, 3, 13, 0),
        (K16, 3, 14, 1 << 14),
        (K16, 2, 25, 1 << 25),
        (K16, 2, 24, 0),
        (K16_LPA2, 3, 9, 1 << 51),
        (K64, 3, 15, 0),
        (K64, 3, 16, 1 << 16),
        (K64_LPA, 3, 12, 1 << 48),
        (K64_LPA, 3, 15, 1 << 51),
        (K64_LPA, 3, 48, 0),
        (K64_LPA, 2, 29, 1 << 29),
        (K64_LPA, 2, 28, 0),
    ],
)
def test_output_address_bit_by_bit(regime: Regime, level: int, bit: int, oa: int) -> None:
    low = 3 if level == 3 else 1
    assert decode(1 << bit | low, level, regime).output_address == oa


@pytest.mark.parametrize(
    ("regime", "bit", "pa"),
    [
        (K4, 12, 1 << 12),
        (K4, 47, 1 << 47),
        (K4, 48, 0),
        (K4_LPA2, 8, 1 << 50),
        (K64_LPA, 15, 1 << 51),
        (K16, 13, 0),
    ],
)
def test_next_table_bit_by_bit(regime: Regime, bit: int, pa: int) -> None:
    assert decode(1 << bit | 3, regime.start_level, regime).output_address == pa


@pytest.mark.parametrize(
    ("bit", "field", "value"),
    [
        (5, "ns", True),
        (10, "af", True),
        (11, "ng", True),
        (11, "bit11", True),
        (50, "gp", True),
        (51, "dbm", True),
        (52, "contiguous", True),
        (53, "pxn", True),
        (54, "uxn", True),
        (55, "software", ("DIRTY",)),
        (56, "software", ("SPECIAL",)),
        (57, "software", ("DEVMAP",)),
        (6, "ap", 1),
        (7, "ap", 2),
        (8, "sh", 1),
        (9, "sh", 2),
        (2, "attr_index", 1),
        (4, "attr_index", 4),
    ],
)
def test_leaf_attributes_bit_by_bit(bit: int, field: str, value: object) -> None:
    plain, one = decode(3, 3, K4).attributes, decode(3 | 1 << bit, 3, K4).attributes
    assert plain is not None
    assert one is not None
    assert getattr(one, field) == value
    assert getattr(plain, field) != value


@pytest.mark.parametrize(
    ("bit", "field", "value"),
    [
        (11, "table_mark", True),
        (11, "bit11", True),
        (10, "af", True),
        (59, "pxn_table", True),
        (60, "uxn_table", True),
        (61, "apt", 1),
        (62, "apt", 2),
        (63, "ns_table", True),
    ],
)
def test_table_attributes_bit_by_bit(bit: int, field: str, value: object) -> None:
    plain, one = decode(3, 0, K4).attributes, decode(3 | 1 << bit, 0, K4).attributes
    assert plain is not None
    assert one is not None
    assert getattr(one, field) == value
    assert getattr(plain, field) != value


def test_bit11_means_ng_on_leaves_and_a_mark_on_tables_and_nothing_elsewhere() -> None:
    leaf, table = decode(BIT11 | 3, 3, K4).attributes, decode(BIT11 | 3, 2, K4).attributes
    assert leaf is not None
    assert table is not None
    assert (leaf.ng, leaf.table_mark) == (True, None)
    assert (table.ng, table.table_mark) == (None, True)
    assert decode(BIT11, 3, K4).attributes is None
    assert decode(BIT11 | 1, 3, K4).attributes is None


def test_with_lpa2_shareability_comes_from_tcr() -> None:
    regime = Regime(12, 52, 52, True, ds=True, sh=2)
    found = decode(3 | 3 << 8, 3, regime)
    assert found.attributes is not None
    assert found.attributes.sh == 2
    assert found.output_address == 3 << 50


def test_the_last_descriptors_of_the_report_of_june_2018() -> None:
    regime = Regime(12, 48, 48, True, mair=MAIR_417)
    block = decode(0x00F800007FE00F11, 2, regime)
    assert (block.kind, block.output_address) == (Kind.BLOCK, 0x7FE00000)
    a = block.attributes
    assert a is not None
    assert (a.attr_index, a.memory_type, a.ng, a.af, a.dbm, a.contiguous, a.pxn, a.uxn) == (
        *(4, "Normal WB"),
        *(True, True, True, True, True, True),
    )
    assert (a.ap, a.sh, a.software) == (0, 3, ("DIRTY",))
    page = decode(0x00F8000040FFFF13, 3, regime)
    assert (page.kind, page.output_address) == (Kind.PAGE, 0x40FFF000)
    assert page.attributes is not None
    assert page.attributes.ng


@given(RAW, st.integers(-1, 3), st.sampled_from(list(ALL.values())))
def test_any_value_decodes_and_explains_itself(raw: int, level: int, regime: Regime) -> None:
    found = decode(raw, level, regime)
    assert found.kind is kind(raw, level, regime)
    assert (found.output_address is None) == (found.kind in (Kind.INVALID, Kind.RESERVED))
    assert (found.attributes is None) == (found.output_address is None)
    rows = found.explain()
    assert rows
    for field in rows:
        assert field.name
        assert field.meaning
        if ":" in field.bits:
            high, low = map(int, field.bits.split(":"))
            assert field.value == raw >> low & ((1 << high - low + 1) - 1)
        elif field.bits.isdigit():
            assert field.value == raw >> int(field.bits) & 1


@given(RAW, st.sampled_from(list(ALL.values())))
def test_bit_11_changes_nothing_else(raw: int, regime: Regime) -> None:
    for level in range(regime.start_level, 4):
        one, two = decode(raw | BIT11, level, regime), decode(raw & ~BIT11, level, regime)
        assert (one.kind, one.output_address) == (two.kind, two.output_address)


@pytest.mark.parametrize("raw", [-1, 1 << 64])
def test_what_is_no_descriptor_is_refused(raw: int) -> None:
    with pytest.raises(ValueError, match="no 64-bit descriptor"):
        decode(raw, 3, K4)


def test_software_bits_are_never_read_by_the_architecture() -> None:
    for bit, regime in itertools.product(SOFTWARE_BITS, ALL.values()):
        assert decode(3 | 1 << bit, 3, regime).output_address == 0


@pytest.mark.parametrize(("granule", "va"), [(13, 48), (12, 12), (12, 56), (16, 16)])
def test_a_regime_that_does_not_exist_is_refused(granule: int, va: int) -> None:
    with pytest.raises(RegimeError):
        Regime(granule, va, 48, True)
