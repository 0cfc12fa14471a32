"""Which regime a root is used by, what its registers hold, and what is said of permissions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import AF, SH, UXN, TreeBuilder, regime_4k
from fakes import KERNEL, TCR_48, FakeSession, context, kernel_tree, run, text

from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework.context import Context
from ptinspect.errors import RegimeError, UserError

EL2_VA, RODATA = 0x8000_1000, 0x4030_0000
READ_ONLY_HYP = 3 << 6 | UXN | SH | AF
"""Read-only data as KVM maps it for EL2: AP[2] and XN; AP[1] is RES1 there."""
GCS_RO = 0x0040_0000_5000_1C47
"""A leaf of Linux 7.2 on a CPU with FEAT_S1PIE: a shadow stack that may be read at EL0 only."""
PIR, PIRE0 = 0xCC88_0E0A_C080_0000, 0x5010_9080_7032_0000
"""PIR_EL1 and PIRE0_EL1 as Linux 7.2 sets them."""


def guest(**registers: int) -> tuple[Context, TreeBuilder, TreeBuilder]:
    """A kernel at EL1 with a hypervisor's table beside its own."""
    tree = kernel_tree()
    hyp = TreeBuilder(replace(regime_4k(48), upper=False), memory=tree.memory, tables_at=0x4600_0000)
    hyp.map(EL2_VA, RODATA, attributes=READ_ONLY_HYP)
    hyp.map(EL2_VA + 0x1000, RODATA + 0x1000, attributes=1 << 6 | SH | AF)
    ctx = context(tree)
    system = {
        "TCR_EL2": 16 | 5 << 16,
        "SCTLR_EL2": 1,
        "MAIR_EL2": 0xFF,
        "HCR_EL2": 0,
        "TTBR0_EL2": hyp.root | 1,
    }
    change(ctx, **{**system, **registers})
    return ctx, tree, hyp


def change(ctx: Context, pstate: int | None = None, **registers: int) -> None:
    session: Any = ctx.guest.session
    assert isinstance(session, FakeSession)
    state: CpuState = session.cpus[0]
    system = {**state.system, **registers}
    session.cpus[0] = replace(state, system=system, pstate=state.pstate if pstate is None else pstate)


@pytest.mark.parametrize("root", ["ttbr0_el2", "TTBR0_EL2", "address", "$ttbr0_el2", "--regime"])
def test_a_table_of_el2_has_the_rules_of_el2(root: str) -> None:
    """Read-only data of EL2 was told as `EL1 r-x, EL0 r--` in the region `user`."""
    ctx, _, hyp = guest()
    if root == "--regime":
        change(ctx, TTBR0_EL2=0)
    where = {"address": f"pa:{hyp.root:#x}", "--regime": f"pa:{hyp.root:#x} --regime el2"}.get(root, root)
    report = run(ctx, f"walk {EL2_VA:#x} --root {where}")
    found = report.result
    assert (found["outcome"], found["pa"], found["regime"], found["region"]) == (
        "mapped",
        hex(RODATA),
        "EL2",
        "EL2",
    )
    assert (found["permissions"]["el1"], found["permissions"]["el0"]) == ("r--", "---")
    assert found["permissions"]["privileged"] == "EL2"
    said = text(report)
    assert "EL2 r--" in said and "EL0 r" not in said and "EL1" not in said.split("mapped to")[1]
    assert run(ctx, f"walk {EL2_VA + 0x1000:#x} --root {where}").result["permissions"]["el1"] == "rwx"


def test_a_map_by_address_takes_the_half_and_the_regime_of_the_register_that_holds_it() -> None:
    ctx, tree, hyp = guest()
    runs = run(ctx, f"map --root pa:{hyp.root:#x}").result["runs"]
    assert [r["permissions"]["el1"] for r in runs] == ["r--", "rwx"]
    assert runs[0]["va_start"] == hex(EL2_VA)
    head = next(line for line in text(run(ctx, "map --root ttbr0_el2")).splitlines() if "leaves" in line)
    assert "EL2" in head and "EL0" not in head and "EL1" not in head
    assert int(run(ctx, f"map --root pa:{tree.root:#x}").result["runs"][0]["va_start"], 16) >> 63
    change(ctx, TTBR0_EL1=hyp.root, TTBR0_EL2=0)
    lower = run(ctx, f"map --root pa:{hyp.root:#x}").result
    assert lower["runs"][0]["va_start"] == hex(EL2_VA)
    assert "as in TTBR0_EL1 of cpu 0" in lower["root"]["provenance"]
    assert lower["runs"][0]["permissions"]["privileged"] == "EL1"
    assert (
        run(ctx, f"map --root pa:{hyp.root:#x} --regime el2").result["runs"][0]["permissions"]["el1"] == "r--"
    )


