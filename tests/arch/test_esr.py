"""Syndromes: the report's, and every fault status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.arch.esr import decode_esr, fault_status

WALK, PARITY, GRANULE = (
    "synchronous external abort on a table walk",
    "synchronous parity or ECC error on a table walk",
    "granule protection fault on a table walk",
)
STATUS: dict[int, tuple[str, int | None]] = {
    **{0x00 + n: ("address size fault", n) for n in range(4)},
    **{0x04 + n: ("translation fault", n) for n in range(4)},
    **{0x08 + n: ("access flag fault", n) for n in range(4)},
    **{0x0C + n: ("permission fault", n) for n in range(4)},
    0x10: ("synchronous external abort", None),
    0x11: ("synchronous tag check fault", None),
    **{0x14 + n: (WALK, n) for n in range(-2, 4)},
    0x18: ("synchronous parity or ECC error", None),
    **{0x1C + n: (PARITY, n) for n in range(-1, 4)},
    0x21: ("alignment fault", None),
    **{0x24 + n: (GRANULE, n) for n in range(-2, 4)},
    0x28: ("granule protection fault", None),
    0x29: ("address size fault", -1),
    0x2A: ("translation fault", -2),
    0x2B: ("translation fault", -1),
    0x2C: ("address size fault", -2),
    0x30: ("TLB conflict abort", None),
    0x31: ("unsupported atomic hardware update fault", None),
    0x34: ("implementation defined fault (lockdown)", None),
    0x35: ("implementation defined fault (unsupported exclusive or atomic access)", None),
}
"""Every fault status of the Arm ARM (ESR_EL1.DFSC)."""


@pytest.mark.parametrize("status", range(64))
def test_every_fault_status(status: int) -> None:
    expected = STATUS.get(status, (f"reserved fault status {status:#04x}", None))
    assert fault_status(status) == expected
    for ec in (0x20, 0x21, 0x24, 0x25):
        esr = decode_esr(ec << 26 | status)
        assert (esr.fault, esr.level, esr.status) == (*expected, status)


LINUX_NAMES = {
    0x00: "Unknown/Uncategorized", 0x01: "WFI/WFE", 0x03: "CP15 MCR/MRC", 0x04: "CP15 MCRR/MRRC",
    0x05: "CP14 MCR/MRC", 0x06: "CP14 LDC/STC", 0x07: "ASIMD", 0x08: "CP10 MRC/VMRS", 0x09: "PAC",
    0x0C: "CP14 MCRR/MRRC", 0x0D: "BTI", 0x0E: "PSTATE.IL", 0x11: "SVC (AArch32)", 0x12: "HVC (AArch32)",
    0x13: "SMC (AArch32)", 0x15: "SVC (AArch64)", 0x16: "HVC (AArch64)", 0x17: "SMC (AArch64)",
    0x18: "MSR/MRS (AArch64)", 0x19: "SVE", 0x1A: "ERET/ERETAA/ERETAB", 0x1C: "FPAC", 0x1D: "SME",
    0x1F: "EL3 IMP DEF", 0x20: "IABT (lower EL)", 0x21: "IABT (current EL)", 0x22: "PC Alignment",
    0x24: "DABT (lower EL)", 0x25: "DABT (current EL)", 0x26: "SP Alignment", 0x27: "MOPS",
    0x28: "FP (AArch32)", 0x2C: "FP (AArch64)", 0x2D: "Guarded Control Stack", 0x2F: "SError",
    0x30: "Breakpoint (lower EL)", 0x31: "Breakpoint (current EL)", 0x32: "Software Step (lower EL)",
    0x33: "Software Step (current EL)", 0x34: "Watchpoint (lower EL)", 0x35: "Watchpoint (current EL)",
    0x38: "BKPT (AArch32)", 0x3A: "Vector catch (AArch32)", 0x3C: "BRK (AArch64)",
}  # fmt: skip
"""esr_class_str of arch/arm64/kernel/traps.c, with the numbers of arch/arm64/include/asm/esr.h."""


@pytest.mark.parametrize("ec", range(64))
def test_every_class_has_the_name_that_linux_prints(ec: int) -> None:
    esr = decode_esr(ec << 26)
    assert (esr.ec, esr.class_name) == (ec, LINUX_NAMES.get(ec, "UNRECOGNIZED EC"))
    assert esr.class_text


@pytest.mark.parametrize(("bit", "field"), [(6, "wnr"), (7, "s1ptw"), (8, "cm")])
def test_flags_of_a_data_abort(bit: int, field: str) -> None:
    assert getattr(decode_esr(0x25 << 26 | 1 << bit), field) is True
    assert getattr(decode_esr(0x25 << 26), field) is False


def test_an_instruction_abort_neither_reads_nor_writes() -> None:
    esr = decode_esr(0x21 << 26 | 0x0F)
    assert (esr.wnr, esr.fault, esr.level) == (None, "permission fault", 3)


@pytest.mark.parametrize("ec", range(64))
def test_only_instructions_with_an_immediate_have_one(ec: int) -> None:
    has = ec in (0x11, 0x12, 0x15, 0x16, 0x17, 0x38, 0x3C)
    assert decode_esr(ec << 26 | 0x1FF_BEEF).immediate == (0xBEEF if has else None)


@pytest.mark.parametrize(
    ("immediate", "use"),
    [
        (0x003, ""), (0x004, "kprobe"), (0x005, "uprobe"), (0x006, "kprobe single-step"),
            (0x007, "kretprobe"), (0x008, ""),
        (0x100, "fault on purpose"), (0x3FF, ""), (0x400, "kgdb"), (0x7FF, "kgdb"),
        (0x800, "BUG() or WARN()"), (0x801, ""), (0x8FF, ""), (0x900, "KASAN"), (0x9FF, "KASAN"), (0xA00, ""),
        (0x54FF, ""), (0x5500, "UBSAN"), (0x55FF, "UBSAN"), (0x5600, ""), (0x7FFF, ""), (0x8000, "CFI"),
        (0x83FF, "CFI"), (0x8400, ""),
    ],
)  # fmt: skip
def test_brk_tells_what_linux_uses_it_for(immediate: int, use: str) -> None:
    esr = decode_esr(0xF2000000 | immediate)
    assert (esr.immediate, esr.brk_use) == (immediate, use)
    assert esr.text == f"BRK (AArch64): immediate {immediate:#x}" + (f" ({use})" if use else "")
    assert decode_esr(0x15 << 26 | immediate).brk_use == ""


def test_words_of_other_aborts() -> None:
    assert decode_esr(0x25 << 26 | 1 << 8 | 1 << 6 | 0x2B).text == (
        "DABT (current EL): cache maintenance, translation fault, level -1"
    )
    assert decode_esr(0x24 << 26 | 1 << 7 | 0x05).text == (
        "DABT (lower EL): read, translation fault, level 1, stage 2 fault on a stage 1 walk"
    )
    assert decode_esr(0x21 << 26 | 0x0F).text == "IABT (current EL): permission fault, level 3"
    assert decode_esr(0x26 << 26).text == "SP Alignment"


def test_the_second_syndrome_tells_of_indirect_permissions_and_overlays() -> None:
    """A write to a clean page with FEAT_S1PIE, as QEMU 11 gives it; a protection key; a shadow stack."""
    assert decode_esr(1 << 37 | 0x25 << 26 | 0x4F).text == (
        "DABT (current EL): write, permission fault, level 3, DirtyBit"
    )
    assert decode_esr(1 << 38 | 0x24 << 26 | 0x0F).text.endswith("permission fault, level 3, Overlay")
    assert decode_esr(1 << 40 | 0x24 << 26 | 0x4F).text.endswith("level 3, GCS")
    assert decode_esr(1 << 37 | 0x15 << 26).text == decode_esr(0x15 << 26).text, "no abort has none"


@given(st.integers(0, 63), st.integers(0, (1 << 26) - 1), st.integers(0, (1 << 24) - 1))
def test_any_value_decodes(ec: int, low: int, iss2: int) -> None:
    raw = iss2 << 32 | ec << 26 | low
    esr = decode_esr(raw)
    assert esr.text
    assert (esr.fault is None) == (not esr.is_abort)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (0xBE000000, "uncategorized"),
        (0xBE000011, "asynchronous, uncontainable, external abort type 0"),
        (0xBE000411, "asynchronous, unrecoverable, external abort type 0"),
        (0xBE000E11, "asynchronous, recoverable, external abort type 1"),
        (0xBF000002, "implementation defined syndrome 0x2"),
        (0x96000006, ""),
    ],
)
def test_an_serrors_syndrome_is_told(raw: int, words: str) -> None:
    """Arm ARM ESR_EL1, ISS encoding for an SError interrupt."""
    esr = decode_esr(raw)
    assert esr.serror == words
    assert words in esr.text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (0x3600_0002, "BTI: BTYPE 0b10"),
        (0x7200_0000, "FPAC: instruction key A"),
        (0x7200_0003, "FPAC: data key B"),
        (0x9F00_0000, "MOPS: memory set"),
        (0x9E00_0000, "MOPS: memory copy"),
        (0xB600_0000, "Guarded Control Stack: data check"),
        (0xB610_0000, "Guarded Control Stack: EXLOCK"),
        (1 << 42 | 0x9600_000F, "DABT (current EL): read, permission fault, level 3, TnD"),
    ],
)
def test_what_newer_checks_tell(raw: int, text: str) -> None:
    assert decode_esr(raw).text == text
