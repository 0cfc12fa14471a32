"""The few A64 instructions that the KPTI rewrite is recognised by (Arm ARM C4.1, C6.2)."""

from __future__ import annotations

import struct

RET = 0xD65F03C0
DSB_SY = 0xD5033F9F
DSB_ISHST = 0xD5033A9F
TLBI_VMALLE1IS = 0xD508831F


def words(code: bytes) -> tuple[int, ...]:
    """Split code into 32-bit instructions; a ragged end is left out."""
    count = len(code) // 4
    return struct.unpack(f"<{count}I", code[: 4 * count])


def is_msr_sctlr(word: int) -> bool:
    """Tell whether this is `msr sctlr_el1, Xt`."""
    return word & 0xFFFFFFE0 == 0xD5181000


def is_msr_ttbr1(word: int) -> bool:
    """Tell whether this is `msr ttbr1_el1, Xt`."""
    return word & 0xFFFFFFE0 == 0xD5182020


def is_mrs_ttbr1(word: int) -> bool:
    """Tell whether this is `mrs Xt, ttbr1_el1`."""
    return word & 0xFFFFFFE0 == 0xD5382020


def target_register(word: int) -> int:
    """Return Rt or Rd, bits 4:0."""
    return word & 0x1F


def sets_bit11(word: int) -> tuple[int, bool] | None:
    """Return the register of `orr Xd, Xd, #0x800`, or of `eor` with True; None for anything else.

    #0x800 is the logical immediate N=1, immr=53, imms=0.
    """
    for base, toggles in ((0xB2750000, False), (0xD2750000, True)):
        if word & 0xFFFFFC00 == base and word & 0x1F == word >> 5 & 0x1F:
            return word & 0x1F, toggles
    return None


def store64(word: int) -> tuple[int, int, int] | None:
    """Return (Rt, Rn, byte offset) of a 64-bit `str` or `stur` with an immediate, else None."""
    if word & 0xFFC00000 == 0xF9000000:
        return word & 0x1F, word >> 5 & 0x1F, (word >> 10 & 0xFFF) * 8
    if word & 0xFFE00C00 == 0xF8000000:
        offset = word >> 12 & 0x1FF
        return word & 0x1F, word >> 5 & 0x1F, offset - 0x200 if offset & 0x100 else offset
    return None


def is_str_wzr(word: int) -> bool:
    """Tell whether this is `str wzr, [Xn]`."""
    return word & 0xFFFFFC1F == 0xB900001F


def cbnz_w0_target(word: int, at: int) -> int | None:
    """Return where `cbnz w0, label` at offset `at` goes, else None."""
    if word & 0xFF00001F != 0x35000000:
        return None
    offset = word >> 5 & 0x7FFFF
    return at + 4 * (offset - 0x80000 if offset & 0x40000 else offset)


def adr_value(code: tuple[int, ...], index: int, va: int) -> int | None:
    """Return the address that `adr` or `adrp` (with a following `add`) at `index` builds.

    `va` is the address of the first instruction. None for anything else.
    """
    word = code[index]
    if word & 0x1F000000 != 0x10000000:
        return None
    imm = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
    imm -= (imm & 0x100000) << 1
    pc = va + 4 * index
    if not word >> 31:
        return pc + imm
    page = (pc & ~0xFFF) + (imm << 12)
    register = word & 0x1F
    if index + 1 < len(code):
        add = code[index + 1]
        if add & 0xFFC00000 == 0x91000000 and add & 0x1F == register and add >> 5 & 0x1F == register:
            return page + (add >> 10 & 0xFFF)
    return page
