"""The deepest point of a stack, from what was written below SP."""

from __future__ import annotations

import numpy as np
import pytest
from stack_guest import MAGIC, SIZE, StackGuest

from ptinspect.linux.running.stacks import Stack
from ptinspect.stack.highwater import PAINT, high_water, read_stacks

BASE = 0xFFFF_8000_1200_0000


def stack(kind: str = "task") -> Stack:
    return Stack(kind, BASE, BASE + SIZE)  # type: ignore[arg-type]


def words(**at: int) -> np.ndarray:
    content = np.zeros(SIZE // 8, np.uint64)
    content[0] = MAGIC
    for offset, value in at.items():
        content[int(offset.removeprefix("at"), 16) // 8] = value
    return content


@pytest.mark.parametrize("offset", [8, 0x100, SIZE - 8])
def test_the_lowest_word_that_is_not_zero(offset: int) -> None:
    found = high_water(stack(), words(**{f"at{offset:x}": 5, f"at{SIZE - 8:x}": 1}))
    assert (found.lowest, found.depth) == (BASE + offset, SIZE - offset)


def test_the_end_mark_does_not_count() -> None:
    assert high_water(stack(), words()).depth == 0


def test_a_stack_without_a_mark_counts_from_its_base() -> None:
    content = words(at3f00=1)
    content[0] = 0
    assert high_water(stack("irq"), content).depth == 0x100


def test_a_destroyed_mark_is_the_deepest_point() -> None:
    content = words()
    content[0] = MAGIC + 1
    found = high_water(stack(), content)
    assert found.depth == SIZE
    assert "base" in found.how


def test_paint_is_told_from_use() -> None:
    content = words()
    content[1:0x200] = PAINT
    content[0x180:0x200] = 7
    found = high_water(stack(), content)
    assert (found.depth, "painted" in found.how) == (SIZE - 0xC00, True)


def test_what_cannot_be_read_is_not_known() -> None:
    found = high_water(stack(), None)
    assert found.depth is found.lowest is None
    assert "cannot be read" in found.how


def test_stacks_of_scattered_pages_are_read_as_one() -> None:
    guest = StackGuest()
    bases = [guest.new_stack(), guest.new_stack()]
    for base in bases:
        guest.put(base + 0x0FF8, base, base + 1)
    found = read_stacks(guest.view(), [Stack("task", base, base + SIZE) for base in bases])
    for base in bases:
        assert len(found[base]) == SIZE // 8
        assert found[base][0x1FF:0x201].tolist() == [base, base + 1]


def test_a_stack_with_a_hole_is_absent() -> None:
    guest = StackGuest()
    whole, broken = guest.new_stack(), guest.new_stack()
    guest.tree.set(broken + 0x2000, 3, 0)
    outside = guest.new_stack()
    guest.tree.set(outside, 3, guest.tree.leaf(0x9_0000_0000, 3))
    found = read_stacks(guest.view(), [Stack("task", b, b + SIZE) for b in (whole, broken, outside)])
    assert list(found) == [whole]
    assert read_stacks(guest.view(), []) == {}


def test_a_stack_that_does_not_begin_at_a_page() -> None:
    guest = StackGuest()
    base = guest.new_stack()
    guest.put(base + 0x2B0, 77)
    found = read_stacks(guest.view(), [Stack("overflow", base + 0x2B0, base + 0x12B0)])
    assert (len(found[base + 0x2B0]), int(found[base + 0x2B0][0])) == (512, 77)
