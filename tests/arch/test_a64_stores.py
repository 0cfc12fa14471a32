"""What writes memory, and where: words as an assembler makes them."""

from __future__ import annotations

import pytest

from ptinspect.arch.a64_stores import Written, writes, written

X = tuple(0x1000 * (n + 1) for n in range(31))
SP = 0xFF_0000

STORES = {
    0xF9000043: (0x3000, 8),  # str x3, [x2]
    0xF907FD49: (0xB000 + 4088, 8),  # str x9, [x10, #4088]
    0xA9000C44: (0x3000, 16),  # stp x4, x3, [x2]
    0xF8008586: (0xD000, 8),  # str x6, [x12], #8
    0xF81F0FE1: (SP - 16, 8),  # str x1, [sp, #-16]!
    0xF81F8041: (0x3000 - 8, 8),  # stur x1, [x2, #-8]
    0xA9BF7BFD: (SP - 16, 16),  # stp x29, x30, [sp, #-16]!
    0xC89FFD66: (0xC000, 8),  # stlr x6, [x11]
    0xC8A77D48: (0xB000, 8),  # cas x7, x8, [x10]
    0xF8293167: (0xC000, 8),  # ldset x9, x7, [x11]
    0x39001947: (0xB000 + 6, 1),  # strb w7, [x10, #6]
    0xD50B742A: (0xB000, 64),  # dc zva, x10
    0x3CAD79C0: (0xF000 + 0xE000 * 16, 16),  # str q0, [x14, x13, lsl #4]
    0xF82D59C0: (0xF000 + 0xE000 * 8, 8),  # str x0, [x14, w13, uxtw #3]
    0xC8007C41: (0x3000, 8),  # stxr w0, x1, [x2]
}
OTHERS = {
    0xF9400043: "ldr x3, [x2]",
    0xA9400C44: "ldp x4, x3, [x2]",
    0xC8DFFC41: "ldar x1, [x2]",
    0xC85F7C41: "ldxr x1, [x2]",
    0xF8BFC041: "ldapr x1, [x2]",
    0xB9800041: "ldrsw x1, [x2]",
    0x58000041: "ldr x1, .+8",
    0x8B010041: "add x1, x2, x1",
    0xD503207F: "wfi",
    0xD50B7B2A: "dc cvau, x10",
    0x14000000: "b .",
}


@pytest.mark.parametrize("word", STORES, ids=hex)
def test_a_store_tells_where_it_writes(word: int) -> None:
    assert written(word, X, SP) == Written(*STORES[word])


@pytest.mark.parametrize("word", OTHERS, ids=OTHERS.values())
def test_others_write_nothing(word: int) -> None:
    assert not writes(word) and written(word, X, SP) is None


def test_a_descriptor_is_covered_in_part_too() -> None:
    assert Written(0x1006, 1).covers(0x1000) and Written(0xFF8, 16).covers(0x1000)
    assert not Written(0x1008, 8).covers(0x1000) and not Written(0xFF8, 8).covers(0x1000)
