"""The few A64 instructions that the rewrite of the tables, exception entries and prologues are made of.

Source: Arm ARM C4.1 (encodings), C6.2 (instructions), C5.3 and C5.5 (system registers, TLBI).
"""

from __future__ import annotations

import struct
from typing import Literal

from ptinspect.dataclass import dataclass

RET = 0xD65F03C0
ERET = 0xD69F03E0
NOP = 0xD503201F
BTI_C = 0xD503245F
ISB = 0xD5033FDF
SCTLR_EL1 = 0x181000
"""`msr`/`mrs` operand fields [20:5] of SCTLR_EL1, with bits 4:0 clear."""
TTBR1_EL1 = 0x182020
"""The same of TTBR1_EL1."""
FAR_EL1 = 0x186000
PAR_EL1 = 0x187400
TPIDR_EL1 = 0x18D080
TPIDR_EL2 = 0x1CD040
SP_EL0 = 0x184100
SP = 31
"""Number of the stack pointer where an instruction takes it."""
RETURNS = (RET, 0xD65F0BFF, 0xD65F0FFF)
"""`ret`, `retaa`, `retab`."""
MOV_SP_FP = 0x910003BF
ADD_SP_X0 = 0x8B2063FF
CMP_SP_X0 = 0xEB2063FF
LDR_WZR_HERE = 0x1800001F
"""`ldr wzr, .`: a load of itself."""
B_BACK = 0x17FFFFFF
"""`b .-4`."""
MRS_X3_TTBR1 = 0xD5382023
MOV_X5_X3 = 0xAA0303E5


def words(code: bytes) -> tuple[int, ...]:
    """Split code into 32-bit instructions; a ragged end is left out."""
    count = len(code) // 4
    return struct.unpack(f"<{count}I", code[: 4 * count])


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) & 1 else value


def system_write(word: int) -> tuple[int, int] | None:
    """Return (operand fields, Rt) of `msr <register>, Xt`, else None."""
    return (word & 0x1FFFE0, word & 0x1F) if word & 0xFFE00000 == 0xD5000000 and _is_register(word) else None


def system_read(word: int) -> tuple[int, int] | None:
    """Return (operand fields, Rt) of `mrs Xt, <register>`, else None."""
    return (word & 0x1FFFE0, word & 0x1F) if word & 0xFFE00000 == 0xD5200000 and _is_register(word) else None


def write_system(fields: int, rt: int) -> int:
    """Encode `msr <register>, Xt`."""
    return 0xD5000000 | fields | rt


def read_system(fields: int, rt: int) -> int:
    """Encode `mrs Xt, <register>`."""
    return 0xD5200000 | fields | rt


def _is_register(word: int) -> bool:
    return bool(word >> 20 & 1)


def toggles_bit11(word: int) -> tuple[int, int, bool] | None:
    """Return (Rd, Rn, False) of `orr Xd, Xn, #0x800`, with True of `eor`; None for anything else.

    #0x800 is the logical immediate N=1, immr=53, imms=0.
    """
    for base, toggles in ((0xB2750000, False), (0xD2750000, True)):
        if word & 0xFFFFFC00 == base:
            return word & 0x1F, word >> 5 & 0x1F, toggles
    return None


@dataclass(frozen=True)
class Access:
    """Describe a 64-bit load or store with an immediate offset."""

    load: bool
    """True for `ldr`/`ldur`, False for `str`/`stur`."""
    register: int
    """Rt, loaded or stored."""
    base: int
    """Rn, the register that holds the address."""
    offset: int
    """Bytes added to the base for the access."""
    writeback: int = 0
    """Bytes added to the base afterwards (post-index)."""


def access64(word: int) -> Access | None:
    """Decode `ldr`/`str` of an X register with unsigned, unscaled or post-index offset, else None."""
    rt, rn, load = word & 0x1F, word >> 5 & 0x1F, bool(word >> 22 & 1)
    if word & 0xFF800000 == 0xF9000000:
        return Access(load, rt, rn, (word >> 10 & 0xFFF) * 8)
    if word & 0xFFA00C00 == 0xF8000000:
        return Access(load, rt, rn, signed(word >> 12 & 0x1FF, 9))
    if word & 0xFFA00C00 == 0xF8000400:
        return Access(load, rt, rn, 0, signed(word >> 12 & 0x1FF, 9))
    return None


