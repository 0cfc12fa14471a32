"""A small A64 machine: runs the rewrite's code instruction by instruction over tables in a byte table.

Only what that code is made of; anything else is an error. With the MMU on, addresses of the upper
half go through TTBR1, others are physical (the identity map). There is one CPU and no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sparse_memory import SparseMemory

from ptinspect.arch.bits import MASK64, bit, bits
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState, ttbr_base
from ptinspect.tables.walk import walk

RET = 0xD65F03C0
ID_AA64MMFR2 = 0x180740


class Machine:
    def __init__(
        self, memory: SparseMemory, regime: Regime, pc: int, *, ttbr1: int, x: dict[int, int]
    ) -> None:
        self.memory = memory
        self.regime = regime
        self.pc = pc
        self.x = [x.get(i, 0xDEAD_0000 + i) for i in range(31)]
        self.sp = 0
        self.system = {0x181000: 1, 0x182020: ttbr1, ID_AA64MMFR2: 1 << 16}  # 52 bits of VA
        self.zero = False
        self.stores: list[tuple[int, int]] = []
        """Every 64-bit store: physical address, value."""
        self.tlb: dict[int, int] = {}
        """Page -> physical address; nothing leaves it but by `tlbi`."""
        self.words: dict[int, int] = {}
        self.handlers: dict[int, Callable[[int], bool]] = {}

    def state(self) -> CpuState:
        registers = {"SCTLR_EL1": self.system[0x181000], "TTBR1_EL1": self.system[0x182020]}
        return CpuState(0, tuple(self.x), self.sp, self.pc, 0x3C5, registers)

    def run(self, limit: int = 2_000_000) -> Iterator[int]:
        """Yield the program counter before every instruction, until the first `ret`."""
        for _ in range(limit):
            yield self.pc
            word = self.words.get(self.pc)
            if word is None:
                word = self.words[self.pc] = int.from_bytes(self.memory.read(self.pc, 4), "little")
            if word == RET:
                return
            self.step(word)
        raise AssertionError("the code does not end")

    def physical(self, address: int) -> int:
        if not self.system[0x181000] & 1 or not bit(address, 55):
            return address
        page = address & ~0xFFF
        if page not in self.tlb:
            root = ttbr_base(self.system[0x182020], pa52=self.regime.wide_oa)
            pa = walk(self.memory, page, root, self.regime).pa
            assert pa is not None, f"{address:#x} is not mapped at pc {self.pc:#x}"
            self.tlb[page] = pa
        return self.tlb[page] + address - page

    def load(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.memory.read(self.physical(address), size), "little")

    def store(self, address: int, value: int, size: int = 8) -> None:
        pa = self.physical(address)
        self.memory.write(pa, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
        if size == 8:
            self.stores.append((pa, value))

    def get(self, number: int) -> int:
        return 0 if number == 31 else self.x[number]

    def set(self, number: int, value: int) -> None:
        if number != 31:
            self.x[number] = value & MASK64

    def base(self, number: int) -> int:
        return self.sp if number == 31 else self.x[number]

    def move_base(self, number: int, value: int) -> None:
        if number == 31:
            self.sp = value & MASK64
        else:
            self.x[number] = value & MASK64

    def step(self, word: int) -> None:
        self.pc += 4
        known = self.handlers.get(word)
        if known is not None:
            known(word)
            return
        for handler in (self.system_op, self.branches, self.memory_op, self.immediate, self.registers):
            if handler(word):
                self.handlers[word] = handler
                return
        raise AssertionError(f"unknown instruction {word:08x} at {self.pc - 4:#x}")

    def system_op(self, word: int) -> bool:
        if word >> 22 != 0b1101010100:
            return False
        if word & 0x100000:
            register = word & 0x1FFFE0
            if word & 0x200000:
                self.set(word & 31, self.system[register])
            else:
                self.system[register] = self.get(word & 31)
        elif word & 0xFFF8F000 == 0xD5088000:  # tlbi
            self.tlb.clear()
        return True

    def branches(self, word: int) -> bool:
        here = self.pc - 4
        if word >> 26 == 0b000101:
            self.pc = here + 4 * signed(word, 25, 0)
        elif word >> 24 in (0x35, 0xB5):
            if self.get(word & 31) & (MASK64 if bit(word, 31) else 0xFFFF_FFFF):
                self.pc = here + 4 * signed(word, 23, 5)
        elif word & 0xFF00001F == 0x54000001:
            if not self.zero:
                self.pc = here + 4 * signed(word, 23, 5)
        elif word & 0x7E000000 == 0x36000000:
            if bit(self.get(word & 31), bits(word, 31, 31) << 5 | bits(word, 23, 19)) == bit(word, 24):
                self.pc = here + 4 * signed(word, 18, 5)
        else:
            return False
        return True

    def memory_op(self, word: int) -> bool:
        rt, rn = word & 31, bits(word, 9, 5)
        if word & 0xFFFFFC00 in (0x885FFC00, 0x885F7C00):
            self.set(rt, self.load(self.base(rn), 4))
        elif word & 0xFFC00000 == 0xB9000000:
            self.store(self.base(rn) + 4 * bits(word, 21, 10), self.get(rt), 4)
        elif word & 0xFF800000 == 0xF9000000:
            self.transfer(word, self.base(rn) + 8 * bits(word, 21, 10))
        elif word & 0xFFA00C00 == 0xF8000000:
            self.transfer(word, self.base(rn) + signed(word, 20, 12))
        elif word & 0xFFA00C00 == 0xF8000400:
            self.transfer(word, self.base(rn))
            self.move_base(rn, self.base(rn) + signed(word, 20, 12))
        elif word & 0xFE000000 == 0xA8000000:
            offset, how = 8 * signed(word, 21, 15), bits(word, 24, 23)
            address = self.base(rn) + (0 if how == 1 else offset)
            for i, register in enumerate((rt, bits(word, 14, 10))):
                if bit(word, 22):
                    self.set(register, self.load(address + 8 * i))
                else:
                    self.store(address + 8 * i, self.get(register))
            if how != 2:
                self.move_base(rn, self.base(rn) + offset)
        else:
            return False
        return True

    def transfer(self, word: int, address: int) -> None:
        if bit(word, 22):
            self.set(word & 31, self.load(address & MASK64))
        else:
            self.store(address & MASK64, self.get(word & 31))

    def immediate(self, word: int) -> bool:
        rd, rn = word & 31, bits(word, 9, 5)
        if word & 0x1F000000 == 0x10000000:
            value = signed(bits(word, 23, 5) << 2 | bits(word, 30, 29), 20, 0)
            here = self.pc - 4
            self.set(rd, (here & ~0xFFF) + (value << 12) if bit(word, 31) else here + value)
        elif word & 0x7F800000 == 0x11000000:
            self.move_base(rd, self.base(rn) + (bits(word, 21, 10) << (12 if bit(word, 22) else 0)))
        elif word & 0xFFC00000 == 0xD1000000:
            self.move_base(rd, self.base(rn) - bits(word, 21, 10))
        elif word & 0xFFC0001F == 0xF240001F:  # tst
            self.zero = not self.get(rn) & bit_mask(word)
        elif word & 0xFF800000 in (0x92000000, 0xB2000000, 0xD2000000):
            self.set(rd, logical(bits(word, 30, 29), self.get(rn), bit_mask(word)))
        elif word & 0xFF800000 == 0xD2800000:
            self.set(rd, bits(word, 20, 5) << 16 * bits(word, 22, 21))
        elif word & 0xFF800000 == 0xF2800000:
            shift = 16 * bits(word, 22, 21)
            self.set(rd, self.get(rd) & ~(0xFFFF << shift) | bits(word, 20, 5) << shift)
        elif word & 0xFFC00000 in (0xD3400000, 0xB3400000):
            self.set(rd, bit_field(word, self.get(rn), self.get(rd) if bit(word, 29) else 0))
        else:
            return False
        return True

    def registers(self, word: int) -> bool:
        rd, rn, rm = word & 31, bits(word, 9, 5), bits(word, 20, 16)
        if word & 0x1F200000 == 0x0A000000:
            amount, other = bits(word, 15, 10), self.get(rm)
            other = other >> amount if bits(word, 23, 22) == 1 else other << amount
            value = logical(bits(word, 30, 29), self.get(rn), other)
            self.set(rd, value if bit(word, 31) else value & 0xFFFF_FFFF)
        elif word & 0xFFE0FC1F == 0xEB00001F:
            self.zero = self.get(rn) == self.get(rm)
        else:
            return False
        return True


def signed(word: int, high: int, low: int) -> int:
    value = bits(word, high, low)
    return value - (1 << high - low + 1) if bit(word, high) else value


def bit_field(word: int, value: int, into: int) -> int:
    """UBFM and BFM of 64 bits: a field of `value` moves to another place in `into`."""
    rotate, last = bits(word, 21, 16), bits(word, 15, 10)
    if last >= rotate:
        at, width, value = 0, last - rotate + 1, value >> rotate
    else:
        at, width = 64 - rotate, last + 1
    mask = (1 << width) - 1
    return into & ~(mask << at) | (value & mask) << at


def logical(operation: int, left: int, right: int) -> int:
    return (left & right, left | right, left ^ right)[operation] & MASK64


def bit_mask(word: int) -> int:
    """The 64-bit logical immediate with N=1: imms + 1 ones, rotated right by immr."""
    assert bit(word, 22)
    ones, rotate = (1 << bits(word, 15, 10) + 1) - 1, bits(word, 21, 16)
    return (ones >> rotate | ones << (64 - rotate)) & MASK64
