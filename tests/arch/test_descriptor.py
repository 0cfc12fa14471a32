"""Descriptors bit by bit, for every granule, level and address format."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.arch.descriptor import BIT11, SOFTWARE_BITS, Kind, decode, kind
from ptinspect.arch.descriptor_fields import Field, explain
from ptinspect.arch.regime import Regime

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


NEAR_48 = {n: n for n in range(12, 48)}
ADDRESS = {
    "4k": NEAR_48,
    "4k-lpa2": {n: n for n in range(12, 50)} | {8: 50, 9: 51},
    "16k": NEAR_48,
    "16k-lpa2": {n: n for n in range(12, 50)} | {8: 50, 9: 51},
    "64k": NEAR_48,
    "64k-lpa": {n: n for n in range(16, 48)} | {12: 48, 13: 49, 14: 50, 15: 51},
}
"""Descriptor bit -> address bit (Arm ARM D8.3.1), before the bits below the entry's size are cut off."""
LEAF_SHIFT = {
    "4k": {1: 30, 2: 21, 3: 12},
    "4k-lpa2": {0: 39, 1: 30, 2: 21, 3: 12},
    "16k": {2: 25, 3: 14},
    "16k-lpa2": {1: 36, 2: 25, 3: 14},
    "64k": {2: 29, 3: 16},
    "64k-lpa": {1: 42, 2: 29, 3: 16},
}
"""Level -> log2 of what a leaf maps, for the levels that have leaves."""
GRANULE = {"4k": 12, "4k-lpa2": 12, "16k": 14, "16k-lpa2": 14, "64k": 16, "64k-lpa": 16}


def address_bit(name: str, bit: int, shift: int) -> int:
    """The address that one descriptor bit stands for, or 0."""
    position = ADDRESS[name].get(bit, -1)
    return 1 << position if position >= shift else 0


@pytest.mark.parametrize("name", ALL)
def test_output_address_bit_by_bit(name: str) -> None:
    for level, shift in LEAF_SHIFT[name].items():
        for bit in range(2, 64):
            raw = 1 << bit | (3 if level == 3 else 1)
            assert decode(raw, level, ALL[name]).output_address == address_bit(name, bit, shift), (level, bit)


@pytest.mark.parametrize("name", ALL)
def test_next_table_bit_by_bit(name: str) -> None:
    for level in range(ALL[name].start_level, 3):
        for bit in range(2, 64):
            found = decode(1 << bit | 3, level, ALL[name])
            assert found.output_address == address_bit(name, bit, GRANULE[name]), (level, bit)


LEAF_BITS: dict[int, dict[str, object]] = {
    2: {"attr_index": 1, "memory_type": "type 1"},
    3: {"attr_index": 2, "memory_type": "type 2"},
    4: {"attr_index": 4, "memory_type": "type 4"},
    5: {"ns": True},
    6: {"ap": 1},
    7: {"ap": 2},
    8: {"sh": 1},
    9: {"sh": 2},
    10: {"af": True},
    11: {"ng": True, "bit11": True},
    50: {"gp": True},
    51: {"dbm": True},
    52: {"contiguous": True},
    53: {"pxn": True},
    54: {"uxn": True},
    55: {"software": ("DIRTY",)},
    56: {"software": ("SPECIAL",)},
    57: {"software": ("DEVMAP",)},
    58: {"software": ("UFFD_WP",)},
    63: {"software": ("SW63",)},
}
TABLE_BITS: dict[int, dict[str, object]] = {
    10: {"af": True},
    11: {"table_mark": True, "bit11": True},
    59: {"pxn_table": True},
    60: {"uxn_table": True},
    61: {"apt": 1},
    62: {"apt": 2},
    63: {"ns_table": True},
}
"""Bit -> the attributes that it changes, and nothing else does."""
TYPES = 0xFF_BB_FF_44_0C_BB_44_00
TYPE_NAMES = {1: "Normal NC", 2: "Normal WT", 4: "Normal NC"}


def attributes(raw: int, level: int, regime: Regime) -> dict[str, object]:
    found = decode(raw, level, regime).attributes
    assert found is not None
    return dataclasses.asdict(found)


def changes(raw: int, bit: int, level: int, regime: Regime) -> dict[str, object]:
    plain, one = (attributes(value, level, regime) for value in (raw, raw | 1 << bit))
    return {name: value for name, value in one.items() if plain[name] != value}


