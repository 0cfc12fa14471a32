"""Which instructions write memory, and where."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.a64 import signed
from ptinspect.arch.bits import MASK64, bit, bits
from ptinspect.dataclass import dataclass

ZVA = 0xD50B_7420
"""`dc zva, x0`."""
ZVA_BYTES = 64
"""What it clears on CPUs of QEMU and on most others (DCZID_EL0.BS is 4)."""
SP = 31


@dataclass(frozen=True)
class Written:
    """The memory that an instruction writes."""

    address: int
    """The first byte."""
    size: int
    """Bytes."""

    def covers(self, address: int) -> bool:
        """Tell whether the descriptor of eight bytes at an address is written, in whole or part."""
        return self.address < address + 8 and address < self.address + self.size


def writes(word: int) -> bool:
    """Tell whether an instruction may write memory (Arm ARM C4.1.94, Loads and Stores; DC ZVA)."""
    if word & ~31 == ZVA or not bit(word, 27) or bit(word, 25):
        return word & ~31 == ZVA
    group, load = bits(word, 29, 27), bit(word, 22)
    if group == 0b001:  # exclusive, ordered, compare and swap; SIMD structures
        swaps = not bit(word, 26) and bit(word, 21) and (bit(word, 23) or not bit(word, 31))
        return swaps or not load
    if group == 0b101:
        return not load
    if group == 0b111:
        if bit(word, 21) and not bit(word, 24) and bits(word, 11, 10) == 0:  # atomic, but for LDAPR
            return bits(word, 15, 12) != 0b1100
        return not load and (not bit(word, 23) or bit(word, 26))
    return bits(word, 29, 24) == 0b011001 and not load  # STLUR, MOPS


def written(word: int, x: Sequence[int], sp: int) -> Written | None:
    """Return what an instruction writes, by the registers before it; None if that is not known.

    Source: Arm ARM C4.1.94: the addressing modes of loads and stores.
    """
    if not writes(word):
        return None
    if word & ~31 == ZVA:
        at = 0 if word & 31 == SP else x[word & 31]
        return Written(at & ~(ZVA_BYTES - 1), ZVA_BYTES)
    rn = bits(word, 9, 5)
    address, size = _place(word, sp if rn == SP else x[rn], x)
    return Written(address & MASK64, size)


def _place(word: int, base: int, x: Sequence[int]) -> tuple[int, int]:
    """Return the first byte and the size, by the addressing mode."""
    group, simd, scale = bits(word, 29, 27), bit(word, 26), bits(word, 31, 30)
    if group == 0b001:
        return base, 64 if simd else 2 << scale if _pair(word) else 1 << scale
    if group == 0b101:
        one = (4 << scale) if simd else 8 if scale & 2 else 4
        return base + (0 if bits(word, 24, 23) == 0b01 else signed(bits(word, 21, 15), 7) * one), 2 * one
    size = 16 if simd and bits(word, 23, 22) == 0b10 else 1 << scale
    offset, mode = 0, bits(word, 11, 10)
    if bit(word, 24):
        offset = bits(word, 21, 10) * size
    elif not bit(word, 21):  # unscaled, post-indexed, unprivileged, pre-indexed
        offset = 0 if mode == 0b01 else signed(bits(word, 20, 12), 9)
    elif mode == 0b10:
        offset = _index(word, x, size)
    return base + offset, size


def _pair(word: int) -> bool:
    """Tell whether it is STXP, STLXP or CASP."""
    return bool(bit(word, 21)) and not bit(word, 23)


def _index(word: int, x: Sequence[int], size: int) -> int:
    """Return the offset in a register, extended and shifted."""
    rm, option = bits(word, 20, 16), bits(word, 15, 13)
    value = 0 if rm == SP else x[rm]
    if option & 3 == 2:
        value &= 0xFFFF_FFFF
        value = signed(value, 32) if option & 4 else value
    return value * size if bit(word, 12) else value
