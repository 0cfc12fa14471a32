"""Changes to the rewrite's own code that make the cases of the LKML thread of June 2018 out of it."""

from __future__ import annotations

from collections.abc import Callable

from ptinspect.arch.a64 import words
from ptinspect.linux.kpti.code import KptiCode, LevelCode

SKIPS_MARKED = 0x37580000
"""`tbnz wN, #11, …`: what the new algorithm has before it marks an entry."""


def _jump(at: int, to: int) -> int:
    return 0x14000000 | (to - at) >> 2 & 0x3FF_FFFF


def _if_table(register: int, at: int, to: int) -> int:
    """`tbnz wN, #1, to`."""
    return 0x37080000 | ((to - at) >> 2 & 0x3FFF) << 5 | register


def not_tracked(code: KptiCode, raw: bytes) -> dict[int, int]:
    """Tables are never written: the first debug patch. Offset -> instruction."""
    if code.algorithm == "mmu-off-post-order":
        return _returns(code, raw, lambda level: level.skip)
    return _early(code, raw, lambda level: level.descend or 0)


def written_back(code: KptiCode, raw: bytes) -> dict[int, int]:
    """Tables are written with the value that they had, as with the second debug patch."""
    if code.algorithm == "mmu-off-post-order":
        return _returns(code, raw, lambda level: (level.mark or 0) + 4)
    return _early(code, raw, lambda level: level.store or 0)


def _returns(code: KptiCode, raw: bytes, place: Callable[[LevelCode], int]) -> dict[int, int]:
    """Have the walk, where it returns from a subtree, go on at `place` of the level above."""
    found = {}
    for above, below in zip(code.levels, code.levels[1:], strict=False):
        at = below.closing + 4
        assert words(raw)[at // 4] >> 26 == 0b000101, "an unconditional branch"
        found[at] = _jump(at, place(above))
    return found


def _early(code: KptiCode, raw: bytes, place: Callable[[LevelCode], int]) -> dict[int, int]:
    """Have tables go to `place` before they are marked; nothing asks then whether they are marked already."""
    found = {}
    for level in code.levels[:-1]:
        at = (level.mark or 0) - 4
        assert words(raw)[at // 4] & 0xFFF80000 == SKIPS_MARKED
        found[at] = _if_table(level.register, at, place(level))
    return found


def apply(raw: bytes, patches: dict[int, int]) -> bytes:
    """Return the code with the patches."""
    changed = bytearray(raw)
    for at, word in patches.items():
        changed[at : at + 4] = word.to_bytes(4, "little")
    return bytes(changed)
