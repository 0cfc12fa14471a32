"""What proves that a CPU will never do anything else, and what does not."""

from __future__ import annotations

import struct

import pytest

from ptinspect.arch.endless import endless, has_kernel_tables, is_off
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import GuestError

NOP, WFE, WFI, ISB, ADD = 0xD503201F, 0xD503205F, 0xD503207F, 0xD5033FDF, 0x91000673
UNDEFINED = 0x0200_0000
"""ESR of an undefined instruction."""


def state(pc: int, pstate: int = 0x3C5, **system: int) -> CpuState:
    return CpuState(0, (0,) * 31, 0, pc, pstate, system)


def code(*words: int, at: int = 0x4008_0000) -> object:
    raw = struct.pack(f"<{len(words)}I", *words)

    def read(address: int, length: int) -> bytes:
        if not at <= address <= at + len(raw) - length:
            raise GuestError("not there")
        return raw[address - at : address - at + length]

    return read


def b(offset: int) -> int:
    return 0x1400_0000 | offset >> 2 & 0x3FF_FFFF


FAULTS = {"VBAR_EL1": 0, "ELR_EL1": 0x200, "SPSR_EL1": 0x3C5, "ESR_EL1": UNDEFINED}


def test_a_vector_that_faults_at_its_first_instruction() -> None:
    why = endless(state(0x200, **FAULTS), code())  # type: ignore[arg-type]
    assert why.startswith("takes an exception at its own exception vector 0x200 (")
    at_el2 = {name.replace("EL1", "EL2"): value for name, value in FAULTS.items()} | {"SPSR_EL2": 0x3C9}
    assert endless(state(0x200, 0x3C9, **at_el2), code())  # type: ignore[arg-type]
    on_sp0 = FAULTS | {"ELR_EL1": 0x8000, "VBAR_EL1": 0x8000, "SPSR_EL1": 0x3C4}
    assert endless(state(0x8000, **on_sp0), code())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pc", "other"),
    [
        (0x200, {"ELR_EL1": 0x4008_0000}),  # it came from elsewhere, and may go on
        (0x204, {"ELR_EL1": 0x204}),  # past the first instruction
        (0x280, {"ELR_EL1": 0x280}),  # an interrupt
        (0x200, {"SPSR_EL1": 0x3C0}),  # from EL0
        (0x200, {"SPSR_EL1": 0x3C4}),  # would lead to another vector
        (0x200, {"VBAR_EL1": 0x800}),
    ],
)
def test_exceptions_that_lead_elsewhere(pc: int, other: dict[str, int]) -> None:
    assert endless(state(pc, **(FAULTS | other)), code()) == ""  # type: ignore[arg-type]


def test_registers_that_are_not_known_prove_nothing() -> None:
    for name in FAULTS:
        system = {key: value for key, value in FAULTS.items() if key != name}
        assert endless(state(0x200, **system), code()) == ""  # type: ignore[arg-type]
    assert endless(state(0x200, 0x3C0, **FAULTS), code()) == "", "EL0"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loop", [[b(0)], [WFE, WFI, b(-8)], [NOP, ISB, WFI, b(4), b(-16)], [b(8), WFI, WFE, b(-8)]]
)
def test_a_loop_that_nothing_interrupts(loop: list[int]) -> None:
    read = code(*loop)
    assert "with all interrupts masked" in endless(state(0x4008_0000), read)  # type: ignore[arg-type]
    for pstate in (0x345, 0x385, 0x2C5, 0x5):  # F, I, A, nothing masked
        assert endless(state(0x4008_0000, pstate), read) == ""  # type: ignore[arg-type]
    for register, value in (("HCR_EL2", 1 << 4), ("HCR_EL2", 1 << 3), ("SCR_EL3", 1 << 1)):
        assert endless(state(0x4008_0000, **{register: value}), read) == "", "taken at a level above"  # type: ignore[arg-type]
    assert endless(state(0x4008_0000, 0x3C9, HCR_EL2=1 << 4), read), "at EL2 itself"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loop", [[ADD, b(-4)], [WFI, 0xD65F_03C0], [WFI, 0x5400_0000, b(-8)], [WFI], [NOP] * 40 + [b(-160)]]
)
def test_what_may_end(loop: list[int]) -> None:
    assert endless(state(0x4008_0000), code(*loop)) == ""  # type: ignore[arg-type]


def test_who_has_begun() -> None:
    assert is_off(state(0, VBAR_EL1=0)) and not is_off(state(4)) and not is_off(state(0, VBAR_EL1=0x800))
    assert not has_kernel_tables(state(0)) and not has_kernel_tables(state(0, TTBR1_EL1=0x4000, SCTLR_EL1=0))
    assert has_kernel_tables(state(0, TTBR1_EL1=0x4000, SCTLR_EL1=1))
    assert has_kernel_tables(state(0, 0x3C9, HCR_EL2=1 << 34, TTBR1_EL2=0x4000, SCTLR_EL2=1))
