"""Step one instruction while no interrupt is taken, where the gdbstub cannot hold them back itself.

Under KVM QEMU's stub steps with interrupts enabled (`qqemu.sstepbits` has no NOIRQ: accel/kvm/kvm-all.c,
kvm_sstep_flags). One that is pending is taken instead of the instruction, the step ends in the vector, and
whoever steps off a breakpoint comes back to it, for ever. So PSTATE.I and F are set for the step, and what
the instruction would have left there, or seen, is put right after it: for `msr daifset`, `daifclr`, `mrs` of
DAIF, and for an exception, which saves PSTATE in SPSR_EL1 (Arm ARM D1.3.1, D1.3.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ptinspect.arch import a64
from ptinspect.dataclass import dataclass

IRQS, FIQS = 0x80, 0x40
HELD = IRQS | FIQS
"""What is set: IRQ and FIQ are not taken."""
FLAGS = 0x3C0
"""D, A, I and F; taking an exception sets them all."""
SYNC, IRQ, FIQ = 0, 1, 2
"""What a vector is for: bits 8:7 of its offset (Arm ARM D1.3.1.5)."""
WAY_IN = 256
"""Instructions from a vector of the KPTI trampoline to where SPSR_EL1 has been read; it may spin to clear
the branch history first (arch/arm64/kernel/entry.S, tramp_ventry)."""
NEAR = 16 << 10
"""Bytes after the vectors in which the kernel's return from exceptions is looked for (entry.S)."""


class Cpu(Protocol):
    """The CPU that is stepped; the others stand. Registers have the names of the Arm ARM; PSTATE is CPSR."""

    def read(self, *names: str) -> list[int | None]:
        """Return registers; None for one that the stub does not have."""

    def write(self, **registers: int) -> None:
        """Write general registers, PC or CPSR; the stub does not write system registers."""

    def code(self, address: int, size: int) -> bytes:
        """Return bytes as the CPU sees them; empty if they cannot be read."""

    def step(self) -> bool:
        """Step as the stub does it; False if something else stopped the guest, perhaps before the step."""

    def is_free(self, address: int) -> bool:
        """Tell whether no breakpoint is set at an address."""


@dataclass(frozen=True)
class Before:
    """What a CPU was about to do."""

    pc: int
    pstate: int
    """With the flags that the guest itself had set."""
    word: int
    """The instruction; 0 (which is undefined) if it could not be read."""
    vbar: int | None = None
    tpidr: int | None = None
    """VBAR_EL1 and TPIDR_EL1, by which the CPU and its kernel are known again; None: the stub has none."""


def step(cpu: Cpu, noted: Callable[[Before], None] = lambda before: None) -> None:
    """Step one instruction. `noted` is told before PSTATE is changed; then everything is as it should be."""
    pc, pstate, vbar, tpidr = cpu.read("PC", "CPSR", "VBAR_EL1", "TPIDR_EL1")
    if pc is None or pstate is None:
        cpu.step()
        return
    code = cpu.code(pc, 4)
    before = Before(pc, pstate, a64.words(code)[0] if len(code) == 4 else 0, vbar, tpidr)
    if pstate & IRQS:
        # FIQs of Linux come and go with IRQs (f0098155d337, v5.13); before that there were none
        if cpu.step():
            _withdraw(cpu, before)
        return
    noted(before)
    cpu.write(CPSR=pstate | HELD)
    stepped = cpu.step()
    settle(cpu, before, stepped=stepped)


def settle(cpu: Cpu, before: Before, *, stepped: bool) -> None:
    """Put right what the flags changed, whether the instruction was executed or not."""
    pc, pstate = cpu.read("PC", "CPSR")
    if pc is None or pstate is None:
        return
    if pc == before.pc:  # not executed, or a branch to itself
        cpu.write(CPSR=pstate & ~HELD | before.pstate & HELD)
        return
    if _withdraw(cpu, before):
        return
    vector = _vector(cpu, pc, pstate)
    if vector is not None and vector.elr in (before.pc, before.pc + 4):
        _exception(cpu, before, vector, again=stepped)
        return
    executed(cpu, before, pstate)


def executed(cpu: Cpu, before: Before, pstate: int) -> None:
    """Put right the flags after an instruction that ran to its end, and what `mrs` read of them."""
    cpu.write(CPSR=_flags(before, pstate))
    read = a64.system_read(before.word)
    if read is not None and read[0] == a64.DAIF and read[1] != a64.SP:
        cpu.write(**{f"X{read[1]}": before.pstate & FLAGS})


def _flags(before: Before, pstate: int) -> int:
    """Return PSTATE as it would be if the flags had not been set before the instruction."""
    own = before.pstate
    written = a64.system_write(before.word)
    if before.word in a64.ERETS or (written is not None and written[0] == a64.DAIF):
        return pstate
    if (flags := a64.sets_daif(before.word)) is not None:
        own |= flags
    elif (flags := a64.clears_daif(before.word)) is not None:
        own &= ~flags
    return pstate & ~HELD | own & HELD