def test_a_capture_keeps_its_regime() -> None:
    ctx, _, _ = guest()
    run(ctx, "snap hyp --root ttbr0_el2")
    found = run(ctx, f"walk {EL2_VA:#x} --snap hyp").result
    assert (found["regime"], found["permissions"]["el1"], found["region"]) == ("EL2", "r--", "EL2")
    with pytest.raises(UserError, match="rules of EL2"):
        run(ctx, f"walk {EL2_VA:#x} --snap hyp --regime el1")


def test_a_cpu_at_el2_uses_its_own_table_for_lower_addresses() -> None:
    ctx, _, _ = guest()
    change(ctx, pstate=0x3C9)
    found = run(ctx, f"walk {EL2_VA:#x}").result
    assert (found["regime"], found["root"]["provenance"]) == ("EL2", "TTBR0_EL2 of cpu 0")
    assert run(ctx, f"walk {KERNEL:#x}").result["regime"] == "EL1&0"
    assert run(ctx, f"walk {EL2_VA:#x} --root ttbr0_el1").result["regime"] == "EL1&0"


def test_what_el2_can_write_to_and_execute_is_found() -> None:
    ctx, _, hyp = guest()
    found = run(ctx, f"check --root pa:{hyp.root:#x}").result["findings"]
    assert [(f["rule"], f["va_start"]) for f in found] == [("writable-executable", hex(EL2_VA + 0x1000))]
    assert "EL2 may write to it and execute it" in found[0]["evidence"]


def test_with_vhe_the_registers_of_el2_are_the_kernels() -> None:
    ctx, tree, hyp = guest()
    vhe = {"HCR_EL2": 1 << 34 | 1 << 27, "TCR_EL2": TCR_48, "TTBR1_EL2": tree.root, "TTBR1_EL1": 0x4700_0000}
    change(ctx, pstate=0x3C9, **vhe)
    found = run(ctx, f"walk {KERNEL:#x} --root ttbr1_el2").result
    assert (found["regime"], found["permissions"]["privileged"]) == ("EL2&0", "EL2")
    assert "EL2 rw-, EL0 ---" in text(run(ctx, f"walk {KERNEL:#x} --root ttbr1_el2"))
    lower = run(ctx, f"walk {EL2_VA:#x} --root pa:{hyp.root:#x}").result
    assert (lower["regime"], lower["permissions"]["el0"]) == ("EL2&0", "r--")
    assert run(ctx, "regime").result["el2"] is None


def test_what_el2_does_not_have_is_refused() -> None:
    ctx, _, hyp = guest()
    with pytest.raises(RegimeError, match="no upper half"):
        run(ctx, "map --root ttbr1_el2")
    with pytest.raises(UserError, match="EL2 has a lower half only"):
        run(ctx, f"walk {KERNEL:#x} --root pa:{hyp.root:#x} --regime el2")
    with pytest.raises(UserError, match="--regime is for a root given as an address"):
        run(ctx, f"walk {EL2_VA:#x} --root ttbr0_el2 --regime el2")
    with pytest.raises(RegimeError, match="TCR_EL2"):
        run(context(kernel_tree()), "map --root ttbr0_el2")


def test_the_regime_of_el2_is_shown_beside_the_kernels() -> None:
    ctx, _, hyp = guest(TCR_EL2=16 | 5 << 16 | 1 << 24)
    report = run(ctx, "regime")
    found = report.result["el2"]
    assert (found["register"], found["regime"], found["root_pa"]) == ("TTBR0_EL2", "EL2", hex(hyp.root))
    assert (found["hpd"], found["pa_bits"], found["mmu_on"]) == (True, 48, True)
    assert max(len(line) for line in text(report).splitlines()) <= 80


def test_all_attributes_of_mair_are_listed() -> None:
    """Linux keeps Device-nGnRnE, whose byte is 0x00, at index 3 (to v5.13: 0)."""
    ctx, _, _ = guest(MAIR_EL1=0x04_0000_44FF)
    said = text(run(ctx, "regime")).splitlines()
    rows = [line.split() for line in said[said.index(next(s for s in said if "MAIR" in s)) :]]
    types = {row[0]: row[2] for row in rows if len(row) >= 3 and row[0].isdigit()}
    assert types == {str(n): "Device-nGnRnE" for n in (2, 3, 5, 6, 7)} | {
        **{"0": "Normal", "1": "Normal", "4": "Device-nGnRE"}
    }
    change(ctx, MAIR_EL1=0)
    assert "nothing is set up" in text(run(ctx, "regime"))