@pytest.mark.parametrize("name", ALL)
def test_every_bit_of_a_leaf_changes_its_attributes_and_no_others(name: str) -> None:
    regime = dataclasses.replace(ALL[name], mair=TYPES)
    for level, bit in itertools.product(LEAF_SHIFT[name], range(2, 64)):
        expected = dict(LEAF_BITS.get(bit, {}))
        if "memory_type" in expected:
            expected["memory_type"] = TYPE_NAMES[1 << bit - 2]
        if regime.ds and bit in (8, 9):
            expected = {}
        assert changes(3 if level == 3 else 1, bit, level, regime) == expected, (level, bit)


@pytest.mark.parametrize("name", ALL)
def test_every_bit_of_a_table_changes_its_attributes_and_no_others(name: str) -> None:
    for level, bit in itertools.product(range(ALL[name].start_level, 3), range(2, 64)):
        assert changes(3, bit, level, ALL[name]) == TABLE_BITS.get(bit, {}), (level, bit)


def test_leaves_have_no_fields_of_tables_and_the_other_way_round() -> None:
    leaf, table = attributes(3, 3, K4), attributes(3, 2, K4)
    of_tables = {"table_mark", "apt", "pxn_table", "uxn_table", "ns_table"}
    of_tcr2 = {"pi_index", "ndirty", "po_index", "protected"}
    assert {name for name, value in leaf.items() if value is None} == of_tables | of_tcr2
    assert {name for name, value in table.items() if value is None} == set(leaf) - of_tables - {
        *("bit11", "af", "software")
    }


OF_PIE = dataclasses.replace(K4, pie=True, pir=0xFEDC_BA98_7654_3210, hpd=True)
OF_POE = dataclasses.replace(K4, poe=True, por=0x7654_3210, hpd=True)
OF_AIE = dataclasses.replace(K4, aie=True, mair=TYPES, mair2=0x44)
OF_EL2 = dataclasses.replace(K4, upper=False, name="EL2")
OF_NV1 = dataclasses.replace(K4, nv1=True)
OF_THE = dataclasses.replace(K4, pnch=True)
FORMS = {"PIE": OF_PIE, "POE": OF_POE, "AIE": OF_AIE, "EL2": OF_EL2, "NV1": OF_NV1, "PnCH": OF_THE}
OTHER_BITS: dict[str, dict[int, dict[str, object]]] = {
    "PIE": {
        6: {"pi_index": 1},
        51: {"pi_index": 2},
        53: {"pi_index": 4},
        54: {"pi_index": 8},
        7: {"ndirty": True},
    },
    "POE": {60: {"po_index": 1}, 61: {"po_index": 2}, 62: {"po_index": 4}},
    "AIE": {
        59: {"attr_index": 8, "memory_type": "Normal NC"},
        4: {"attr_index": 4, "memory_type": "Normal NC"},
    },
    "EL2": {53: {}},
    "NV1": {6: {}, 53: {}, 54: {"pxn": True}},
    "PnCH": {52: {"protected": True}},
}
"""What differs from LEAF_BITS where TCR2_EL1, EL2 or a hypervisor at EL1 gives bits another meaning."""


@pytest.mark.parametrize("name", FORMS)
def test_bits_of_a_leaf_that_mean_something_else(name: str) -> None:
    for bit in (*range(5, 12), *range(50, 64), *OTHER_BITS[name]):
        wanted = OTHER_BITS[name].get(bit, LEAF_BITS.get(bit, {}))
        assert changes(3, bit, 3, FORMS[name]) == wanted, bit


def test_bits_of_a_table_that_mean_something_else() -> None:
    assert changes(3, 60, 2, OF_NV1) == {"pxn_table": True}
    assert changes(3, 59, 2, OF_NV1) == changes(3, 61, 2, OF_NV1) == {}
    assert changes(3, 62, 2, OF_NV1) == {"apt": 2}


@pytest.mark.parametrize("name", FORMS)
def test_every_bit_is_explained_in_every_form(name: str) -> None:
    for low, bit in itertools.product(range(4), range(2, 64)):
        for level in (2, 3):
            raw = low | 1 << bit | 1 << 54 | 1 << 6
            assert told(explain(decode(raw, level, FORMS[name])), raw) == raw


