"""A CPU of a few instructions, as KVM steps it: a pending interrupt is taken in place of the instruction."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

VECTORS = 0xFFFF_8000_1001_0800
TRAMPOLINE = 0xFFFF_FDFF_FE20_0000
NOP, SVC, ERET, UDF, B_SELF = 0xD503201F, 0xD4000001, 0xD69F03E0, 0x00000000, 0x14000000
MSR_DAIFSET_2, MSR_DAIFSET_1, MSR_DAIFSET_15 = 0xD50342DF, 0xD50341DF, 0xD5034FDF
MSR_DAIFCLR_2, MSR_DAIFCLR_15 = 0xD50342FF, 0xD5034FFF
MSR_DAIF_X1, MRS_X1_DAIF, MRS_XZR_DAIF = 0xD51B4221, 0xD53B4221, 0xD53B423F
MSR_SPSR_X22, MRS_X23_SPSR, MSR_VBAR_X30, BR_X30 = 0xD5184016, 0xD5384017, 0xD518C01E, 0xD61F03C0
LDR_X0_X0, ADD_X0_1, STR_X0_X1 = 0xF9400000, 0x91000400, 0xF9000020
FLAGS = 0x3C0


@dataclass
class ModelCpu:
    """Registers, words of code, and what an instruction does to them."""

    regs: dict[str, int]
    words: dict[int, int] = field(default_factory=dict)
    pending: bool = False
    """An interrupt is pending, and stays so: its handler never runs here."""
    points: set[int] = field(default_factory=set)
    stored: dict[int, int] = field(default_factory=dict)
    """Words of memory that were stored."""
    steps: int = 0
    stops_at: int = -1
    """Number of the step, from 1, that somebody interrupts before it does anything."""
    mapped: range | None = None
    """Where EL1 can read code while VBAR_EL1 is the trampoline's; None: everywhere."""

    @classmethod
    def make(cls, word: int, pstate: int, *, pending: bool, **more: int) -> ModelCpu:
        """A CPU about to execute an instruction."""
        regs = {f"X{n}": 0x1000 + n for n in range(31)}
        system = {"VBAR_EL1": VECTORS, "ELR_EL1": 0x111, "SPSR_EL1": 0x222, "TPIDR_EL1": 3}
        found = cls({**regs, **system, "PC": 0x40_0000, "CPSR": pstate, "SP": 0x8000, **more}, {}, pending)
        found.words[found.regs["PC"]] = word
        return found

    # What masked_step uses

    def read(self, *names: str) -> list[int | None]:
        return [self.regs.get(name) for name in names]

    def write(self, **registers: int) -> None:
        assert all(re.fullmatch(r"X\d+|SP|PC|CPSR", name) for name in registers), "the stub writes no others"
        self.regs |= registers

    def code(self, address: int, size: int) -> bytes:
        at_el1 = self.regs["CPSR"] >> 2 & 3 == 1
        hidden = self.mapped is not None and at_el1 and self.regs["VBAR_EL1"] == TRAMPOLINE
        if hidden and self.mapped is not None and address not in self.mapped:
            return b""
        return b"".join(self.words.get(address + n, UDF).to_bytes(4, "little") for n in range(0, size, 4))

    def is_free(self, address: int) -> bool:
        return address not in self.points

    def step(self) -> bool:
        self.steps += 1
        if self.steps == self.stops_at:
            return False
        if self.regs["PC"] in self.points:
            return True  # the breakpoint again
        if self.interrupted():
            self.take(0x80, self.regs["PC"])
            return True
        before = self.regs["CPSR"]
        self._execute(self.words.get(self.regs["PC"], UDF))
        if before & 0x80 and self.interrupted():
            self.take(0x80, self.regs["PC"])
        return True

    def interrupted(self) -> bool:
        """Tell whether an interrupt is taken next."""
        return self.pending and not self.regs["CPSR"] & 0x80

    def take(self, kind: int, elr: int) -> None:
        """Take an exception to EL1."""
        regs = self.regs
        from_el = regs["CPSR"] >> 2 & 3
        regs |= {"SPSR_EL1": regs["CPSR"], "ELR_EL1": elr}
        regs["PC"] = regs["VBAR_EL1"] + (0x400 if from_el == 0 else 0x200) + kind
        regs["CPSR"] = 0x3C5

    def _execute(self, word: int) -> None:
        regs, pc = self.regs, self.regs["PC"]
        regs["PC"] = pc + 4
        rt = f"X{word & 31}"
        read = {0x1B4220: "CPSR", 0x184000: "SPSR_EL1"}.get(word & 0x1FFFE0)
        if word & 0xFFFFF0FF == 0xD50340DF:
            regs["CPSR"] |= (word >> 8 & 15) << 6
        elif word & 0xFFFFF0FF == 0xD50340FF:
            regs["CPSR"] &= ~((word >> 8 & 15) << 6)
        elif word & 0xFFFFFFE0 == 0xD51B4220:
            regs["CPSR"] = regs["CPSR"] & ~FLAGS | regs[rt] & FLAGS
        elif word & 0xFFE00000 == 0xD5200000 and read is not None:
            if word & 31 != 31:
                regs[rt] = regs[read] & FLAGS if read == "CPSR" else regs[read]
        elif word & 0xFFFFFFE0 == 0xD5184000:
            regs["SPSR_EL1"] = regs[rt]
        elif word == MSR_VBAR_X30:
            regs["VBAR_EL1"] = regs["X30"]
        elif word == BR_X30:
            regs["PC"] = regs["X30"]
        elif word == ERET:
            regs |= {"PC": regs["ELR_EL1"], "CPSR": regs["SPSR_EL1"]}
        elif word == SVC:
            self.take(0, pc + 4)
        elif word in (UDF, LDR_X0_X0):
            self.take(0, pc)
        elif word >> 26 == 5:
            regs["PC"] = pc + 4 * (word & 0x3FF_FFFF) - (1 << 28 if word >> 25 & 1 else 0)
        elif word == ADD_X0_1:
            regs["X0"] += 1
        elif word == STR_X0_X1:
            self.stored[regs["X1"]] = regs["X0"]
