"""Syndromes: the report's, and every fault status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.arch.esr import decode_esr, fault_status


def test_the_reports_syndrome() -> None:
    esr = decode_esr(0x96000046)
    assert (esr.class_name, esr.il, esr.wnr, esr.s1ptw) == ("DABT (current EL)", True, True, False)
    assert (esr.fault, esr.level) == ("translation fault", 2)
    assert esr.text == "DABT (current EL): write, translation fault, level 2"
    later = decode_esr(0x96000006)
    assert (later.wnr, later.fault, later.level) == (False, "translation fault", 2)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x00, ("address size fault", 0)),
        (0x03, ("address size fault", 3)),
        (0x04, ("translation fault", 0)),
        (0x07, ("translation fault", 3)),
        (0x08, ("access flag fault", 0)),
        (0x0B, ("access flag fault", 3)),
        (0x0C, ("permission fault", 0)),
        (0x0F, ("permission fault", 3)),
        (0x10, ("synchronous external abort", None)),
        (0x13, ("synchronous external abort on a table walk", -1)),
        (0x17, ("synchronous external abort on a table walk", 3)),
        (0x1B, ("synchronous parity or ECC error on a table walk", -1)),
        (0x21, ("alignment fault", None)),
        (0x29, ("address size fault", -1)),
        (0x2B, ("translation fault", -1)),
        (0x30, ("TLB conflict abort", None)),
        (0x3F, ("reserved fault status 0x3f", None)),
    ],
)
def test_fault_status(status: int, expected: tuple[str, int | None]) -> None:
    assert fault_status(status) == expected


@pytest.mark.parametrize(
    ("bit", "field"), [(6, "wnr"), (7, "s1ptw"), (8, "cm"), (9, "ea"), (10, "fnv"), (24, "isv"), (25, "il")]
)
def test_flags_of_a_data_abort(bit: int, field: str) -> None:
    assert getattr(decode_esr(0x25 << 26 | 1 << bit), field) is True
    assert getattr(decode_esr(0x25 << 26), field) is False


def test_an_instruction_abort_neither_reads_nor_writes() -> None:
    esr = decode_esr(0x21 << 26 | 0x0F)
    assert (esr.wnr, esr.fault, esr.level) == (None, "permission fault", 3)


def test_brk_has_an_immediate() -> None:
    assert decode_esr(0xF2000800).immediate == 0x800


@given(st.integers(0, (1 << 64) - 1))
def test_any_value_decodes_and_explains_itself(raw: int) -> None:
    esr = decode_esr(raw)
    assert esr.text
    assert all(meaning for *_, meaning in esr.explain())
    assert (esr.fault is None) == (not esr.is_abort)