def test_indirect_permissions_are_told_with_their_registers() -> None:
    """A user page of Linux 7.2 on QEMU 11: PIIndex 9, a read-only guarded control stack."""
    regime = dataclasses.replace(K4, pie=True, pir=0xCC88_0E0A_C080_0000, pire0=0x5010_9080_7032_0000)
    said = meaning(0x0040_0000_5000_1C47, 3, regime, "PIIndex[3:2]")
    assert said == "index 9: PIR_EL1 0b0000 ---; PIRE0_EL1 0b1000 r--"
    assert "0b1001 r--, GCS" in meaning(0x0048_0000_5000_1C47, 3, regime, "PIIndex[3:2]")
    assert meaning(0x0040_0000_5000_1CC7, 3, regime, "nDirty") == "clean: a write faults"
    assert meaning(0x0040_0000_5000_1CC7, 3, dataclasses.replace(regime, hd=True), "nDirty").endswith(
        "first write"
    )
    assert "TCR2_EL1.PIE" in meaning(3 | 1 << 60, 2, dataclasses.replace(regime, hpd=True), "UXNTable")


def test_fields_of_el2_have_its_names() -> None:
    assert meaning(3 | 1 << 54, 3, OF_EL2, "XN") == "never executable"
    assert meaning(3 | 3 << 6, 3, OF_EL2, "AP") == "EL2 read-only"
    assert meaning(3 | 1 << 6, 3, OF_EL2, "AP") == "EL2 read/write"
    assert meaning(3, 3, OF_EL2, "AttrIndx").startswith("MAIR_EL2 ")
    assert "EL2" in meaning(3 | 1 << 53, 3, dataclasses.replace(K4, name="EL2&0"), "PXN")


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


def places(field: Field) -> tuple[int, int]:
    high, _, low = field.bits.partition(":")
    return int(high), int(low or high)


def told(rows: list[Field], raw: int) -> int:
    """The descriptor that the rows add up to; they may not overlap, nor be out of order."""
    total, last = 0, 64
    for field in rows:
        assert field.name
        assert field.meaning
        if field.bits == "TCR":
            continue
        high, low = places(field)
        assert last > high >= low, rows
        assert field.value == raw >> low & ((1 << high - low + 1) - 1)
        total |= field.value << low
        last = low
    return total


@given(RAW, st.integers(-1, 3), st.sampled_from(list(ALL.values())))
def test_any_value_decodes_and_explains_every_bit_once(raw: int, level: int, regime: Regime) -> None:
    found = decode(raw, level, regime)
    assert found.kind is kind(raw, level, regime)
    assert (found.output_address is None) == (found.kind in (Kind.INVALID, Kind.RESERVED))
    assert (found.attributes is None) == (found.output_address is None)
    assert told(explain(found), raw) == raw


@pytest.mark.parametrize("name", ALL)
def test_every_bit_alone_is_explained(name: str) -> None:
    for level, low, bit in itertools.product(range(-1, 4), range(4), range(2, 64)):
        raw = low | 1 << bit
        assert told(explain(decode(raw, level, ALL[name])), raw) == raw


def meaning(raw: int, level: int, regime: Regime, name: str) -> str:
    (found,) = (field for field in explain(decode(raw, level, regime)) if field.name == name)
    return found.meaning


def test_names_of_leaf_fields_and_their_places() -> None:
    def rows(raw: int, level: int, regime: Regime) -> list[tuple[str, str]]:
        return [(field.name, field.bits) for field in explain(decode(raw, level, regime))]

    assert rows((1 << 64) - 1, 3, K4) == [
        *(("SW63", "63"), ("PBHA", "62:59"), ("UFFD_WP", "58"), ("DEVMAP", "57"), ("SPECIAL", "56")),
        *(("DIRTY", "55"), ("UXN", "54"), ("PXN", "53"), ("Contiguous", "52"), ("DBM", "51"), ("GP", "50")),
        *(("RES0", "49:48"), ("output address", "47:12"), ("nG", "11"), ("AF", "10"), ("SH", "9:8")),
        *(("AP", "7:6"), ("NS", "5"), ("AttrIndx", "4:2"), ("type", "1:0")),
    ]
    assert rows(((1 << 64) - 1) & ~2, 2, K4)[12:16] == [
        *(("output address", "47:21"), ("RES0", "20:17"), ("nT", "16"), ("RES0", "15:12")),
    ]
    assert rows(((1 << 64) - 1) & ~2, 2, K64_LPA)[12:16] == [
        *(("output address", "47:29"), ("RES0", "28:17"), ("nT", "16"), ("output address[51:48]", "15:12")),
    ]
    assert rows((1 << 64) - 1, 3, K4_LPA2)[11:16] == [
        *(("output address", "49:12"), ("nG", "11"), ("AF", "10"), ("SH", "TCR")),
        ("output address[51:50]", "9:8"),
    ]
    assert rows((1 << 64) - 1, 2, K16) == [
        *(("NSTable", "63"), ("APTable", "62:61"), ("UXNTable", "60"), ("PXNTable", "59")),
        *(("ignored", "58:50"), ("RES0", "49:48"), ("next table", "47:14"), ("RES0", "13:12")),
        *(("mark", "11"), ("AF", "10"), ("ignored", "9:8"), ("ignored", "7:2"), ("type", "1:0")),
    ]


