"""Where the guest stands in the rewrite: before, in the middle, after; not needed, and why."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from a64_machine import Machine
from builders import NG, snapshot_of
from kernels import TEXT_VA, image, opened, with_symbols
from kpti_words import code
from stopped_guest import IMAGE_PA, SWAPPER, SYMBOLS, TRAMP, TRAMP_VA, Guest

from ptinspect.arch.sysregs import CpuState
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import recognise
from ptinspect.linux.kpti.running_code import Flag, boot_cpu, flag_of, running_code
from ptinspect.linux.kpti.state import KptiState, kpti_state, state_from_tables
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.snapshot.fact_names import KERNEL_OFFSET
from ptinspect.tables.kinds import K_BLOCK, K_PAGE, K_TABLE, kinds

AT = 0x4_0510
ENTRY_PA = IMAGE_PA + AT
TEXT = [(AT - 4, struct.pack("<I", 1)), (AT, code("5.10"))]
SHARED = [(AT - 4, bytes(4)), (AT, code("5.10"))]
FORCED, USE_NG, COMMAND_LINE = 0x6_1000, 0x6_1008, 0x6_1010
VARIABLES = [
    ("__kpti_forced", TEXT_VA + FORCED, "d"),
    ("arm64_use_ng_mappings", TEXT_VA + USE_NG, "D"),
    ("saved_command_line", TEXT_VA + COMMAND_LINE, "D"),
    ("_sinittext", TEXT_VA + 0x2_0000, "T"),
    ("start_kernel", TEXT_VA + 0x2_0000, "T"),
    ("_einittext", TEXT_VA + 0x2_2000, "T"),
]


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    return opened(tmp_path / "Image", SYMBOLS, image(text=TEXT))


@pytest.fixture
def shared_flag(tmp_path: Path) -> KernelImage:
    """A kernel whose flag is 0 from the start, as from 6.18 on."""
    return opened(tmp_path / "Image", SYMBOLS, image(text=SHARED))


def judge(guest: Guest, kernel: KernelImage | None, *states: CpuState, **more: object) -> KptiState:
    view = guest.view(kernel, *states, **more)
    return kpti_state(view, snapshot_of(guest.memory, view.swapper().pa, guest.regime))


def mark(guest: Guest, which: Callable[[int], bool]) -> None:
    """Set bit 11 in all descriptors of the kinds that `which` accepts."""
    tables = snapshot_of(guest.memory, SWAPPER, guest.regime).tables
    for row in range(len(tables)):
        kind = kinds(tables.raw[row], int(tables.level[row]), guest.regime)
        for slot in np.flatnonzero(kind != 0).tolist():
            if which(int(kind[slot])):
                raw = int(tables.raw[row, slot]) | NG
                guest.memory.write(int(tables.pa[row]) + 8 * slot, raw.to_bytes(8, "little"))


def every(kind: int) -> bool:
    return kind in (K_TABLE, K_BLOCK, K_PAGE)


def leaves(kind: int) -> bool:
    return kind in (K_BLOCK, K_PAGE)


def set_flag(guest: Guest, value: int) -> None:
    guest.memory.write(ENTRY_PA - 4, struct.pack("<I", value))


def machine(guest: Guest) -> Iterator[tuple[int, CpuState]]:
    """Run the rewrite: offset from the entry and registers before each instruction."""
    running = Machine(guest.memory, guest.regime, ENTRY_PA, ttbr1=SWAPPER, x={0: 0, 1: 1, 2: SWAPPER})
    for pc in running.run():
        state = running.state()
        general = dict(enumerate(state.x))
        yield pc - ENTRY_PA, guest.cpu(pc=pc, x=general, **state.system)


def test_through_the_rewrite(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    seen: dict[int, KptiState] = {}
    for offset, state in machine(guest):
        table = offset != 0x108 or state.x[13] & 2
        if table and offset in (0x0, 0x34, 0x144, 0x108, 0x58, 0x70, 0x74, 0xA0) and offset not in seen:
            seen[offset] = judge(guest, kernel, state)
    assert {offset: found.state for offset, found in seen.items()} == {
        0x0: "before", 0x34: "before", 0x144: "in-progress", 0x108: "in-progress", 0x58: "in-progress",
        0x70: "after", 0x74: "after", 0xA0: "after",
    }  # fmt: skip
    assert all(found.algorithm == "mmu-off-post-order" for found in seen.values())
    assert [offset for offset, found in seen.items() if found.frontier] == [0x58, 0x144, 0x108]
    middle = seen[0x108]
    assert middle.frontier is not None
    assert (middle.frontier.va, middle.frontier.level, middle.frontier.source) == (
        TEXT_VA,
        2,
        "walk registers",
    )
    assert middle.doubts == ()
    assert "cpu 0 is at +0x108 of idmap_kpti_install_ng_mappings" in middle.reason
    assert "the marks in the tables agree" in middle.reason
    assert "TLB not flushed yet" in seen[0x70].reason
    assert "TLB not flushed yet" not in seen[0x74].reason
    done = judge(guest, kernel)
    assert (done.state, done.frontier) == ("after", None)
    assert done.reason.startswith("the rewrite has finished (its flag is 0); 162 of 162 leaves are nG, ")


def test_marks_that_contradict_the_registers(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    for offset, state in machine(guest):
        if offset == 0x108 and state.x[13] & 2:
            guest.tree.xor(guest.va(0x1_0000), 3, NG)
            found = judge(guest, kernel, state)
            break
    assert found.state == "in-progress"
    assert found.doubts == ("1 descriptor that the walk has passed not marked",)
    assert "; but 1 descriptor" in found.reason


def test_the_others_wait_in_the_function_too(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    kpti = recognise(kernel)
    waiting = guest.cpu(1, pc=ENTRY_PA + 0x190, TTBR1_EL1=0x4600_0000)
    entering = guest.cpu(2, pc=ENTRY_PA + 4, x={0: 2})
    boot = guest.cpu(0, pc=ENTRY_PA + 4)
    assert boot_cpu(guest.view(kernel, waiting, entering, guest.cpu(0)), kpti) is None
    assert boot_cpu(guest.view(kernel, waiting, entering, boot), kpti) == boot
    late = guest.cpu(0, pc=ENTRY_PA + 0x144, x={0: 2})
    assert boot_cpu(guest.view(kernel, waiting, late), kpti) == late, "w0 means something else by then"
    assert judge(guest, kernel, waiting, guest.cpu(0)).state == "before"


def test_before(kernel: KernelImage) -> None:
    found = judge(Guest(text=TEXT), kernel)
    assert (found.state, found.algorithm, found.frontier) == ("before", "mmu-off-post-order", None)
    assert found.reason == (
        "the rewrite has not begun (its flag is 1); it may turn out not to be needed; "
        "0 of 162 leaves are nG, 0 of 8 table descriptors are marked"
    )


def test_kaslr(kernel: KernelImage) -> None:
    guest = Guest(0x1000_0000, text=TEXT)
    mark(guest, leaves)
    found = judge(guest, kernel)
    assert found.state == "not-needed"
    assert found.reason.startswith(
        "mappings are nG from the start, so that nothing is rewritten (its flag is 1); "
        "KASLR is on (offset 0x10000000); "
    )
    set_flag(guest, 0)
    assert judge(guest, kernel).state == "after", "a kernel that marks no tables"


def test_some_mappings_are_ng_before_the_walk(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    guest.tree.xor(guest.va(0x1_0000), 3, NG)
    assert judge(guest, kernel).state == "before"


def test_user_code_runs_and_nothing_was_rewritten(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    found = judge(guest, kernel, guest.cpu(), guest.cpu(1, el=0, pc=0x40_0000))
    assert (found.state, found.reason[:45]) == ("not-needed", "cpu 1 runs user code, and nothing was rewritt")


def test_the_init_code_is_gone_and_nothing_was_rewritten(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    with_symbols(kernel, SYMBOLS + VARIABLES)
    assert judge(guest, kernel).state == "before"
    guest.tree.set(guest.va(0x2_0000), 3, 0)
    assert judge(guest, kernel).state == "before", "one page was lost"
    guest.tree.set(guest.va(0x2_1000), 3, 0)
    found = judge(guest, kernel)
    assert found.state == "not-needed"
    assert found.reason.startswith("the init code is gone, and nothing was rewritten (its flag is 1)")
    guest.tree.set(guest.va(0x1_F000), 3, 0)
    assert judge(guest, kernel).state == "before", "an entry was lost that held more than init code"


def test_hints(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    with_symbols(kernel, SYMBOLS + VARIABLES)
    guest.memory.write(IMAGE_PA + FORCED, struct.pack("<i", -1))
    guest.memory.write(IMAGE_PA + COMMAND_LINE, struct.pack("<Q", guest.va(0x6_2FF0)))
    guest.memory.write(
        IMAGE_PA + 0x6_2FF0, b"console=ttyAMA0 nokaslr kpti=off mitigations=auto xkpti=1\0kpti=2"
    )
    reason = judge(guest, kernel, guest.cpu(ID_AA64PFR0_EL1=1 << 60)).reason
    for hint in (
        "arm64_use_ng_mappings is false",
        "kpti is forced off (__kpti_forced)",
        "the command line says nokaslr kpti=off mitigations=auto;",
        "the CPU declares that it does not need KPTI (ID_AA64PFR0_EL1.CSV3)",
    ):
        assert hint in reason
    guest.memory.write(IMAGE_PA + FORCED, struct.pack("<i", 1))
    guest.memory.write(IMAGE_PA + USE_NG, b"\1")
    guest.memory.write(IMAGE_PA + COMMAND_LINE, struct.pack("<Q", 0xFFFF_8000_7777_0000))
    reason = judge(guest, kernel, guest.cpu(TCR_EL1=0x40_0034_B550_3510 | 1 << 56)).reason
    for hint in ("arm64_use_ng_mappings is true", "kpti is forced on", "FEAT_E0PD is in use"):
        assert hint in reason
    assert "command line" not in reason


def test_marks_without_an_end(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    mark(guest, every)
    found = judge(guest, kernel)
    assert found.state == "unknown"
    assert "tables are marked although the rewrite has not finished (its flag is 1)" in found.reason
    assert flag_of(guest.view(kernel), recognise(kernel)) == Flag(1, 1)


def test_without_a_kernel_file_the_tables_must_do() -> None:
    guest = Guest(text=TEXT)
    assert judge(guest, None).state == "before"
    assert judge(guest, None, guest.cpu(el=0, TTBR1_EL1=TRAMP, VBAR_EL1=TRAMP_VA)).state == "not-needed"
    mark(guest, every)
    found = judge(guest, None)
    assert (found.state, found.algorithm) == ("after", "")
    half = Guest(text=TEXT)
    mark(half, lambda kind: kind == K_TABLE)
    assert judge(half, None).state == "in-progress"


def test_the_file_of_another_kernel_tells_nothing(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    other = image(text=TEXT, seed=7)
    guest.memory.write(IMAGE_PA, other)
    view = guest.view(kernel)
    assert running_code(view) is None
    assert judge(guest, kernel).algorithm == "" and judge(guest, kernel).decision == "unknown"


def test_code_that_was_changed_in_memory_is_seen(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)

    def tracks(view: GuestView) -> bool:
        found = running_code(view)
        assert found is not None
        return found.tables == "marked"

    assert tracks(guest.view(kernel))
    guest.memory.write(ENTRY_PA + 0x15C, struct.pack("<I", 0x14000000 | (0x114 - 0x15C) // 4 & 0x3FFFFFF))
    assert not tracks(guest.view(kernel))
    guest.memory.write(ENTRY_PA, bytes(0x200))
    assert tracks(guest.view(kernel)), "what the file says is better than nothing"


def test_a_flag_that_is_0_from_the_start_proves_no_end(shared_flag: KernelImage) -> None:
    guest = Guest(text=SHARED)
    kpti = recognise(shared_flag)
    assert flag_of(guest.view(shared_flag), kpti) == Flag(0, 0)
    found = judge(guest, shared_flag)
    assert (found.state, found.decision) == ("before", "unknown")
    assert found.reason.startswith(
        "the rewrite has not begun (its flag is 0, as it is before the rewrite and after it); it may turn out"
    )
    user = judge(guest, shared_flag, guest.cpu(), guest.cpu(1, el=0, pc=0x40_0000))
    assert (user.state, user.reason[:22]) == ("not-needed", "cpu 1 runs user code, ")
    set_flag(guest, 1)  # the kernel sets it just before it is used, for splitting the linear map too
    assert judge(guest, shared_flag).state == "before"
    set_flag(guest, 0)
    mark(guest, leaves)
    assert judge(guest, shared_flag).state == "not-needed", "nG from the start"
    mark(guest, every)
    found = judge(guest, shared_flag)
    assert found.state == "after"
    assert found.reason.startswith("tables are marked, as by the rewrite (its flag is 0, as it is before")


def test_through_the_rewrite_with_a_flag_that_was_0(shared_flag: KernelImage) -> None:
    guest = Guest(text=SHARED)
    states = []
    set_flag(guest, 1)
    for offset, state in machine(guest):
        if offset in (0x34, 0x58, 0x70, 0xA0):
            found = judge(guest, shared_flag, state)
            if not states or states[-1] != (found.state, found.decision):
                states.append((found.state, found.decision))
    assert states == [("before", "on"), ("in-progress", "on"), ("after", "on")]
    assert judge(guest, shared_flag).state == "after"


def test_code_that_leaves_no_marks_and_a_flag_that_proves_nothing(tmp_path: Path) -> None:
    """What was nG from the start and what was rewritten differ by KASLR alone."""
    raw = bytearray(code("5.10"))
    for at, to in ((0xE0, 0x64), (0x120, 0xD4), (0x15C, 0x114)):
        raw[at : at + 4] = struct.pack("<I", 0x14000000 | (to - at) // 4 & 0x3FFFFFF)
    text = [(AT - 4, bytes(4)), (AT, bytes(raw))]
    kernel = opened(tmp_path / "Image", SYMBOLS, image(text=text))
    for offset, wanted in ((0, "after"), (0x1000_0000, "not-needed")):
        guest = Guest(offset, text=text)
        assert judge(guest, kernel).state == "before"
        mark(guest, leaves)
        found = judge(guest, kernel)
        assert found.state == wanted and not found.marks_tables


def test_a_kernel_without_the_function_never_rewrites(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    with_symbols(kernel, [s for s in SYMBOLS if "kpti" not in s[0]])
    found = judge(guest, kernel)
    assert found.state == "not-needed" and "it never rewrites" in found.reason


def test_what_is_left_out_when_all_is_written_is_a_doubt(kernel: KernelImage) -> None:
    guest = Guest(text=TEXT)
    for offset, state in machine(guest):
        if offset == 0x70:
            assert judge(guest, kernel, state).doubts == ()
            guest.tree.xor(guest.va(0x1_0000), 3, NG)
            found = judge(guest, kernel, state)
            break
    assert found.state == "after"
    assert found.doubts == ("1 descriptor that the walk has passed not marked",)


def test_a_snapshot_of_a_kernel_that_kaslr_moved_needs_no_file() -> None:
    guest = Guest(0x1000_0000, text=TEXT)
    mark(guest, leaves)
    snapshot = snapshot_of(guest.memory, SWAPPER, guest.regime)

    def noted(kernel: str, offset: str) -> str:
        meta = dataclasses.replace(snapshot.meta, kernel=kernel, extra={KERNEL_OFFSET: offset})
        return state_from_tables(dataclasses.replace(snapshot, meta=meta)).state

    assert noted("Linux version 5.10.0-32-arm64", "0x10000000") == "not-needed"
    assert noted("Linux version 5.10.0-32-arm64", "0x0") == "unknown", "code that leaves no marks"
    assert noted("Linux version 4.19.13", "0x10000000") == "unknown", "it rewrites all the same"
    assert noted("", "0x10000000") == "unknown"
    assert noted("Linux version 7.3.4", "0xffff800080000000") == "unknown", "linked at 0"