def load32(word: int) -> tuple[int, int, int] | None:
    """Return (Rt, Rn, offset) of `ldr Wt, [Xn, #offset]`, else None."""
    found = word & 0xFFC00000 == 0xB9400000
    return (word & 0x1F, word >> 5 & 0x1F, (word >> 10 & 0xFFF) * 4) if found else None


def load_indexed(word: int) -> tuple[int, int, int] | None:
    """Return (Rt, Rn, Rm) of `ldr Xt, [Xn, Xm]`, else None."""
    found = word & 0xFFE0FC00 == 0xF8606800
    return (word & 0x1F, word >> 5 & 0x1F, word >> 16 & 0x1F) if found else None


def index_register(word: int) -> int | None:
    """Return Rn of `ldr Xt, [Xn, Xm…]`, else None."""
    return word >> 5 & 0x1F if word & 0xFFE00C00 == 0xF8600800 else None


def frame_record(word: int) -> int | None:
    """Return the offset of `stp x29, x22, [sp, #offset]` or `stp xzr, xzr, [sp, #offset]`, else None."""
    return (word >> 15 & 0x7F) * 8 if word & 0xFFC0_7FFF in (0xA900_5BFD, 0xA900_7FFF) else None


def stores_wzr(word: int) -> int | None:
    """Return Rn of `str wzr, [Xn]`, else None."""
    return word >> 5 & 0x1F if word & 0xFFFFFC1F == 0xB900001F else None


def bit_branch(word: int, at: int) -> tuple[Literal["tbz", "tbnz"], int, int, int] | None:
    """Return (mnemonic, Rt, bit, target) of `tbz`/`tbnz` at address `at`, else None."""
    if word & 0x7E000000 != 0x36000000:
        return None
    position = (word >> 31) << 5 | word >> 19 & 0x1F
    target = at + 4 * signed(word >> 5 & 0x3FFF, 14)
    return "tbnz" if word >> 24 & 1 else "tbz", word & 0x1F, position, target


def branch(word: int, at: int) -> int | None:
    """Return the target of an unconditional `b` at address `at`, else None."""
    return at + 4 * signed(word & 0x3FFFFFF, 26) if word >> 26 == 0b000101 else None


def is_hint(word: int) -> bool:
    """Tell whether an instruction is a hint (nop, wfe, wfi, …) or a barrier, which only go on to the next.

    Source: Arm ARM C4.1 (hints, barriers).
    """
    return word & 0xFFFFF01F in (0xD503201F, 0xD503301F)


def branch_to(at: int, to: int) -> int:
    """Encode `b` at one address to another."""
    return 0x14000000 | (to - at) >> 2 & 0x3FFFFFF


def branch_eq_to(at: int, to: int) -> int:
    """Encode `b.eq` at one address to another."""
    return 0x54000000 | ((to - at) >> 2 & 0x7FFFF) << 5


def branch_ne_to(at: int, to: int) -> int:
    """Encode `b.ne` at one address to another."""
    return branch_eq_to(at, to) | 1


def zero_branch32(word: int) -> int | None:
    """Return Rt of `cbz Wt` or `cbnz Wt`, else None."""
    return word & 0x1F if word & 0xFE000000 == 0x34000000 else None


def branch_ne(word: int, at: int) -> int | None:
    """Return the target of `b.ne` at address `at`, else None."""
    return at + 4 * signed(word >> 5 & 0x7FFFF, 19) if word & 0xFF00001F == 0x54000001 else None


def is_call(word: int) -> bool:
    """Tell whether an instruction is BL, BLR, or BLRA with a key. Source: Arm ARM, C4.1 (branches)."""
    return word >> 26 == 0b100101 or word & 0xFFFF_FC1F == 0xD63F_0000 or word & 0xFEFF_F800 == 0xD63F_0800


def jumps_to_register(word: int) -> bool:
    """Tell whether an instruction is `br Xn` or `blr Xn`."""
    return word & 0xFFDFFC1F == 0xD61F0000