@pytest.mark.parametrize(
    ("position", "words"),
    [(55, "PTE_DIRTY"), (56, "PTE_SPECIAL"), (57, "v5.3"), (58, "v6.10"), (63, "no name")],
)
def test_software_bits_are_told_with_their_era(position: int, words: str) -> None:
    assert words in meaning(3 | 1 << position, 3, K4, SOFTWARE_BITS[position])


@pytest.mark.parametrize(
    ("raw", "hd", "words"),
    [
        (0, False, "not set"),
        (1 << 7, True, "not set"),
        (1 << 51, False, "PTE_WRITE: writable"),
        (1 << 51 | 1 << 7, False, "PTE_WRITE: software may make it writable"),
        (1 << 51, True, "PTE_WRITE: writable, dirty"),
        (1 << 51 | 1 << 7, True, "PTE_WRITE: writable, clean: the CPU clears AP[2] at the first write"),
    ],
)
def test_what_dbm_means_with_and_without_hardware_dirty_state(raw: int, hd: bool, words: str) -> None:
    assert meaning(raw | 3, 3, dataclasses.replace(K4, ha=hd, hd=hd), "DBM") == words


def test_a_clear_access_flag_is_told_by_who_sets_it() -> None:
    assert meaning(3, 3, K4, "AF") == "not accessed: an access faults"
    assert "the CPU sets it" in meaning(3, 3, dataclasses.replace(K4, ha=True), "AF")


def test_hierarchical_bits_that_hpd_switches_off_are_told_as_such() -> None:
    off = dataclasses.replace(K4, hpd=True)
    for position, name in ((59, "PXNTable"), (60, "UXNTable"), (61, "APTable")):
        raw = 1 << position | 3
        assert "HPD" in meaning(raw, 0, off, name)
        assert "HPD" not in meaning(raw, 0, K4, name)
        assert "HPD" not in meaning(3, 0, off, name)


def test_an_address_beyond_the_output_size_is_told_as_a_fault() -> None:
    narrow = Regime(12, 48, 40, True)
    assert meaning(1 << 40 | 3, 3, narrow, "output address").endswith("an address size fault")
    assert meaning(1 << 39 | 3, 3, narrow, "output address") == "0x8000000000"
    assert meaning(1 << 40 | 3, 2, narrow, "next table").endswith("an address size fault")


def test_bit_11_of_an_invalid_entry_is_never_told_as_ng() -> None:
    for raw, level in ((BIT11, 3), (BIT11 | 2, 3), (BIT11 | 1, 3), (BIT11 | 1, 0), (BIT11 | 1 << 58, 2)):
        rows = explain(decode(raw, level, K4))
        assert [field.name for field in rows if field.name in ("nG", "mark")] == []
        assert meaning(raw, level, K4, "bit 11").startswith("not nG")
    assert "PTE_PRESENT_INVALID" in meaning(BIT11, 3, K4, "bit 11")
    assert "PTE_PRESENT_INVALID" not in meaning(BIT11 | 1, 3, K4, "bit 11")


@given(RAW, st.sampled_from(list(ALL.values())))
def test_bit_11_changes_nothing_else(raw: int, regime: Regime) -> None:
    for level in range(regime.start_level, 4):
        one, two = decode(raw | BIT11, level, regime), decode(raw & ~BIT11, level, regime)
        assert (one.kind, one.output_address) == (two.kind, two.output_address)


@pytest.mark.parametrize("raw", [-1, 1 << 64])
def test_what_is_no_descriptor_is_refused(raw: int) -> None:
    with pytest.raises(ValueError, match="not a 64-bit descriptor"):
        decode(raw, 3, K4)
