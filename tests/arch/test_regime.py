"""The translation regime from registers, with values of real kernels."""

from __future__ import annotations

import pytest

from ptinspect.arch.regime import Regime, regime_from_registers
from ptinspect.arch.sysregs import (
    CpuState,
    decode_mair,
    decode_sctlr,
    decode_tcr,
    decode_ttbr,
    describe_pstate,
    mair_type_name,
    root_pa,
    ttbr_base,
)
from ptinspect.errors import RegimeError

EL1H = 0x3C5


def state(tcr: int, *, el: int = EL1H, sctlr: int = 0x34D5D91D, **more: int) -> CpuState:
    system = {"TCR_EL1": tcr, "SCTLR_EL1": sctlr, "MAIR_EL1": 0xC0400BB44FFFF, **more}
    return CpuState(0, (0,) * 31, 0, 0, el, system)


def test_a_live_tcr_of_5_10() -> None:
    upper = regime_from_registers(state(0x400034B5503510), True)
    assert (upper.granule_bits, upper.va_bits, upper.start_level, upper.ds) == (12, 48, 0, False)
    assert (upper.pa_bits, upper.tbi, upper.hpd, upper.upper) == (44, False, False, True)
    lower = regime_from_registers(state(0x400034B5503510), False)
    assert (lower.granule_bits, lower.va_bits, lower.tbi, lower.upper) == (12, 48, True, False)


def test_a_live_tcr_with_lpa2() -> None:
    upper = regime_from_registers(state(0x95001F6B54C3510), True)
    assert (upper.va_bits, upper.ds, upper.pa_bits, upper.start_level) == (52, True, 52, -1)
    assert upper.entries(-1) == 16
    assert upper.sh == 3


@pytest.mark.parametrize(
    ("granule", "va", "ds", "start", "entries"),
    [
        (12, 52, True, -1, 16),
        (12, 49, True, -1, 2),
        (12, 48, False, 0, 512),
        (12, 40, False, 0, 2),
        (12, 39, False, 1, 512),
        (12, 30, False, 2, 512),
        (12, 31, False, 1, 2),
        (12, 25, False, 2, 16),
        (14, 52, True, 0, 32),
        (14, 48, False, 0, 2),
        (14, 47, False, 1, 2048),
        (14, 36, False, 2, 2048),
        (14, 37, False, 1, 2),
        (16, 52, False, 1, 1024),
        (16, 48, False, 1, 64),
        (16, 42, False, 2, 8192),
        (16, 43, False, 1, 2),
    ],
)
def test_start_levels_and_root_sizes(granule: int, va: int, ds: bool, start: int, entries: int) -> None:
    regime = Regime(granule, va, 52 if ds else 48, True, ds=ds)
    assert (regime.start_level, regime.entries(start)) == (start, entries)
    assert entries << regime.shift(start) == 1 << va
    assert regime.index(regime.va_max, start) == entries - 1
    assert regime.index(regime.va_min, start) == 0


def test_tg0_and_tg1_are_encoded_differently() -> None:
    for value, lower, upper in ((0, 12, 0), (1, 16, 14), (2, 14, 12), (3, 0, 16)):
        tcr = decode_tcr(value << 14 | value << 30)
        assert (tcr.granule0_bits, tcr.granule1_bits) == (lower, upper)


@pytest.mark.parametrize(
    ("bit", "field"),
    [
        (7, "epd0"),
        (22, "a1"),
        (23, "epd1"),
        (36, "asid16"),
        (37, "tbi0"),
        (38, "tbi1"),
        (39, "ha"),
        (40, "hd"),
        (41, "hpd0"),
        (42, "hpd1"),
        (53, "nfd0"),
        (54, "nfd1"),
        (55, "e0pd0"),
        (56, "e0pd1"),
        (59, "ds"),
    ],
)
def test_every_flag_of_tcr(bit: int, field: str) -> None:
    assert getattr(decode_tcr(1 << bit), field) is True
    assert getattr(decode_tcr(~(1 << bit) & (1 << 64) - 1), field) is False