def targets(word: int, at: int) -> tuple[int, ...]:
    """Return where a branch at address `at` may lead, a call or a conditional one too; () for others."""
    if word & 0x7C000000 == 0x14000000:  # b, bl
        return (at + 4 * signed(word & 0x3FFFFFF, 26),)
    if word & 0xFF000000 == 0x54000000 or word & 0x7E000000 == 0x34000000:  # b.cond, bc.cond, cbz, cbnz
        return (at + 4 * signed(word >> 5 & 0x7FFFF, 19),)
    tested = bit_branch(word, at)
    return () if tested is None else (tested[3],)


def branch_nonzero(word: int, at: int) -> tuple[int, int] | None:
    """Return (Rt, target) of `cbnz Wt` at address `at`, else None."""
    if word & 0xFF000000 != 0x35000000:
        return None
    return word & 0x1F, at + 4 * signed(word >> 5 & 0x7FFFF, 19)


def written(word: int) -> int | None:
    """Return the register, 0 to 31, that an instruction other than a store or a branch may write to."""
    stores = word & 0x0A000000 == 0x08000000 and not word >> 22 & 1
    return None if stores or word & 0x1C000000 == 0x14000000 else word & 0x1F


def compare(word: int) -> tuple[int, int] | None:
    """Return (Rn, Rm) of `cmp Xn, Xm`, else None."""
    return (word >> 5 & 0x1F, word >> 16 & 0x1F) if word & 0xFFE0FC1F == 0xEB00001F else None


def tested_size(word: int) -> int | None:
    """Return 2^n of `tst Xn, #~(2^n - 1)`, else None (logical immediate N=1, ones from bit n up)."""
    if word & 0xFFC0001F != 0xF240001F:
        return None
    immr, imms = word >> 16 & 0x3F, word >> 10 & 0x3F
    low = (64 - immr) % 64
    return 1 << low if low + imms == 63 else None


def add_immediate(word: int) -> tuple[int, int, int] | None:
    """Return (Rd, Rn, value) of `add Xd, Xn, #value`, else None."""
    return _arithmetic(word) if word & 0xFF800000 == 0x91000000 else None


def sub_immediate(word: int) -> tuple[int, int, int] | None:
    """Return (Rd, Rn, value) of `sub Xd, Xn, #value`, else None."""
    return _arithmetic(word) if word & 0xFF800000 == 0xD1000000 else None


def _arithmetic(word: int) -> tuple[int, int, int]:
    return word & 0x1F, word >> 5 & 0x1F, (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)


def subtract(rd: int, rn: int, value: int) -> int:
    """Encode `sub Xd, Xn, #value`; the value is below 4096."""
    return 0xD1000000 | value << 10 | rn << 5 | rd


def add(rd: int, rn: int, value: int) -> int:
    """Encode `add Xd, Xn, #value`; the value is below 4096, and 31 is SP."""
    return 0x91000000 | value << 10 | rn << 5 | rd


def xor_shifted_right(rd: int, rn: int, rm: int, shift: int) -> int:
    """Encode `eor Xd, Xn, Xm, lsr #shift`."""
    return 0xCA400000 | rm << 16 | shift << 10 | rn << 5 | rd


def test_bits(rn: int, low: int, end: int) -> int:
    """Encode `tst Xn, #mask` of the bits from `low` up to `end`, which is one past the last."""
    return 0xF240001F | (64 - low) % 64 << 16 | (end - low - 1) << 10 | rn << 5


def store_zero(rn: int, offset: int) -> int:
    """Encode `stur xzr, [Xn, #offset]`; the offset is from -256 to 255."""
    return 0xF800001F | (offset & 0x1FF) << 12 | rn << 5


def lowers_sp(word: int) -> int | None:
    """Return the immediate of `sub sp, sp, #…`, else None."""
    found = sub_immediate(word)
    return found[2] if found is not None and found[:2] == (SP, SP) else None


def moved_constant(word: int) -> tuple[int, int] | None:
    """Return (Rd, value) of `mov Xd, #value` (movz), else None."""
    return (word & 0x1F, _moved(word)) if word & 0xFF800000 == 0xD2800000 else None


