"""Bit fields and address types."""

from __future__ import annotations

from ptinspect.typed import NewType

VirtAddr = NewType("VirtAddr", int)
"""A 64-bit virtual address, canonical (sign-extended) for the upper half."""

PhysAddr = NewType("PhysAddr", int)
"""A guest-physical address, as QEMU's system address space numbers it."""

MASK64 = (1 << 64) - 1


def bits(value: int, high: int, low: int) -> int:
    """Return the field `value[high:low]`, both ends included."""
    return (value >> low) & ((1 << (high - low + 1)) - 1)


def bit(value: int, position: int) -> bool:
    """Tell whether bit `position` of `value` is set."""
    return bool((value >> position) & 1)


def mask(high: int, low: int) -> int:
    """Return a mask with bits high..low set, both ends included; 0 if high < low."""
    return ((1 << (high - low + 1)) - 1) << low if high >= low else 0


def align_down(value: int, size: int) -> int:
    """Round `value` down to a multiple of `size`, a power of two."""
    return value & ~(size - 1)


def align_up(value: int, size: int) -> int:
    """Round `value` up to a multiple of `size`, a power of two."""
    return (value + size - 1) & ~(size - 1)