def test_ttbr0_says_what_it_holds_by_evidence() -> None:
    ctx, tree, _ = guest()
    empty = tree.new_table()
    tree.memory.write(empty, bytes(4096))
    change(ctx, TTBR0_EL1=empty)
    report = run(ctx, "regime")
    assert report.result["ttbr0"]["holds"] == "nothing"
    assert "no entry is valid" in report.result["ttbr0"]["holds_reason"]
    assert "user" not in text(report) and "TTBR0_EL1 holds nothing: no entry is valid" in text(report)
    tree.memory.write(empty, (0x4700_0003).to_bytes(8, "little"))
    ctx.guest.forget_stop()
    assert run(ctx, "regime").result["ttbr0"]["holds"] == ""


def indirect(**more: int) -> tuple[Context, TreeBuilder]:
    ctx, tree, _ = guest(TCR2_EL1=2, PIR_EL1=PIR, PIRE0_EL1=PIRE0, ID_AA64MMFR3_EL1=0x1_1111, **more)
    lower = TreeBuilder(replace(regime_4k(48), upper=False), memory=tree.memory, tables_at=0x4700_0000)
    lower.map(0x1000, GCS_RO & 0xFFFF_F000, attributes=GCS_RO & ~0xFFFF_F003)
    lower.map(0x2000, 0x5000_2000, attributes=(GCS_RO | 1 << 51) & ~0xFFFF_F003)
    change(ctx, TTBR0_EL1=lower.root, HCRX_EL2=1 << 14)
    return ctx, lower


def test_indirect_permissions_are_walked_mapped_captured_and_told() -> None:
    """A shadow stack was told as `EL1 rw-`, though a load from EL1 faults (ESR 0x9600000f)."""
    ctx, _ = indirect()
    report = run(ctx, "walk 0x1000")
    assert report.result["permissions"].items() >= {"el1": "---", "el0": "r--", "gcs": []}.items()
    assert report.result["steps"][-1]["attributes"]["pi_index"] == 9
    assert f"indirect permissions: PIR_EL1 {PIR:#x}, PIRE0_EL1 {PIRE0:#x}" in text(report)
    assert run(ctx, "walk 0x2000").result["permissions"]["gcs"] == ["EL0"]
    run(ctx, "snap pie --root ttbr0")
    for where in ("--root ttbr0", "--snap pie"):
        assert run(ctx, f"map --el1 r {where}").result["runs"] == []
        runs = run(ctx, f"map --el0 r --el1-not r {where}").result["runs"]
        assert [(r["va_start"], r["permissions"]["gcs"]) for r in runs] == [
            ("0x1000", []),
            ("0x2000", ["EL0"]),
        ]
        assert "r-- GCS" in text(run(ctx, f"map {where}"))
    regs = run(ctx, "regs TCR2_EL1 PIR_EL1 PIRE0_EL1 --snap pie").result["registers"]
    assert [int(str(value), 16) for value in regs.values()] == [2, PIR, PIRE0]
    regime = run(ctx, "regime").result
    assert (regime["tcr2"], regime["pir"], regime["pire0"]) == ("0x2", hex(PIR), hex(PIRE0))
    assert regime["ttbr0"]["indirect"] is True


def test_what_is_not_readable_is_said_where_permissions_are() -> None:
    ctx, _ = indirect()
    session: Any = ctx.guest.session
    system = {n: v for n, v in session.cpus[0].system.items() if n != "TCR2_EL1"}
    session.cpus[0] = replace(session.cpus[0], system=system)
    doubt = "permissions by the direct bits; TCR2_EL1 not readable"
    for line in ("walk 0x1000", "map --root ttbr0", "regime", "decode 0x40000050001c47 --level 3"):
        assert doubt in text(run(ctx, line)), line
    assert run(ctx, "walk 0x1000").result["doubt"] == doubt
    assert run(ctx, "snap a").result["regime"]["doubt"] == doubt


def test_decode_says_which_reading_it_is_and_takes_the_other() -> None:
    line = f"decode {GCS_RO:#x} --level 3"
    bare = run(context(), line)
    assert bare.result["permissions"]["el1"] == "rw-" and bare.result["regime"]["indirect"] is False
    assert "direct bits" in bare.result["regime"]["doubt"] and "direct bits" in text(bare)
    found = run(context(), f"{line} --pir {PIR:#x} --pire0 {PIRE0:#x}").result
    assert (found["permissions"]["el1"], found["permissions"]["el0"]) == ("---", "r--")
    assert (found["regime"]["indirect"], found["regime"]["doubt"]) == (True, "")
    live, _ = indirect()
    assert run(live, line).result["permissions"]["el1"] == "---"
    el2 = run(context(), f"decode {RODATA | READ_ONLY_HYP | 3:#x} --level 3 --regime el2").result
    assert (el2["permissions"]["el1"], el2["permissions"]["privileged"]) == ("r--", "EL2")
