"""Registers that are not what they seem: the banked stack pointers, and what nobody has written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import snapshot_of
from fakes import context, cpu, kernel_tree, run, text

from ptinspect.arch.regime import regime_from_registers, root_pa
from ptinspect.arch.sysregs import UNWRITTEN, CpuState, remarks
from ptinspect.errors import RegimeError, UserError
from ptinspect.snapshot.store import load, save

LIVE, EL0, EL1, EL2 = 0xFFFF_8000_1200_3F00, 0x7FFF_0000, 0xFFFF_8000_1300_3000, 0x4100_0000
BANKS = {"SP_EL0": EL0, "SP_EL1": EL1, "SP_EL2": EL2}


def state(pstate: int, **system: int) -> CpuState:
    return CpuState(0, (0,) * 31, LIVE, 0, pstate, system)


@pytest.mark.parametrize(
    ("pstate", "live"),
    [
        (0x3C0, "SP_EL0"),  # EL0t
        (0x3C4, "SP_EL0"),  # EL1t
        (0x3C5, "SP_EL1"),
        (0x3C8, "SP_EL0"),
        (0x3C9, "SP_EL2"),
        (0x1D0, ""),  # AArch32, user mode: its SP is none of them
    ],
)
def test_the_stack_pointer_in_use_is_not_the_banked_one(pstate: int, live: str) -> None:
    found = state(pstate, **BANKS)
    assert dict(found.system) == BANKS | ({live: LIVE} if live else {})
    assert ("in use" in remarks(found).get(live, "")) is bool(live)


def test_it_follows_sp() -> None:
    """Where SP is put right, as in the overflow test of a vector, so is its other name."""
    assert replace(state(0x3C5, **BANKS), sp=0x1000).system["SP_EL1"] == 0x1000


def test_a_stub_without_the_bank_is_given_none() -> None:
    assert "SP_EL1" not in state(0x3C5, SP_EL0=1).system


def test_what_was_never_written_is_no_data() -> None:
    found = state(0x3C5, TTBR1_EL1=UNWRITTEN, TTBR0_EL1=0x4000_0000, MAIR_EL1=UNWRITTEN)
    assert dict(found.system) == {"TTBR0_EL1": 0x4000_0000}
    assert found.unwritten == ("TTBR1_EL1", "MAIR_EL1")
    assert replace(found, sp=0).unwritten == found.unwritten


def test_a_walk_does_not_begin_at_it() -> None:
    tree = kernel_tree()
    for name in ("MAIR_EL1", "TTBR1_EL1"):
        early = cpu(tree, **{name: UNWRITTEN})
        with pytest.raises(RegimeError, match=f"{name} was never written"):
            root_pa(early, regime_from_registers(early, True))


def test_without_the_mmu_the_memory_types_do_not_matter() -> None:
    """A guest of KVM at reset: its memory is read at physical addresses all the same."""
    tree = kernel_tree()
    early = cpu(tree, MAIR_EL1=UNWRITTEN, TTBR1_EL1=UNWRITTEN, SCTLR_EL1=0)
    assert not regime_from_registers(early, False).mmu_on


def test_commands_say_so() -> None:
    tree = kernel_tree()
    ctx = context(tree)
    session = ctx.guest.stopped
    early = cpu(tree, TTBR1_EL1=UNWRITTEN, SP_EL1=EL1, SP_EL0=EL0, ELR_EL1=1, ESR_EL1=2)
    session.cpus = [early]  # type: ignore[attr-defined]
    report = run(ctx, "regs")
    assert "TTBR1_EL1" not in report.result["registers"]
    assert report.result["registers"]["SP_EL1"] == hex(early.sp)
    assert report.result["remarks"]["TTBR1_EL1"] == "never written"
    assert "ELR_EL1, ESR_EL1: of the last exception, which may be over" in text(report)
    assert run(ctx, "regs sp_el1").result["remarks"] == {"SP_EL1": remarks(early)["SP_EL1"]}
    for line in ("regs TTBR1_EL1", "print $ttbr1", "walk $TTBR1_EL1"):
        with pytest.raises(UserError, match="was never written"):
            run(ctx, line)
    with pytest.raises(RegimeError, match="TTBR1_EL1 was never written"):
        run(ctx, "walk 0xffff800010000000 --root ttbr1")
    report = run(ctx, "regime")
    assert report.result["ttbr1"]["raw"] is None
    assert "never written: TTBR1_EL1" in text(report)


def test_every_name_that_means_nothing_is_told() -> None:
    ctx = context(kernel_tree())
    ctx.guest.stopped.stub = {"PAR_EL1": 0x807, "PMCR_EL0": UNWRITTEN}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^no register \$foo; no register \$x31$"):
        run(ctx, "regs x0 foo par_el1 x31")
    assert run(ctx, "regs x0 par_el1").result["registers"] == {"x0": "0x0", "par_el1": "0x807"}
    with pytest.raises(UserError, match="PMCR_EL0 was never written"):
        run(ctx, "regs PMCR_EL0")


def test_gdb_s_own_answer_is_told_apart_from_data() -> None:
    ctx = context(kernel_tree())
    shown = f"FAR_EL1        {UNWRITTEN:#x}  {UNWRITTEN}\nESR_EL1        0x0  0\n"
    ctx.guest.stopped.gdb_command = lambda line, timeout=0.0: shown  # type: ignore[method-assign]
    report = run(ctx, "gdb info registers FAR_EL1 ESR_EL1")
    assert "FAR_EL1: never written" in text(report) and "ESR_EL1: never" not in text(report)
    ctx.guest.stopped.gdb_command = lambda line, timeout=0.0: f"$1 = {UNWRITTEN}\n"  # type: ignore[method-assign]
    assert "$1: never written" in text(run(ctx, "gdb print $FAR_EL1"))


def test_a_snapshot_keeps_what_was_never_written(tmp_path: object) -> None:
    tree = kernel_tree()
    early = cpu(tree, TTBR0_EL1=UNWRITTEN, SP_EL1=EL1)
    before = replace(snapshot_of(tree.memory, tree.root, tree.regime), cpus=(early,))
    path = tmp_path / "a.pts"  # type: ignore[operator]
    save(before, path)
    assert load(path).cpus == (early,)
