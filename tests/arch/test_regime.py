"""The translation regime from registers, with values of real kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from ptinspect.arch.regime import Regime, regime_from_registers, root_pa
from ptinspect.arch.sysregs import (
    CpuState,
    current_regime,
    decode_mair,
    decode_pstate,
    decode_sctlr,
    decode_tcr,
    decode_tcr2,
    decode_tcr_el2,
    mair_type_name,
    translation_register,
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


def test_tg0_and_tg1_are_encoded_differently() -> None:
    for value, lower, upper in ((0, 12, 0), (1, 16, 14), (2, 14, 12), (3, 0, 16)):
        tcr = decode_tcr(value << 14 | value << 30)
        assert (tcr.granule0_bits, tcr.granule1_bits) == (lower, upper)


LVA, TTST = 1 << 16, 1 << 28
"""ID_AA64MMFR2_EL1: VARange 52, small tables."""
LPA2_4K, LPA2_16K, NO_16K = 1 << 28, 2 << 20, 1 << 20
"""ID_AA64MMFR0_EL1: TGran4 with 52 bits, TGran16 with 52 bits, TGran16 without."""
TG1 = {12: 2 << 30, 14: 1 << 30, 16: 3 << 30}
TG0 = {12: 0, 14: 2 << 14, 16: 1 << 14}


def halves(tcr: int, **more: int) -> tuple[Regime, Regime]:
    """Both halves with the same granule and TxSZ: bits 5:0 of `tcr` give TxSZ."""
    granule = next(g for g, bits in TG1.items() if bits == tcr & 3 << 30)
    held = state(tcr | (tcr & 0x3F) << 16 | TG0[granule], **more)
    return regime_from_registers(held, False), regime_from_registers(held, True)


@pytest.mark.parametrize("granule", [12, 14, 16])
@pytest.mark.parametrize("mmfr2", [None, 0, LVA, TTST, LVA | TTST])
@pytest.mark.parametrize("ds", [False, True])
def test_txsz_takes_the_nearest_size_that_the_cpu_has(granule: int, mmfr2: int | None, ds: bool) -> None:
    more = {} if mmfr2 is None else {"ID_AA64MMFR2_EL1": mmfr2}
    wide = granule == 16 and mmfr2 in (None, LVA, LVA | TTST)
    smallest = 12 if wide or (ds and granule != 16) else 16
    largest = 39 if mmfr2 in (0, LVA) else 47 if granule == 16 else 48
    for txsz in range(64):
        expected = 64 - sorted((smallest, txsz, largest))[1]
        for half in halves(TG1[granule] | ds << 59 | txsz, **more):
            assert (half.va_bits, half.ds) == (expected, ds and granule != 16), txsz


@pytest.mark.parametrize(
    ("granule", "mmfr0", "effective"),
    [
        (12, None, True),
        (12, 0, False),
        (12, LPA2_4K, True),
        (12, 0xF << 28, False),
        (12, LPA2_16K, False),
        (14, None, True),
        (14, 0, False),
        (14, NO_16K, False),
        (14, LPA2_16K, True),
        (14, 3 << 20, True),
        (14, LPA2_4K, False),
        (16, None, False),
        (16, LPA2_4K | LPA2_16K, False),
    ],
)
def test_ds_counts_only_where_the_cpu_has_lpa2_for_the_granule(
    granule: int, mmfr0: int | None, effective: bool
) -> None:
    more = {} if mmfr0 is None else {"ID_AA64MMFR0_EL1": mmfr0 | 6}
    for half in halves(TG1[granule] | 1 << 59 | 6 << 32 | 12, **more):
        assert half.ds is effective
        assert half.wide_oa is (effective or granule == 16)
        assert half.pa_bits == (52 if half.wide_oa else 48)


SIZES = (32, 36, 40, 42, 44, 48, 52, 52)
"""By the encoding of IPS; the reserved value 7 behaves as 6."""


@pytest.mark.parametrize("ips", range(8))
@pytest.mark.parametrize("parange", [None, *range(16)])
def test_ips_is_cut_to_the_format_and_to_the_cpu(ips: int, parange: int | None) -> None:
    more = {} if parange is None else {"ID_AA64MMFR0_EL1": parange}
    implemented = 52 if parange is None else SIZES[min(parange, 7)]
    for granule, widest in ((12, 48), (14, 48), (16, 52)):
        for half in halves(TG1[granule] | ips << 32 | 16, **more):
            assert half.pa_bits == min(SIZES[ips], implemented, widest)
            assert half.pa_max == (0 if parange is None else implemented)


def test_a_64k_block_at_level_1_depends_on_the_cpu_and_not_on_ips() -> None:
    narrow_ips, full_ips = TG1[16] | 5 << 32 | 16, TG1[16] | 6 << 32 | 16
    assert halves(narrow_ips, ID_AA64MMFR0_EL1=6)[1].allows_block(1)
    assert not halves(narrow_ips, ID_AA64MMFR0_EL1=5)[1].allows_block(1)
    assert not halves(full_ips, ID_AA64MMFR0_EL1=5)[1].allows_block(1)
    assert halves(full_ips)[1].allows_block(1)
    assert not halves(narrow_ips)[1].allows_block(1)


def test_id_registers_of_real_cpus() -> None:
    """As QEMU 7.2 gives them for `-cpu max` and `-cpu cortex-a57`."""
    wide = {"ID_AA64MMFR0_EL1": 0x32310201126, "ID_AA64MMFR2_EL1": 0x1021011010011011}
    upper = regime_from_registers(state(0x095001F6B54C350C, **wide), True)
    assert (upper.va_bits, upper.pa_bits, upper.ds, upper.start_level) == (52, 52, True, -1)
    narrow = {"ID_AA64MMFR0_EL1": 0x1124, "ID_AA64MMFR2_EL1": 0}
    upper = regime_from_registers(state(0x095001F6B54C350C, **narrow), True)
    assert (upper.va_bits, upper.pa_bits, upper.ds, upper.start_level) == (48, 44, False, 0)
    upper = regime_from_registers(state(0x34B5503510, **narrow), True)
    assert (upper.va_bits, upper.pa_bits, upper.start_level) == (48, 44, 0)


@pytest.mark.parametrize(
    ("field", "lower", "upper"), [("hpd", 41, 42), ("epd", 7, 23), ("e0pd", 55, 56), ("tbi", 37, 38)]
)
def test_controls_of_one_half_leave_the_other_alone(field: str, lower: int, upper: int) -> None:
    for bit, expected in ((lower, (True, False)), (upper, (False, True))):
        assert tuple(getattr(half, field) for half in halves(TG1[12] | 16 | 1 << bit)) == expected


@pytest.mark.parametrize(
    ("ha", "hd", "expected"),
    [(0, 0, (False, False)), (1, 0, (True, False)), (0, 1, (False, False)), (1, 1, (True, True))],
)
def test_the_dirty_state_is_managed_only_with_the_access_flag(
    ha: int, hd: int, expected: tuple[bool, bool]
) -> None:
    for half in halves(TG1[12] | 16 | ha << 39 | hd << 40):
        assert (half.ha, half.hd) == expected


def test_shareability_and_memory_types_reach_the_regime() -> None:
    lower, upper = halves(TG1[12] | 16 | 2 << 12 | 3 << 28, MAIR_EL1=0x1234)
    assert (lower.sh, upper.sh, lower.mair, upper.mair) == (2, 3, 0x1234, 0x1234)
    assert (lower.upper, upper.upper) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((13, 48, 48), "granule"),
        ((12, 15, 48), "15-bit virtual"),
        ((12, 53, 48), "53-bit virtual"),
        ((12, 56, 48), "56-bit virtual"),
        ((16, 16, 48), "16-bit virtual"),
        ((12, 48, 45), "45-bit physical"),
        ((12, 48, 56), "56-bit physical"),
        ((12, 49, 48), "more than 48 bits"),
        ((14, 52, 48), "more than 48 bits"),
        ((12, 48, 52), "more than 48 bits"),
        ((16, 48, 52, True), "64K granule"),
    ],
)
def test_a_regime_that_does_not_exist_is_refused(arguments: tuple[int, ...], message: str) -> None:
    granule, va, pa, *ds = arguments
    with pytest.raises(RegimeError, match=message):
        Regime(granule, va, pa, True, ds=bool(ds))


@pytest.mark.parametrize("granule", [12, 14, 16])
@pytest.mark.parametrize("ds", [False, True])
def test_geometry_of_every_size(granule: int, ds: bool) -> None:
    """Against the formulas of the Arm ARM's pseudocode: AArch64.S1StartLevel(), AArch64.TTBaseAddress()."""
    if ds and granule == 16:
        return
    stride = granule - 3
    for va in range(17 if granule == 16 else 16, 53 if ds or granule == 16 else 49):
        regime = Regime(granule, va, 48, True, ds=ds)
        start = 4 - (1 + (va - 1 - granule) // stride)
        log2_size = va - ((3 - start) * stride + granule) + 3
        assert (regime.start_level, regime.levels) == (start, 4 - start)
        assert regime.root_size == 1 << log2_size
        assert regime.root_alignment == 1 << max(log2_size, 6 if ds else 0)
        assert regime.root_size <= regime.granule
        assert regime.index(regime.va_max, start) == regime.entries(start) - 1
        assert regime.index(regime.va_min, start) == 0
        assert regime.entry_size(start) * regime.entries(start) == 1 << va
        for level in range(start, 3):
            assert regime.entry_size(level) == regime.entry_size(level + 1) << stride
            assert regime.index(regime.va_min + regime.entry_size(level + 1), level + 1) == 1
        assert regime.entry_size(3) == regime.granule


def test_the_root_is_aligned_as_the_cpu_does() -> None:
    def root(ttbr: int, regime: Regime) -> int:
        return root_pa(state(0, TTBR1_EL1=ttbr, TTBR0_EL1=0), regime)

    assert root(0xABCD_0000_4100_0FFF, Regime(12, 48, 48, True)) == 0x4100_0000
    assert root(0x4100_0FFF, Regime(12, 40, 48, True)) == 0x4100_0FF0
    assert root(0x4100_1E00, Regime(16, 48, 48, True)) == 0x4100_1E00
    assert root(0x4100_1FFF, Regime(16, 48, 48, True)) == 0x4100_1E00
    lpa, lpa2 = Regime(16, 52, 52, True), Regime(12, 52, 52, True, ds=True)
    assert root(0x4100_0000 | 0b1001 << 2, lpa) == 0x9_0000_4100_0000
    assert root(0x4100_0080 | 0b1111 << 2 | 1, lpa2) == 0xF_0000_4100_0080
    assert root(0x4100_00FF, Regime(12, 49, 52, True, ds=True)) == 0xF_0000_4100_00C0
    assert root_pa(state(0, TTBR0_EL1=0x4200_0000, TTBR1_EL1=1), Regime(12, 48, 48, False)) == 0x4200_0000
    with pytest.raises(RegimeError):
        root_pa(state(0), Regime(12, 48, 48, True))


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


@pytest.mark.parametrize(
    ("el", "hcr", "suffix"),
    [
        (2, 1 << 34, "EL2"),
        (2, 0, "EL1"),
        (1, 1 << 34 | 1 << 27, "EL1"),
        (0, 1 << 34 | 1 << 27, "EL2"),
        (0, 1 << 34, "EL1"),
        (0, 1 << 27, "EL1"),
    ],
)
def test_which_registers_translate(el: int, hcr: int, suffix: str) -> None:
    held = state(0, el=el << 2, HCR_EL2=hcr)
    assert translation_register(held, "TTBR1") == f"TTBR1_{suffix}"
    assert translation_register(state(0, el=el << 2), "TTBR1") == "TTBR1_EL1"


def test_a_register_of_el2_that_is_missing_is_not_replaced_by_one_of_el1() -> None:
    held = state(2 << 30 | 16 << 16, el=0x3C9, HCR_EL2=1 << 34, TTBR1_EL1=0x5000_0000)
    with pytest.raises(RegimeError, match="TCR_EL2"):
        regime_from_registers(held, True)
    with pytest.raises(RegimeError):
        root_pa(held, Regime(12, 48, 48, True, name="EL2&0"))


@pytest.mark.parametrize("missing", ["TCR_EL1", "SCTLR_EL1", "MAIR_EL1"])
def test_a_missing_register_is_named(missing: str) -> None:
    held = state(2 << 30 | 16 << 16)
    system = {name: value for name, value in held.system.items() if name != missing}
    with pytest.raises(RegimeError, match=missing):
        regime_from_registers(CpuState(0, held.x, 0, 0, EL1H, system), True)


def test_ttbr_without_asid_and_cnp() -> None:
    assert ttbr_base(0x0016_0000_4147_5001) == 0x4147_5000
    assert ttbr_base(0x4147_5000 | 0b1010 << 2, pa52=True) == 0x4147_5000 | 0b1010 << 48


POLICIES = {
    0b0001: "WT WA transient", 0b0010: "WT RA transient", 0b0011: "WT transient",
    0b0100: "NC",
    0b0101: "WB WA transient", 0b0110: "WB RA transient", 0b0111: "WB transient",
    0b1000: "WT no-allocate", 0b1001: "WT WA", 0b1010: "WT RA", 0b1011: "WT",
    0b1100: "WB no-allocate", 0b1101: "WB WA", 0b1110: "WB RA", 0b1111: "WB",
}  # fmt: skip
"""Half a MAIR byte of Normal memory -> its name (Arm ARM MAIR_EL1, encoding of oooo and iiii)."""
DEVICES = {
    0x00: "Device-nGnRnE", 0x04: "Device-nGnRE", 0x08: "Device-nGRE", 0x0C: "Device-GRE",
    0x01: "Device-nGnRnE XS=0", 0x05: "Device-nGnRE XS=0", 0x09: "Device-nGRE XS=0", 0x0D: "Device-GRE XS=0",
    0x40: "Normal NC XS=0", 0xA0: "Normal WT RA XS=0", 0xF0: "Normal Tagged WB",
}  # fmt: skip


@pytest.mark.parametrize("byte", range(256))
def test_every_memory_type(byte: int) -> None:
    outer, inner = POLICIES.get(byte >> 4), POLICIES.get(byte & 0xF)
    if byte in DEVICES:
        expected = DEVICES[byte]
    elif outer is None or inner is None:
        expected = f"reserved ({byte:#04x})"
    else:
        expected = f"Normal {outer}" if outer == inner else f"Normal outer {outer}, inner {inner}"
    assert mair_type_name(byte) == expected


def test_mair_of_4_17_has_normal_at_index_4() -> None:
    assert decode_mair(0xBBFF440C0400)[:6] == (
        *("Device-nGnRnE", "Device-nGnRE", "Device-GRE", "Normal NC"),
        *("Normal WB", "Normal WT"),
    )


def test_pstate_as_people_write_it() -> None:
    assert decode_pstate(0x604003C5).text == "EL1h nZCv DAIF PAN"
    assert decode_pstate(0x00000000).text == "EL0 nzcv daif"
    assert decode_pstate(0x00000004).text == "EL1t nzcv daif"
    assert decode_pstate(0x800000C9).text == "EL2h Nzcv daIF"
    assert decode_pstate(0x600001D0).text == "EL0 AArch32 nZCv dAIF"


PSTATE_BITS = {
    0: {"spsel": True}, 2: {"el": 1}, 3: {"el": 2}, 4: {"aarch32": True},
    6: {"daif": 1}, 7: {"daif": 2}, 8: {"daif": 4}, 9: {"daif": 8},
    12: {"flags": ("SSBS",)}, 20: {"flags": ("IL",)}, 21: {"flags": ("SS",)}, 22: {"flags": ("PAN",)},
    23: {"flags": ("UAO",)}, 24: {"flags": ("DIT",)}, 25: {"flags": ("TCO",)},
    28: {"nzcv": 1}, 29: {"nzcv": 2}, 30: {"nzcv": 4}, 31: {"nzcv": 8},
}  # fmt: skip


def changed(decoder: Callable[[int], object], bit: int) -> dict[str, object]:
    """The fields that one bit changes, as it is alone."""
    none, one = (dataclasses.asdict(decoder(value)) for value in (0, 1 << bit))  # type: ignore[call-overload]
    return {name: value for name, value in one.items() if none[name] != value}


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_pstate(bit: int) -> None:
    assert changed(decode_pstate, bit) == PSTATE_BITS.get(bit, {})


def test_bits_of_aarch32_that_mean_something_else_are_not_told() -> None:
    found = decode_pstate(0x0FE0_0210)
    assert (found.el, found.spsel, found.daif, found.flags) == (0, False, 0, ())


TCR_BITS: dict[int, dict[str, object]] = {
    **{n: {"t0sz": 1 << n} for n in range(6)},
    **{16 + n: {"t1sz": 1 << n} for n in range(6)},
    7: {"epd0": True}, 23: {"epd1": True}, 22: {"a1": True}, 36: {"asid16": True},
    12: {"sh0": 1}, 13: {"sh0": 2}, 28: {"sh1": 1}, 29: {"sh1": 2},
    14: {"granule0_bits": 16}, 15: {"granule0_bits": 14},
    30: {"granule1_bits": 14}, 31: {"granule1_bits": 12},
    **{32 + n: {"ips": 1 << n} for n in range(3)},
    37: {"tbi0": True}, 38: {"tbi1": True}, 39: {"ha": True}, 40: {"hd": True},
    41: {"hpd0": True}, 42: {"hpd1": True}, 55: {"e0pd0": True}, 56: {"e0pd1": True}, 59: {"ds": True},
}  # fmt: skip
SCTLR_BITS = {
    0: "m", 1: "a", 2: "c", 12: "i", 19: "wxn", 25: "ee",
}  # fmt: skip


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_tcr(bit: int) -> None:
    assert changed(decode_tcr, bit) == TCR_BITS.get(bit, {})


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_sctlr(bit: int) -> None:
    assert changed(decode_sctlr, bit) == ({SCTLR_BITS[bit]: True} if bit in SCTLR_BITS else {})


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_ttbr(bit: int) -> None:
    """Those of BADDR, and where they go in an address of 52 bits; the rest are ASID and CnP."""
    assert ttbr_base(1 << bit) == (1 << bit if 1 <= bit < 48 else 0)
    wide = 0 if bit < 2 or bit >= 48 else 1 << (bit + 46 if bit <= 5 else bit)
    assert ttbr_base(1 << bit, pa52=True) == wide


def test_halves() -> None:
    upper, lower = Regime(12, 48, 48, True), Regime(12, 48, 48, False, tbi=True)
    assert upper.contains(0xFFFF000000000000)
    assert not upper.contains(0xFFFE000000000000)
    assert lower.contains(0xAB00_7FFF_FFFF_F000)
    assert not lower.contains(0x0001_0000_0000_0000)


TCR_EL2_BITS: dict[int, dict[str, object]] = {
    **{n: {"t0sz": 1 << n} for n in range(6)},
    12: {"sh0": 1}, 13: {"sh0": 2}, 14: {"granule0_bits": 16}, 15: {"granule0_bits": 14},
    **{16 + n: {"ips": 1 << n} for n in range(3)},
    20: {"tbi0": True}, 21: {"ha": True}, 22: {"hd": True}, 24: {"hpd0": True}, 32: {"ds": True},
}  # fmt: skip
TCR2_BITS = {0: "pnch", 1: "pie", 2: "e0poe", 3: "poe", 4: "aie", 5: "d128"}


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_tcr_el2_and_of_tcr2(bit: int) -> None:
    assert changed(decode_tcr_el2, bit) == TCR_EL2_BITS.get(bit, {})
    assert changed(decode_tcr2, bit) == ({TCR2_BITS[bit]: True} if bit in TCR2_BITS else {})


TCR = 2 << 30 | 16 << 16 | 16
PIE_CPU = {"ID_AA64MMFR3_EL1": 0x1_1111, "PIR_EL1": 0xA5, "PIRE0_EL1": 0x5A}


def test_el2_has_registers_and_a_layout_of_its_own() -> None:
    """TTBR0_EL2 of a kernel at EL1 with KVM (nVHE): one half, and other places of PS, HA, HD, HPD."""
    more = {
        "TCR_EL2": 1 << 31 | 1 << 23 | 5 << 16 | 3 << 12 | 16 | 3 << 21 | 1 << 24,
        "SCTLR_EL2": 1 | 1 << 19,
    }
    more |= {"MAIR_EL2": 0xFF44, "TTBR0_EL2": 0x4321_0001, "TTBR0_EL1": 0x5000_0000}
    held = state(TCR, **more)
    found = regime_from_registers(held, False, "EL2")
    assert (found.granule_bits, found.va_bits, found.pa_bits, found.mair) == (12, 48, 48, 0xFF44)
    assert (found.ha, found.hd, found.hpd, found.wxn, found.mmu_on) == (True,) * 5
    assert (found.privileged, found.register("TTBR0"), root_pa(held, found)) == (
        "EL2",
        "TTBR0_EL2",
        0x4321_0000,
    )
    assert regime_from_registers(held, False).name == "EL1&0"
    with pytest.raises(RegimeError, match="no upper half"):
        regime_from_registers(held, True, "EL2")
    with pytest.raises(RegimeError, match="no upper half"):
        Regime(12, 48, 48, True, name="EL2")
    with pytest.raises(RegimeError, match="TCR_EL2"):
        regime_from_registers(state(TCR), False, "EL2")


def test_the_regime_in_which_a_cpu_runs() -> None:
    assert current_regime(state(0, el=2 << 2)) == "EL2"
    assert current_regime(state(0, el=2 << 2, HCR_EL2=1 << 34)) == "EL2&0"
    assert current_regime(state(0)) == current_regime(state(0, el=0)) == "EL1&0"
    assert current_regime(state(0, el=0, HCR_EL2=1 << 34 | 1 << 27)) == "EL2&0"


def test_permissions_are_indirect_where_tcr2_says_so() -> None:
    found = regime_from_registers(state(TCR, TCR2_EL1=2, **PIE_CPU), True)
    assert (found.pie, found.pir, found.pire0, found.hpd, found.doubt) == (True, 0xA5, 0x5A, True, "")
    off = regime_from_registers(state(TCR, TCR2_EL1=0, **PIE_CPU), True)
    assert (off.pie, off.pir, off.hpd, off.doubt) == (False, 0, False, "")
    el2 = {
        "TCR_EL2": 5 << 16 | 16,
        "SCTLR_EL2": 1,
        "MAIR_EL2": 0,
        "TCR2_EL2": 2,
        "PIR_EL2": 7,
        "PIRE0_EL2": 9,
    }
    alone = regime_from_registers(state(TCR, **el2), False, "EL2")
    assert (alone.pie, alone.pir, alone.pire0) == (True, 7, 0)


@pytest.mark.parametrize(
    ("more", "pie", "pir", "pire0"),
    [
        ({}, True, 0xA5, 0x5A),
        ({"HCRX_EL2": 1 << 14, "HCR_EL2": 0}, True, 0xA5, 0x5A),
        ({"HCRX_EL2": 0, "HCR_EL2": 0}, False, 0, 0),
        ({"HCRX_EL2": 0}, True, 0xA5, 0x5A),
        ({"SCR_EL3": 1 << 43 | 1 << 45}, True, 0xA5, 0x5A),
        ({"SCR_EL3": 1 << 43}, True, 0, 0),
        ({"SCR_EL3": 1 << 45}, False, 0, 0),
        ({"HCR_EL2": 3 << 42}, True, 0xA5, 0),
        ({"HCR_EL2": 1 << 42}, True, 0xA5, 0x5A),
    ],
)
def test_who_can_switch_tcr2_off(more: dict[str, int], pie: bool, pir: int, pire0: int) -> None:
    found = regime_from_registers(state(TCR, TCR2_EL1=2, **PIE_CPU, **more), True)
    assert (found.pie, found.pir, found.pire0) == (pie, pir, pire0)


def test_overlays_and_further_memory_types_of_tcr2() -> None:
    more = {"POR_EL1": 0x70, "POR_EL0": 0x71, "MAIR2_EL1": 0x44}
    found = regime_from_registers(state(TCR, TCR2_EL1=0x1D, **more), True)
    assert (found.poe, found.e0poe, found.aie, found.pnch, found.hpd) == (True,) * 5
    assert (found.por, found.por0, found.mair2, found.pie) == (0x70, 0x71, 0x44, False)
    with pytest.raises(RegimeError, match="D128"):
        regime_from_registers(state(TCR, TCR2_EL1=1 << 5), True)


@pytest.mark.parametrize(
    ("more", "doubt"),
    [
        ({"ID_AA64MMFR3_EL1": 0x100}, "permissions by the direct bits; TCR2_EL1 not readable"),
        ({"ID_AA64MMFR3_EL1": 0}, ""),
        ({"ID_AA64MMFR3_EL1": 0xF0FF}, ""),
        ({"ID_AA64MMFR2_EL1": 1 << 60}, "permissions by the direct bits; TCR2_EL1 not readable"),
        ({"ID_AA64MMFR2_EL1": 0}, ""),
        ({}, "permissions by the direct bits; TCR2_EL1 not readable"),
        ({"TCR2_EL1": 0}, ""),
        ({"TCR2_EL1": 2, "PIR_EL1": 1}, "TCR2_EL1=0x2, but not readable: PIRE0_EL1"),
        ({"TCR2_EL1": 0xC}, "TCR2_EL1=0xc, but not readable: POR_EL1, POR_EL0"),
    ],
)
def test_what_is_not_known_of_permissions_is_said(more: dict[str, int], doubt: str) -> None:
    assert regime_from_registers(state(TCR, **more), True).doubt == doubt


@pytest.mark.parametrize("hafdbs", range(4))
def test_controls_that_the_cpu_does_not_have_are_not_believed(hafdbs: int) -> None:
    """TCR_EL1.HA and .HD without FEAT_HAFDBS, .E0PD1 without FEAT_E0PD."""
    tcr = TCR | 3 << 39 | 1 << 56
    found = regime_from_registers(state(tcr, ID_AA64MMFR1_EL1=hafdbs, ID_AA64MMFR2_EL1=0), True)
    assert (found.ha, found.hd, found.e0pd) == (hafdbs >= 1, hafdbs >= 2, False)
    assert regime_from_registers(state(tcr, ID_AA64MMFR2_EL1=1 << 60), True).e0pd
