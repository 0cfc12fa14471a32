"""One step without an interrupt: compared with the same CPU to which none comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvm_cpu import (
    B_SELF,
    ERET,
    LDR_X0_X0,
    MRS_X1_DAIF,
    MRS_X23_SPSR,
    MRS_XZR_DAIF,
    MSR_DAIF_X1,
    MSR_DAIFCLR_2,
    MSR_DAIFCLR_15,
    MSR_DAIFSET_1,
    MSR_DAIFSET_2,
    MSR_DAIFSET_15,
    MSR_SPSR_X22,
    MSR_VBAR_X30,
    NOP,
    SVC,
    TRAMPOLINE,
    UDF,
    VECTORS,
    ModelCpu,
)

from ptinspect.link.masked_step import Before, settle, step

EL1, EL0 = 0x6000_0005, 0x6000_0000
WORDS = [
    *(NOP, SVC, ERET, UDF, B_SELF, LDR_X0_X0, MRS_X1_DAIF, MRS_XZR_DAIF, MSR_DAIF_X1, MSR_DAIFCLR_2),
    *(MSR_DAIFCLR_15, MSR_DAIFSET_1, MSR_DAIFSET_2, MSR_DAIFSET_15),
]


def undisturbed(cpu: ModelCpu) -> dict[str, int]:
    """The registers after the step, of the same CPU without an interrupt."""
    alone = replace(cpu, regs=dict(cpu.regs), words=dict(cpu.words), pending=False)
    alone.step()
    return alone.regs


def kernel(cpu: ModelCpu) -> ModelCpu:
    """Give a CPU the kernel's way out of exceptions, behind its vectors."""
    cpu.words[VECTORS + 0x2A40] = MSR_SPSR_X22
    return cpu


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("flags", [0, 0x40, 0x80, 0xC0, 0x100, 0x300, 0x3C0])
@pytest.mark.parametrize("level", [EL1, EL0])
@pytest.mark.parametrize("word", WORDS, ids=hex)
def test_nothing_but_the_instruction_happens(word: int, level: int, flags: int, pending: bool) -> None:
    for more in ({"X1": 0}, {"X1": 0x240}, {"SPSR_EL1": 0x85}, {"SPSR_EL1": 0}):
        cpu = kernel(ModelCpu.make(word, level | flags, pending=pending, **more))
        cpu.regs["ELR_EL1"] = 0x40_2000
        expected = undisturbed(cpu)
        step(cpu)
        got = cpu.regs
        if word not in (SVC, UDF, LDR_X0_X0) and got["CPSR"] & 0xF != 5 | 8:
            # an interrupt that was taken back has left its traces, as one may any time when it is enabled
            expected |= {key: got[key] for key in ("ELR_EL1", "SPSR_EL1")} if not got["CPSR"] & 0x80 else {}
        assert got == expected


def test_a_step_with_a_pending_interrupt_stays_where_it_is_without_this() -> None:
    cpu = ModelCpu.make(NOP, EL1, pending=True)
    cpu.step()
    assert cpu.regs["PC"] == VECTORS + 0x280


def test_what_is_changed_is_told_before() -> None:
    cpu = ModelCpu.make(NOP, EL1, pending=True)
    told: list[tuple[Before, int]] = []
    step(cpu, lambda before: told.append((before, cpu.regs["CPSR"])))
    assert told == [(Before(0x40_0000, EL1, NOP, VECTORS, 3), EL1)]


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("word", WORDS, ids=hex)
def test_one_that_was_left_half_done_is_finished(word: int, stepped: bool) -> None:
    """Whoever stepped has died before the step, or after it."""
    cpu = kernel(ModelCpu.make(word, EL1, pending=True))
    expected = undisturbed(cpu) if stepped else dict(cpu.regs)
    before = Before(cpu.regs["PC"], EL1, word)
    cpu.write(CPSR=EL1 | 0xC0)
    if stepped:
        cpu.step()
    settle(cpu, before, stepped=True)
    kept = ("PC", "CPSR", "X1", *(("SPSR_EL1", "ELR_EL1") if word in (SVC, UDF, LDR_X0_X0) else ()))
    assert {name: cpu.regs[name] for name in kept} == {name: expected[name] for name in kept}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("word", [NOP, SVC, MRS_X1_DAIF], ids=hex)
def test_who_interrupts_a_step_leaves_no_flags(word: int, number: int) -> None:
    cpu = kernel(ModelCpu.make(word, EL1, pending=True))
    cpu.stops_at = number
    step(cpu)
    assert not (cpu.regs["CPSR"] if cpu.regs["PC"] < VECTORS else cpu.regs["SPSR_EL1"]) & 0xC0


def test_a_breakpoint_on_the_way_out_is_not_in_the_way() -> None:
    cpu = kernel(ModelCpu.make(SVC, EL0, pending=True))
    expected = undisturbed(cpu)
    cpu.words[VECTORS + 0x2B00] = MSR_SPSR_X22
    cpu.points = {VECTORS + 0x2A40}
    step(cpu)
    assert cpu.regs == expected


@pytest.mark.parametrize("read_in_trampoline", [False, True])
def test_from_a_trampoline_that_maps_no_kernel(read_in_trampoline: bool) -> None:
    cpu = kernel(ModelCpu.make(SVC, EL0, pending=True, VBAR_EL1=TRAMPOLINE, X30=VECTORS))
    cpu.mapped = range(TRAMPOLINE, TRAMPOLINE + 0x1000)
    at = TRAMPOLINE + 0x400
    way = [NOP, MRS_X23_SPSR] if read_in_trampoline else [NOP, MSR_VBAR_X30]
    cpu.words |= {at + 4 * n: word for n, word in enumerate([*way, NOP, NOP])}
    step(cpu)
    assert cpu.regs["PC"] == at + 8 and cpu.regs["ELR_EL1"] == 0x40_0004
    assert cpu.regs["X23" if read_in_trampoline else "SPSR_EL1"] & 0xC0 == 0


def test_a_handler_that_returns_at_once() -> None:
    """No `msr spsr_el1` anywhere: the CPU is followed until the wrong value is used."""
    cpu = ModelCpu.make(SVC, EL0, pending=True)
    cpu.words |= {VECTORS + 0x400: NOP, VECTORS + 0x404: ERET}
    step(cpu)
    assert (cpu.regs["PC"], cpu.regs["CPSR"]) in (
        (0x40_0004, EL0),
        (VECTORS + 0x480, 0x3C5),  # the interrupt, at last
    )
