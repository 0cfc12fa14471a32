"""What the beginning and the end of a function do to SP and to the frame record.

Source: AAPCS64 6.4.6 (a frame record is x29 and x30 of the caller, x29 points to it); Arm ARM C6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_WORDS = 96
"""Instructions behind a function's first that are looked at for its prologue."""
MAX_TAIL = 24
"""Instructions up to a return that count as its epilogue."""
RETURNS = (0xD65F03C0, 0xD65F0BFF, 0xD65F0FFF)
"""`ret`, `retaa`, `retab`."""
_MOV_SP_FP = 0x910003BF


@dataclass(frozen=True)
class Prologue:
    """What the instructions up to some place have done."""

    lowered: int
    """Bytes that SP was lowered by, up to the frame record."""
    record: int | None
    """Bytes from x29 up to SP as it was at the function's entry; None if x29 is the caller's still."""


def prologue(words: Sequence[int]) -> Prologue:
    """Follow the instructions from a function's first on up to its frame record, as if none branched."""
    lowered = 0
    constants: dict[int, int] = {}
    for word in words[:MAX_WORDS]:
        change = _moves_sp(word, constants)
        if change is not None:
            lowered -= change
        if word & 0xFFC003FF == 0x910003FD:  # add x29, sp, #imm: with 0, mov x29, sp
            return Prologue(lowered, lowered - (word >> 10 & 0xFFF))
        if word in RETURNS:
            lowered = max(lowered, 0)
    return Prologue(max(lowered, 0), None)


@dataclass(frozen=True)
class Epilogue:
    """What the instructions from some place to the return do."""

    raised: int
    """Bytes that SP is raised by."""
    pops_record: bool
    """True if x29 and x30 are still to be restored."""


def epilogue(words: Sequence[int]) -> Epilogue | None:
    """Follow the instructions to the return; None if they branch before, or no return is near."""
    raised, pops = 0, False
    constants: dict[int, int] = {}
    for word in words[:MAX_TAIL]:
        if word in RETURNS:
            return Epilogue(raised, pops)
        change = _moves_sp(word, constants)
        unknown = change is None and word & 0xBFE0FFFF == 0x8B2063FF
        if _branches(word) or word == _MOV_SP_FP or unknown or (change or 0) < 0:
            return None
        raised += change or 0
        pops = pops or _loads_pair_29_30(word)
    return None


def _moves_sp(word: int, constants: dict[int, int]) -> int | None:
    """Return the bytes that an instruction adds to SP, else None; `constants` remembers `mov Xn, #…`."""
    if word & 0xFF8003FF in (0xD10003FF, 0x910003FF):  # sub, add sp, sp, #imm
        value = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
        return value if word & 0xFF8003FF == 0x910003FF else -value
    if word & 0xFE8003E0 == 0xA88003E0:  # stp, ldp with writeback, base SP
        return _signed(word >> 15 & 0x7F, 7) * 8
    if word & 0xFFA007E0 == 0xF80007E0:  # str, ldr with writeback, base SP
        return _signed(word >> 12 & 0x1FF, 9)
    if word & 0xFF800000 == 0xD2800000:  # movz
        constants[word & 0x1F] = (word >> 5 & 0xFFFF) << 16 * (word >> 21 & 3)
    elif word & 0xFF800000 == 0xF2800000 and word & 0x1F in constants:  # movk
        shift = 16 * (word >> 21 & 3)
        kept = constants[word & 0x1F] & ~(0xFFFF << shift)
        constants[word & 0x1F] = kept | (word >> 5 & 0xFFFF) << shift
    elif word & 0xFFE0FFFF == 0xCB2063FF and word >> 16 & 0x1F in constants:  # sub sp, sp, Xn
        return -constants[word >> 16 & 0x1F]
    elif word & 0xFFE0FFFF == 0x8B2063FF and word >> 16 & 0x1F in constants:  # add sp, sp, Xn
        return constants[word >> 16 & 0x1F]
    return None


def _loads_pair_29_30(word: int) -> bool:
    return word & 0xFE407FFF == 0xA8407BFD


def _branches(word: int) -> bool:
    """Tell whether an instruction is any branch but a return."""
    return (
        word & 0x7C000000 == 0x14000000
        or word & 0xFF000000 in (0x54000000, 0xD4000000)
        or word & 0xFE000000 == 0xD6000000
        or word & 0x7C000000 == 0x34000000
    )


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) & 1 else value
