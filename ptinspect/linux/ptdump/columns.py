"""The columns of the kernel's text of its page tables: which text stands for which bits.

Source: Linux arch/arm64/mm/ptdump.c (dump.c up to v5.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from ptinspect.linux.releases import TextForm

VALID, USER, RDONLY, SHARED, AF, NG = 1, 1 << 6, 1 << 7, 3 << 8, 1 << 10, 1 << 11
TABLE_BIT, TYPE, ATTRINDX, GP = 2, 3, 7 << 2, 1 << 50
CONT, PXN, UXN = 1 << 52, 1 << 53, 1 << 54


@dataclass(frozen=True)
class Column:
    """One attribute: which text stands for which bits."""

    mask: int
    """The bits that are looked at."""
    value: int
    """What they must be."""
    yes: str
    """Printed if they are."""
    no: str | None
    """Printed if not; None: nothing at all."""


MEMORY_TYPES = {
    0x00: "DEVICE/nGnRnE",
    0x04: "DEVICE/nGnRE",
    0x0C: "DEVICE/GRE",
    0x44: "MEM/NORMAL-NC",
    0xFF: "MEM/NORMAL",
    0xF0: "MEM/NORMAL-TAGGED",
}
"""Attribute byte of MAIR_EL1 -> text."""
NORMAL = 0xFF


def columns(form: TextForm, mair: int) -> tuple[Column, ...]:
    """Return the attributes in order of their columns; the memory types come from MAIR_EL1.

    Without MTE the kernel has two indices with the attributes of normal memory, 0 and 1: the second one is
    the tagged type (asm/memory.h: MT_NORMAL 0, MT_NORMAL_TAGGED 1, from v5.10). Index 7 and up of a type that
    was there before is unused.
    """
    block = Column(TYPE, VALID, "BLK", "   ") if form.sect else Column(TABLE_BIT, TABLE_BIT, "   ", "BLK")
    fixed = [
        Column(VALID, VALID, " ", "F"),
        Column(USER, USER, "USR", "   "),
        Column(RDONLY, RDONLY, "ro", "RW"),
        Column(PXN, PXN, "NX", "x "),
        Column(SHARED, SHARED, "SHD", "   "),
        Column(AF, AF, "AF", "  "),
        Column(NG, NG, "NG", "  "),
        Column(CONT, CONT, "CON", "   "),
        block,
        Column(UXN, UXN, "UXN", "   "),
    ]
    if form.gp:
        fixed.append(Column(GP, GP, "GP", "  "))
    known: set[str] = set()
    for index in range(8):
        byte = mair >> 8 * index & 0xFF
        text = MEMORY_TYPES.get(byte, "")
        if byte == NORMAL and index == 1:
            text = MEMORY_TYPES[0xF0]
        if text and text not in known:
            known.add(text)
            fixed.append(Column(ATTRINDX, index << 2, text, None))
    return tuple(fixed)


def mask_of(found: tuple[Column, ...]) -> int:
    """Return the bits that any column looks at, and the whole index of the memory type."""
    mask = ATTRINDX
    for column in found:
        mask |= column.mask
    return mask
