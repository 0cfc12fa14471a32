"""The rule of hardware slots, without a guest."""

from __future__ import annotations

import pytest

from ptinspect.link.gdb.slots import (
    LARGEST_AREA,
    Held,
    Purpose,
    capacity_of,
    fitting,
    going,
    largest_area,
    missing,
    shortage,
    used,
    watch_fault,
)

HELD = [
    Held(1, "breakpoint", "0x10", Purpose.GUARD),
    Held(2, "breakpoint", "0x20", Purpose.USER),
    Held(3, "breakpoint", "0x30", Purpose.REWRITE),
    Held(4, "breakpoint", "0x20", Purpose.USER),
    Held(5, "watchpoint", "8@0x40", Purpose.GUARD),
]


@pytest.mark.parametrize(
    ("dfr0", "found"), [(0x1030_5106, (6, 4)), (0x1100_1006, (2, 2)), (0xF0F0F0, (16, 16)), (0, (1, 1))]
)
def test_the_register_counts_from_one(dfr0: int, found: tuple[int, int]) -> None:
    capacity = capacity_of(dfr0)
    expected = ((dfr0 >> 12 & 15) + 1, (dfr0 >> 20 & 15) + 1)
    assert (capacity.of("breakpoint"), capacity.of("watchpoint")) == expected
    assert dfr0 == 0x1100_1006 or expected == found


def test_breakpoints_at_one_place_share_a_slot() -> None:
    assert used(HELD, "breakpoint") == 3 and used(HELD, "watchpoint") == 1
    assert missing(HELD, "breakpoint", 4, ["0x10", "0x50"]) == 0
    assert missing(HELD, "breakpoint", 4, ["0x50", "0x60"]) == 1


def test_what_matters_least_goes_first() -> None:
    slots = going(each for each in HELD if each.kind == "breakpoint")
    assert [[each.number for each in slot] for slot in slots] == [[2, 4], [3], [1]]


def test_slots_have_run_out() -> None:
    message, hint = shortage(HELD, "watchpoint", 1, 1)
    assert "1 hardware watchpoints, 1 too few" in message and "5 (stack guard)" in message
    assert hint == "delete 5"
    assert shortage([], "breakpoint", 2, 1)[1] == "the command needs more than this CPU has"
    message, hint = shortage(HELD, "breakpoint", 3, 1)
    assert hint == "delete 2 4", "both of one place, else no slot becomes free"
    assert shortage(HELD, "breakpoint", 3, 2)[1] == "delete 2 4 3"


def test_the_first_places_get_the_slots() -> None:
    assert fitting([1, 2, 1, 3], 2) == ([1, 2], [3])
    assert fitting([1, 2], None) == ([1, 2], [])


@pytest.mark.parametrize(
    ("address", "length", "fits"),
    [
        (0x1000, 8, True),
        (0x1004, 4, True),
        (0x1007, 1, True),
        (0x1004, 8, False),
        (0x1007, 2, False),
        (0x1000, 24, False),
        (0x1000, 0x1000, True),
        (0x1800, 0x1000, False),
        (0x10000, LARGEST_AREA, True),
        (0x10000, 2 * LARGEST_AREA, False),
        (0x1000, 0, False),
    ],
)
def test_what_one_watchpoint_covers(address: int, length: int, fits: bool) -> None:
    assert (watch_fault(address, length) == "") is fits


@pytest.mark.parametrize("low", [0x10010, 0x10000, 0x10FF8])
@pytest.mark.parametrize("size", [8, 24, 0x900, 0xA00, 0x3000, 0x20000])
def test_the_largest_area_fits_and_is_the_largest(low: int, size: int) -> None:
    found = largest_area(low, low + size)
    assert found is not None
    address, length = found
    assert low <= address and address + length <= low + size and not watch_fault(address, length)
    double = 2 * length
    inside = [a for a in range(0, 0x40000, double) if low <= a and a + double <= low + size]
    assert not inside or double > LARGEST_AREA


def test_too_small_for_any() -> None:
    assert largest_area(0x1004, 0x100B) is None
