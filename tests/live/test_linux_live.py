"""Real kernels: their files, where they run, and the rewrite at single instructions on the boot CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from session import NEWER, Live, launched, need_guest

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import recognise
from ptinspect.linux.kpti.marks import reached
from ptinspect.linux.kpti.position import agrees, position
from ptinspect.linux.kpti.state import kpti_state
from ptinspect.snapshot.model import Meta, Snapshot
from ptinspect.tables.capture import capture
from ptinspect.tables.walk import walk

GUESTS = ("5.10-cloud", "5.10", "6.1-cloud", "6.12-cloud", "6.12-16k", "6.18-cloud", "7.3-cloud")
SECONDS = 300.0


@pytest.fixture(scope="module", params=GUESTS)
def kernel(request: pytest.FixtureRequest) -> KernelImage:
    return KernelImage.open(need_guest(request.param).kernel)


def test_symbols_types_and_places(kernel: KernelImage) -> None:
    assert len(kernel.symbols) > 30_000
    assert kernel.symbols_missing == ""
    assert kernel.text_va % (2 << 20) == 0
    assert kernel.nearest(kernel.lookup("vectors") + 4) == ("vectors", 4)
    assert kernel.lookup("vectors") % 0x800 == 0
    assert kernel.banner.startswith("Linux version ")
    assert kernel.types.size("task_struct") > 1000
    assert kernel.types.field("pt_regs.regs") == (0, 31 * 8)
    assert kernel.types.offset("task_struct.thread.cpu_context.sp") > 0
    with pytest.raises(KernelFileError, match="is a bit field"):
        kernel.types.offset("task_struct.sched_reset_on_fork")


def test_the_rewrite_is_recognised_with_symbols_and_without(kernel: KernelImage, tmp_path: Path) -> None:
    found = recognise(kernel)
    assert found.tables == "marked" and not found.toggles
    near = kernel.nearest(found.entry_va + found.points["secondary"])
    assert near == ("__idmap_kpti_secondary", 0)
    (tmp_path / "nameless").symlink_to(kernel.path)
    nameless = KernelImage.open(tmp_path / "nameless")
    nameless.__dict__["_table"] = (type(kernel.table)((), kernel.table.addresses[:0], ""), "taken away")
    again = recognise(nameless)
    assert again.entry_va + kernel.text_va == found.entry_va
    assert (again.levels, again.points) == (found.levels, found.points)


def test_symbols_of_a_vmlinux_are_those_of_its_image() -> None:
    guest = need_guest("5.10-cloud-dbg")
    assert guest.vmlinux is not None
    image, full = KernelImage.open(guest.kernel), KernelImage.open(guest.vmlinux)
    assert (image.text_va, image.size, image.banner) == (full.text_va, full.size, full.banner)
    lost = [
        n
        for n, found in image.symbols.items()
        if n in full.symbols and not set(found) <= set(full.symbols[n])
    ]
    assert lost == []
    assert full.lookup("do_pgd") == recognise(full).entry_va + recognise(full).levels[0].begin
    start, length = image.code_range
    assert image.text_at(image.text_va + start, length) == full.text_at(full.text_va + start, length)
    for path in ("task_struct.stack", "task_struct.comm", "thread_struct.cpu_context.sp"):
        assert image.types.field(path) == full.types.field(path)


CASES = [
    ("5.10-cloud", "--memory 512"),
    ("5.10-cloud", "--memory 512 --smp 2"),
    ("6.1-cloud", "--memory 512"),
    ("6.12-cloud", "--memory 512 --cpu cortex-a72 --smp 2"),
    ("6.12-cloud", "--memory 512 --cpu max"),
    ("6.12-16k", "--memory 1024 --cpu max"),
    ("7.3-cloud", f"--memory 512 --cpu max {NEWER}"),
]


def look(live: Live) -> tuple[str, list[str], Snapshot]:
    """Judge this stop: the phase, what contradicts it, the tables."""
    view, memory = live.ctx.guest.view, live.ctx.guest.stopped.memory
    root, regime = view.swapper(), view.regime
    tables, _ = capture(memory, root.pa, regime)
    snapshot = Snapshot("x", root, regime, tables, view.states, view.ram, Meta("", ""))
    assert view.image is not None
    code = recognise(view.image)
    boot = next(state for state in view.states if state.cpu == 0)
    where = position(boot, code, regime, memory)
    doubts = agrees(snapshot, code.algorithm, where)
    if where.frontier is not None:
        here = where.frontier
        steps = walk(memory, here.va, root.pa, regime).steps
        if here.descriptor_pa not in [step.descriptor_pa for step in steps if step.level == here.level]:
            doubts.append(f"the descriptor of {here.va:#x} is not at {here.descriptor_pa}")
        if reached(snapshot, code.algorithm).gaps:
            doubts.append("gaps")
    return where.phase, doubts, snapshot


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def at_entry(request: pytest.FixtureRequest) -> Any:
    """A guest whose boot CPU stands at the entry of the rewrite."""
    guest, options = request.param
    with launched(guest, options) as live:
        session, image = live.ctx.guest.stopped, live.ctx.guest.kernel
        assert image is not None
        entry = live.ctx.guest.view.pa_of_link(recognise(image).entry_va)
        while True:
            stop = session.run_until([entry], SECONDS)
            assert stop.pc == entry
            if session.cpu_state(session.current_cpu).x[0] & 0xFFFF_FFFF == 0:
                break
        yield live


def test_registers_and_marks_agree_at_single_instructions(at_entry: Live) -> None:
    session, ctx = at_entry.ctx.guest.stopped, at_entry.ctx
    image = ctx.guest.kernel
    assert image is not None
    code = recognise(image)
    entry = ctx.guest.view.pa_of_link(code.entry_va)
    levels = code.levels_of(ctx.guest.view.regime)
    assert look(at_entry)[:2] == ("before", [])
    stops = [code.points["before_first_write"], levels[-1].store, levels[-1].closing + 4, levels[-2].store]
    for offset in stops:
        assert offset is not None
        session.run_until([entry + offset], SECONDS)
        for _ in range(8):
            phase, doubts, _ = look(at_entry)
            assert doubts == []
            assert phase == ("walking" if offset != stops[0] else phase)
            session.step_instructions(1, 0)
    states = []
    for name in ("after_writes", "return"):
        session.run_until([entry + code.points[name]], SECONDS)
        phase, doubts, snapshot = look(at_entry)
        assert (phase, doubts) == ("done", [])
        marks = reached(snapshot, code.algorithm)
        assert marks.frontier is None
        states.append(kpti_state(ctx.guest.view, snapshot).state)
    assert states == ["after", "after"]
