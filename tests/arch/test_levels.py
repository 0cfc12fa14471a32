"""Names of levels and sizes, and bit fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.arch.bits import align_down, align_up, bit, bits, mask
from ptinspect.arch.levels import level_name, levels_of, size_text
from ptinspect.arch.regime import Regime


@pytest.mark.parametrize(
    ("regime", "names"),
    [
        (Regime(12, 52, 52, True, ds=True), "pgd p4d pud pmd pte"),
        (Regime(12, 48, 48, True), "pgd pud pmd pte"),
        (Regime(12, 39, 48, True), "pgd pmd pte"),
        (Regime(12, 30, 48, True), "pgd pte"),
        (Regime(12, 21, 48, True), "pgd"),
        (Regime(14, 48, 48, True), "pgd pud pmd pte"),
        (Regime(14, 47, 48, True), "pgd pmd pte"),
        (Regime(14, 36, 48, True), "pgd pte"),
        (Regime(16, 52, 52, True), "pgd pmd pte"),
        (Regime(16, 42, 48, True), "pgd pte"),
    ],
)
def test_levels_have_the_names_of_linux_without_the_folded_ones(regime: Regime, names: str) -> None:
    assert [level_name(level, regime) for level in levels_of(regime)] == names.split()


@pytest.mark.parametrize(
    ("shift", "name"),
    [
        *((12, "4K"), (14, "16K"), (16, "64K"), (21, "2M"), (25, "32M"), (29, "512M")),
        *((30, "1G"), (36, "64G"), (39, "512G"), (42, "4T")),
    ],
)
def test_sizes_of_leaves(shift: int, name: str) -> None:
    assert size_text(1 << shift) == name


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 63), st.integers(0, 63))
def test_bit_fields(value: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    digits = f"{value:064b}"
    field = digits[63 - high : 64 - low]
    assert bits(value, high, low) == int(field, 2)
    assert bit(value, low) is (field[-1] == "1")
    assert mask(high, low) == int("1" * len(field) + "0" * low, 2)
    assert mask(low, high + 1) == 0


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 48))
def test_alignment(value: int, shift: int) -> None:
    size = 1 << shift
    down, up = align_down(value, size), align_up(value, size)
    assert down % size == up % size == 0
    assert down <= value <= up
    assert up - down == (size if value % size else 0)
