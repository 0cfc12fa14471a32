"""`kpti run` waits for the kernel: how often it looks, and what it takes for its place."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import TreeBuilder
from kernels import TEXT_VA, opened
from scripted import Scripted
from stopped_guest import IMAGE_PA, SYMBOLS, Guest

from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import TargetTimeout
from ptinspect.guest.breakpoints.kernel_place import LOOK_SECONDS, SLICE_SECONDS
from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.linux.image.image import KernelImage

FIRST = TEXT_VA + 0x2_0000
ANCHOR = TEXT_VA + 0x4_0000
MORE = [("start_kernel", FIRST, "T"), ("idmap_cpu_replace_ttbr1", ANCHOR, "T")]
MOVED = 0x1000_0000
WHERE = 0x4C23_0000
BOOT = 0x4700_0000
FIRMWARE = {"TTBR1_EL1": 0, "TTBR0_EL1": 0x47FF_F000, "VBAR_EL1": 0x4800}


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    return opened(tmp_path / "Image", SYMBOLS + MORE)


def runner(
    monkeypatch: pytest.MonkeyPatch, kernel: KernelImage, session: Scripted
) -> tuple[Runner, Context, Scripted]:
    monkeypatch.setattr("ptinspect.linux.kpti.code.recognise", lambda kernel: SimpleNamespace(algorithm=""))
    ctx = Context(build_registry())
    fake: Any = session
    ctx.guest.session, ctx.guest._kernel = fake, kernel
    return Runner(ctx.guest, 60), ctx, session


def moved_by_a_firmware() -> tuple[Guest, CpuState, CpuState, CpuState]:
    """The firmware, the kernel where it is linked, the kernel where it stays."""
    guest = Guest(MOVED, image_pa=WHERE)
    early = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4710_0000, root=BOOT)
    early.map(TEXT_VA, WHERE, size=0x10_0000)
    firmware = guest.cpu(pc=0x47F0_0000, **FIRMWARE)
    linked = guest.cpu(pc=TEXT_VA + 0x1_0100, TTBR1_EL1=BOOT, VBAR_EL1=TEXT_VA + 0x1_0800)
    return guest, firmware, linked, guest.cpu()


def test_a_kernel_that_moves_itself_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, kernel: KernelImage
) -> None:
    guest, firmware, linked, stays = moved_by_a_firmware()
    script = [(firmware, None), (firmware, None), (linked, None), (stays, None)]
    run, ctx, session = runner(monkeypatch, kernel, Scripted(guest.memory, script))
    run.place_kernel()
    assert ctx.guest.view.kaslr_offset == MOVED and ctx.guest.view.image_pa == WHERE
    looks = [(addresses, seconds) for addresses, seconds in session.asked]
    assert looks[0] == ([FIRST], LOOK_SECONDS) == looks[1]
    assert sorted(looks[2][0]) == [WHERE + ANCHOR - TEXT_VA, FIRST]


def test_the_first_function_is_enough_without_kaslr(
    monkeypatch: pytest.MonkeyPatch, kernel: KernelImage
) -> None:
    guest, firmware, linked, _ = moved_by_a_firmware()
    script = [(firmware, None), (linked, FIRST)]
    run, ctx, _ = runner(monkeypatch, kernel, Scripted(guest.memory, script))
    run.place_kernel()
    assert ctx.guest.view.kaslr_offset == 0
    assert run.stops == [("start_kernel", FIRST)]


def test_direct_boots_stop_at_the_anchor(monkeypatch: pytest.MonkeyPatch, kernel: KernelImage) -> None:
    guest = Guest(MOVED)
    early = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4710_0000, root=BOOT)
    early.map(guest.va(0), IMAGE_PA, size=0x10_0000)
    anchor = IMAGE_PA + ANCHOR - TEXT_VA
    reset = guest.cpu(pc=0x4000_0000, TTBR1_EL1=0, TCR_EL1=0, SCTLR_EL1=0, VBAR_EL1=0, TTBR0_EL1=0)
    at = guest.cpu(pc=anchor, TTBR1_EL1=BOOT, VBAR_EL1=guest.va(0x1_0800))
    run, ctx, session = runner(monkeypatch, kernel, Scripted(guest.memory, [(reset, None), (at, anchor)]))
    run.place_kernel()
    assert ctx.guest.view.kaslr_offset == MOVED
    assert [(sorted(at), seconds) for at, seconds in session.asked] == [([anchor, FIRST], SLICE_SECONDS)]
    assert run.stops == [("idmap_cpu_replace_ttbr1", anchor)]


def test_a_kernel_that_does_not_begin_is_shown_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, kernel: KernelImage
) -> None:
    """As one that the CPU's granules do not suit, which stays in head.S."""
    guest = Guest()
    parked = guest.cpu(pc=IMAGE_PA + 0x1_0840, TTBR1_EL1=0, TCR_EL1=0, SCTLR_EL1=0, VBAR_EL1=0)
    run, _, _ = runner(monkeypatch, kernel, Scripted(guest.memory, [(parked, None), (parked, None)]))
    run.deadline = time.monotonic() + 5
    with pytest.raises(TargetTimeout, match=r"in time: cpu 0 is at pa:0x40210840 \(vectors\+0x40\)"):
        run.place_kernel()