@dataclass(frozen=True)
class _Vector:
    """The vector that a CPU stands at the beginning of, having taken an exception to EL1."""

    base: int
    kind: int
    elr: int
    spsr: int


def _vector(cpu: Cpu, pc: int, pstate: int) -> _Vector | None:
    if pstate & FLAGS != FLAGS or pstate >> 2 & 3 != 1 or pc & 0x7F:
        return None
    base, elr, spsr = cpu.read("VBAR_EL1", "ELR_EL1", "SPSR_EL1")
    if base is None or elr is None or spsr is None or not 0 <= pc - base < 0x800:
        return None
    return _Vector(base, pc >> 7 & 3, elr, spsr)


def _withdraw(cpu: Cpu, before: Before) -> bool:
    """Take back an interrupt that was taken after the instruction, since that enabled it; it stays pending.

    The interrupt controller knows nothing of it before the handler reads which one it is.
    """
    word = before.word
    written = a64.system_write(word)
    unmasks = a64.clears_daif(word) is not None or (written is not None and written[0] == a64.DAIF)
    if not unmasks and word not in a64.ERETS:
        return False
    pc, pstate = cpu.read("PC", "CPSR")
    vector = None if pc is None or pstate is None else _vector(cpu, pc, pstate)
    if vector is None or vector.kind not in (IRQ, FIQ) or (unmasks and vector.elr != before.pc + 4):
        return False
    cpu.write(PC=vector.elr, CPSR=_flags(before, vector.spsr))
    return True


def _exception(cpu: Cpu, before: Before, taken: _Vector, *, again: bool) -> None:
    """Put right SPSR_EL1 after an exception that the instruction has taken.

    A synchronous one is taken once more without the flags, which is all that is needed if no interrupt is
    pending: nothing has changed but the registers of the exception, which an interrupt might change any time.
    """
    if again and taken.kind == SYNC:
        cpu.write(PC=before.pc, CPSR=before.pstate)
        if not cpu.step():
            return
        pc, pstate = cpu.read("PC", "CPSR")
        found = None if pc is None or pstate is None else _vector(cpu, pc, pstate)
        if found is None or found.kind not in (IRQ, FIQ) or found.elr != before.pc:
            return
        cpu.write(PC=before.pc, CPSR=before.pstate | HELD)
        if not cpu.step():
            settle(cpu, before, stepped=False)
            return
        pc, pstate = cpu.read("PC", "CPSR")
        retaken = None if pc is None or pstate is None else _vector(cpu, pc, pstate)
        if retaken is None:
            settle(cpu, before, stepped=False)
            return
        taken = retaken
    wanted = taken.spsr & ~HELD | before.pstate & HELD
    if not _write_spsr(cpu, taken.base, wanted):
        _follow_spsr(cpu, wanted)


def _write_spsr(cpu: Cpu, base: int, value: int) -> bool:
    """Have the CPU execute the kernel's own `msr spsr_el1, Xn`, which is near its vectors; False without."""
    for at in range(base, base + NEAR, 2048):
        code = cpu.code(at, 2048)
        if not code:
            return False
        for n, word in enumerate(a64.words(code)):
            written = a64.system_write(word)
            if written is not None and written[0] == a64.SPSR_EL1 and written[1] != a64.SP:
                place = at + 4 * n
                if cpu.is_free(place) and _borrow(cpu, place, f"X{written[1]}", value):
                    return True
    return False


def _borrow(cpu: Cpu, place: int, name: str, value: int) -> bool:
    pc, own = cpu.read("PC", name)
    if pc is None or own is None:
        return False
    cpu.write(PC=place, **{name: value})
    cpu.step()
    cpu.write(PC=pc, **{name: own})
    return cpu.read("SPSR_EL1") == [value]


def _follow_spsr(cpu: Cpu, value: int) -> None:
    """Go on, from a trampoline that maps little, until the kernel is there, or SPSR_EL1 has been used."""
    base = cpu.read("VBAR_EL1")[0]
    for _ in range(WAY_IN):
        pc = cpu.read("PC")[0]
        code = b"" if pc is None else cpu.code(pc, 4)
        word = a64.words(code)[0] if len(code) == 4 else 0
        cpu.step()
        after, pstate, now = cpu.read("PC", "CPSR", "VBAR_EL1")
        if after == pc or pstate is None:
            continue
        read = a64.system_read(word)
        if read is not None and read[0] == a64.SPSR_EL1 and read[1] != a64.SP:
            cpu.write(**{f"X{read[1]}": value})
            return
        if word in a64.ERETS:
            cpu.write(CPSR=pstate & ~HELD | value & HELD)
            return
        if now is not None and now != base:
            if _write_spsr(cpu, now, value):
                return
            base = now