def test_sizes_are_clamped_as_the_cpu_does() -> None:
    small = 2 << 30
    assert regime_from_registers(state(small | 1 << 16), True).va_bits == 48
    assert regime_from_registers(state(small | 60 << 16), True).va_bits == 64 - 39
    assert regime_from_registers(state(small | 60 << 16, ID_AA64MMFR2_EL1=1 << 28), True).va_bits == 16
    big = 3 << 30
    assert regime_from_registers(state(big | 12 << 16), True).va_bits == 48
    assert regime_from_registers(state(big | 12 << 16, ID_AA64MMFR2_EL1=1 << 16), True).va_bits == 52


def test_52_bit_addresses_count_only_where_descriptors_hold_them() -> None:
    ips = 6 << 32
    assert regime_from_registers(state(ips | 2 << 30 | 16 << 16), True).pa_bits == 48
    assert regime_from_registers(state(ips | 3 << 30 | 16 << 16), True).pa_bits == 52
    assert regime_from_registers(state(ips | 2 << 30 | 12 << 16 | 1 << 59), True).pa_bits == 52


def test_before_anything_is_set_up_there_is_no_regime() -> None:
    with pytest.raises(RegimeError, match="reserved granule"):
        regime_from_registers(state(0), True)
    with pytest.raises(RegimeError, match="TCR_EL1"):
        regime_from_registers(CpuState(0, (0,) * 31, 0, 0, EL1H, {}), True)


def test_the_mmu_and_wxn_come_from_sctlr() -> None:
    on, off = state(2 << 30 | 16 << 16), state(2 << 30 | 16 << 16, sctlr=0x80000)
    assert regime_from_registers(on, True).mmu_on
    assert not regime_from_registers(off, True).mmu_on
    assert regime_from_registers(off, True).wxn
    assert decode_sctlr(0x2000000).ee


def test_a_vhe_kernel_uses_the_el2_registers() -> None:
    hcr = 1 << 34 | 1 << 27
    more = {"HCR_EL2": hcr, "TCR_EL2": 3 << 30 | 22 << 16, "SCTLR_EL2": 1, "MAIR_EL2": 0xFF}
    more |= {"TTBR1_EL2": 0x4000_0000, "TTBR1_EL1": 0x5000_0000}
    at_el2 = state(2 << 30 | 16 << 16, el=0x3C9, **more)
    assert regime_from_registers(at_el2, True).granule_bits == 16
    assert root_pa(at_el2, regime_from_registers(at_el2, True)) == 0x4000_0000
    at_el1 = state(2 << 30 | 16 << 16, **more)
    assert regime_from_registers(at_el1, True).granule_bits == 12
    assert root_pa(at_el1, regime_from_registers(at_el1, True)) == 0x5000_0000


def test_ttbr_without_asid_and_cnp() -> None:
    assert decode_ttbr(0x16000041475001) == decode_ttbr(0x16000041475001)
    found = decode_ttbr(0x0016_0000_4147_5001)
    assert (found.asid, found.cnp, found.base) == (0x16, True, 0x41475000)
    assert ttbr_base(0x4147_5000 | 0b1010 << 2, pa52=True) == 0x4147_5000 | 0b1010 << 48


@pytest.mark.parametrize(
    ("byte", "name"),
    [
        (0x00, "Device-nGnRnE"),
        (0x04, "Device-nGnRE"),
        (0x08, "Device-nGRE"),
        (0x0C, "Device-GRE"),
        (0x44, "Normal NC"),
        (0xFF, "Normal WB"),
        (0xBB, "Normal WT"),
        (0xF0, "Normal Tagged WB"),
        (0x4F, "Normal outer NC, inner WB"),
    ],
)
def test_memory_types(byte: int, name: str) -> None:
    assert mair_type_name(byte) == name


def test_mair_of_4_17_has_normal_at_index_4() -> None:
    assert decode_mair(0xBBFF440C0400)[:6] == (
        *("Device-nGnRnE", "Device-nGnRE", "Device-GRE", "Normal NC"),
        *("Normal WB", "Normal WT"),
    )


def test_pstate_as_people_write_it() -> None:
    assert describe_pstate(0x604003C5) == "EL1h nZCv DAIF PAN"
    assert describe_pstate(0x00000000) == "EL0 nzcv daif"


def test_halves() -> None:
    upper, lower = Regime(12, 48, 48, True), Regime(12, 48, 48, False, tbi=True)
    assert upper.contains(0xFFFF000000000000)
    assert not upper.contains(0xFFFE000000000000)
    assert lower.contains(0xAB00_7FFF_FFFF_F000)
    assert not lower.contains(0x0001_0000_0000_0000)
