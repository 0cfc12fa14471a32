"""The array helpers say what the scalar decoder says, for every granule, level and bit pattern."""

from __future__ import annotations

import numpy as np
import pytest
from builders import REGIMES
from hypothesis import given, settings
from hypothesis import strategies as st

from ptinspect.arch.bits import MASK64
from ptinspect.arch.descriptor import Kind, decode, kind
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.tables import kinds as classify

EVERY = [(name, level) for name, regime in REGIMES.items() for level in levels_of(regime)]


def compare(raws: list[int], level: int, regime: Regime) -> None:
    array = np.array(raws, dtype=np.uint64)
    scalar = [decode(raw, level, regime) for raw in raws]
    names = [classify.KIND_NAMES[code] for code in classify.kinds(array, level, regime).tolist()]
    assert names == [str(d.kind) for d in scalar] == [str(kind(raw, level, regime)) for raw in raws]
    assert classify.are_tables(array, level).tolist() == [d.kind is Kind.TABLE for d in scalar]
    assert classify.are_leaves(array, level, regime).tolist() == [d.is_leaf for d in scalar]
    valid = [d.kind in (Kind.TABLE, Kind.BLOCK, Kind.PAGE) for d in scalar]
    assert classify.are_valid(array, level, regime).tolist() == valid
    reserved = [d.kind is Kind.RESERVED for d in scalar]
    assert classify.are_reserved(array, level, regime).tolist() == reserved
    leaves = classify.output_addresses(array, level, regime).tolist()
    tables = classify.next_tables(array, regime).tolist()
    for i, found in enumerate(scalar):
        if found.is_leaf:
            assert leaves[i] == found.output_address
        if found.kind is Kind.TABLE:
            assert tables[i] == found.output_address


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_each_single_bit(name: str, level: int) -> None:
    raws = [low | 1 << b for low in range(4) for b in range(64)] + [0, 1, 2, 3, MASK64, MASK64 - 2]
    compare(raws, level, REGIMES[name])


@settings(max_examples=200)
@given(st.sampled_from(EVERY), st.lists(st.integers(0, MASK64), min_size=1, max_size=20))
def test_any_bits(where: tuple[str, int], raws: list[int]) -> None:
    compare(raws, where[1], REGIMES[where[0]])


@given(
    st.sampled_from(EVERY),
    st.integers(0, MASK64),
    st.none() | st.integers(0, 16),
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from([0, 1 << 11, 1 << 47, 2])), max_size=2),
)
def test_tables_in_one_piece_are_leaves_whose_addresses_follow(
    where: tuple[str, int], first: int, to_the_top: int | None, changes: list[tuple[int, int]]
) -> None:
    name, level = where
    regime = REGIMES[name]
    size, low = regime.entry_size(level), regime.address_fields(regime.shift(level))[0][0]
    if to_the_top is not None:
        first = (first & ~low | low) - to_the_top * size
    row = [(first + size * slot) & MASK64 for slot in range(16)]
    for slot, bits in changes:
        row[slot] ^= bits
    entries = [decode(raw, level, regime) for raw in row]
    begin = entries[0].output_address
    expected = all(entry.is_leaf for entry in entries) and all(
        raw & ~low == row[0] & ~low and entry.output_address == begin + size * slot
        for slot, (raw, entry) in enumerate(zip(row, entries, strict=True))
        if begin is not None
    )
    found = classify.are_whole(np.array([row, [0] * 16], dtype=np.uint64), level, regime)
    assert found.tolist() == [expected, False]


@pytest.mark.parametrize(("name", "level"), EVERY)
@pytest.mark.parametrize("table", [False, True])
def test_address_and_attribute_bits_part_the_descriptor(name: str, level: int, table: bool) -> None:
    regime = REGIMES[name]
    address = classify.address_bits(level, regime, table=table)
    attributes = classify.attribute_bits(level, regime, table=table)
    assert address & attributes == 0 and address | attributes | 3 == MASK64
    find = regime.next_table if table else lambda raw: regime.output_address(raw, level)
    for b in range(64):
        moves = find(1 << b) != 0
        assert moves == bool(address >> b & 1), b


def test_shapes_are_kept() -> None:
    regime = REGIMES["4k-48"]
    raw = np.zeros((3, 512), dtype=np.uint64)
    assert classify.kinds(raw, 2, regime).shape == (3, 512)
    assert classify.kinds(raw, 2, regime).dtype == np.uint8
