"""KASAN's shadow, with the addresses of kernels that were built with it, and of Kconfig's defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from builders import regime_4k

from ptinspect.linux.kasan import shadow_of, shifted
from ptinspect.linux.regions import Region


@dataclass
class Image:
    text_va: int
    symbols: dict[str, int] = field(default_factory=lambda: {"kasan_early_init": 1})
    linked: bool = True


@pytest.mark.parametrize(
    ("bits", "text", "start", "end", "shift"),
    [
        # 5.10, 39 bits: seen in a guest
        (39, 0xFFFF_FFD0_1000_0000, 0xFFFF_FFC0_0000_0000, 0xFFFF_FFD0_0000_0000, 1 << 36),
        # 5.10, 48 bits: KASAN_SHADOW_OFFSET 0xdfffa00000000000
        (48, 0xFFFF_A000_1000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_A000_0000_0000, 1 << 45),
        # 5.11 and later, 48 bits: KASAN_SHADOW_OFFSET 0xdfff800000000000
        (48, 0xFFFF_8000_0800_0000, 0xFFFF_6000_0000_0000, 0xFFFF_8000_0000_0000, 0),
    ],
)
def test_where_the_shadow_lies(bits: int, text: int, start: int, end: int, shift: int) -> None:
    middle = (1 << 64) - (1 << bits - 1)
    assert shadow_of(regime_4k(bits), Image(text), middle) == ([Region(start, end, "KASAN shadow")], shift)  # type: ignore[arg-type]


def test_a_kernel_without_kasan_has_none() -> None:
    middle = 0xFFFF_8000_0000_0000
    assert shadow_of(regime_4k(), Image(middle, {}), middle) == ([], 0)  # type: ignore[arg-type]
    assert shadow_of(regime_4k(), None, middle) == ([], 0)


def test_what_follows_moves() -> None:
    regions = [Region(0, 8, "linear map"), Region(8, 16, "modules"), Region(16, 99, "vmalloc")]
    assert shifted(regions, 4) == [Region(12, 20, "modules"), Region(20, 99, "vmalloc")]
    assert shifted(regions, 0) == []