def _moved(word: int) -> int:
    return (word >> 5 & 0xFFFF) << 16 * (word >> 21 & 3)


def address_built(code: tuple[int, ...], index: int, at: int) -> tuple[int, int] | None:
    """Return (Rd, address) that `adr`, or `adrp` followed by an `add`, at `index` builds, else None.

    `at` is the address of the first instruction of `code`.
    """
    word = code[index]
    if word & 0x1F000000 != 0x10000000:
        return None
    value = signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
    pc, register = at + 4 * index, word & 0x1F
    if not word >> 31:
        return register, pc + value
    page = (pc & ~0xFFF) + (value << 12)
    add = add_immediate(code[index + 1]) if index + 1 < len(code) else None
    if add is not None and add[:2] == (register, register):
        return register, page + add[2]
    return register, page


def moves_sp(word: int, constants: dict[int, int]) -> int | None:
    """Return the bytes that an instruction adds to SP, else None; `constants` remembers `mov Xn, #…`."""
    added, lowered, moved = add_immediate(word), lowers_sp(word), moved_constant(word)
    if lowered is not None:
        return -lowered
    if added is not None and added[:2] == (SP, SP):
        return added[2]
    if word & 0xFE8003E0 == 0xA88003E0:  # stp, ldp with writeback, base SP
        return signed(word >> 15 & 0x7F, 7) * 8
    if word & 0xFFA007E0 == 0xF80007E0:  # str, ldr with writeback, base SP
        return signed(word >> 12 & 0x1FF, 9)
    if moved is not None:
        constants[moved[0]] = moved[1]
    elif word & 0xFF800000 == 0xF2800000 and word & 0x1F in constants:  # movk
        kept = constants[word & 0x1F] & ~(0xFFFF << 16 * (word >> 21 & 3))
        constants[word & 0x1F] = kept | _moved(word)
    elif adds_register_to_sp(word) and word >> 16 & 0x1F in constants:
        value = constants[word >> 16 & 0x1F]
        return -value if word >> 30 & 1 else value
    return None


def adds_register_to_sp(word: int) -> bool:
    """Tell whether an instruction is `add sp, sp, Xn` or `sub sp, sp, Xn`."""
    return word & 0xBFE0FFFF == 0x8B2063FF


def sets_frame_pointer(word: int) -> int | None:
    """Return the value of `add x29, sp, #value`, which with 0 is `mov x29, sp`, else None."""
    return word >> 10 & 0xFFF if word & 0xFFC003FF == 0x910003FD else None


def loads_frame_record(word: int) -> bool:
    """Tell whether an instruction is `ldp x29, x30, [sp…]`."""
    return word & 0xFE407FFF == 0xA8407BFD


def branches(word: int) -> bool:
    """Tell whether an instruction is any branch, system call or exception return."""
    return (
        word & 0x7C000000 in (0x14000000, 0x34000000)
        or word & 0xFF000000 in (0x54000000, 0xD4000000)
        or word & 0xFE000000 == 0xD6000000
    )


def fills(word: int) -> bool:
    """Tell whether an instruction is one that fills space: a hint (NOP and BTI among them), UDF or BRK."""
    return word & 0xFFFFF01F == 0xD503201F or word < 1 << 16 or word & 0xFFE0001F == 0xD4200000


DAIF = 0x1B4220
"""Operand fields of DAIF; the flags stand where PSTATE and SPSR have them, bits 9 to 6."""
SPSR_EL1 = 0x184000
ERETS = (ERET, 0xD69F0BFF, 0xD69F0FFF)
"""`eret`, `eretaa`, `eretab`."""


def sets_daif(word: int) -> int | None:
    """Return the flags (bits 9:6) that `msr daifset, #imm` sets, else None."""
    return (word >> 8 & 0xF) << 6 if word & 0xFFFFF0FF == 0xD50340DF else None


def clears_daif(word: int) -> int | None:
    """Return the flags (bits 9:6) that `msr daifclr, #imm` clears, else None."""
    return (word >> 8 & 0xF) << 6 if word & 0xFFFFF0FF == 0xD50340FF else None
