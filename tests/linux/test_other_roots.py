"""Root tables besides the kernel's own, proved by what they map."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import KERNEL_TEXT, TreeBuilder, regime_4k
from kernels import TEXT_VA, opened
from stopped_guest import IMAGE_PA, SWAPPER, SYMBOLS, TRAMP, Guest

from ptinspect.errors import GuestError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running import other_roots
from ptinspect.linux.running.other_roots import identity_map, task_tables, trampoline
from ptinspect.linux.running.tasks import Task

MORE = [
    ("tramp_vectors", TEXT_VA + 0x3_0000, "t"),
    ("__idmap_text_start", TEXT_VA + 0x4_0000, "T"),
    ("__idmap_text_end", TEXT_VA + 0x4_1800, "T"),
]
IDMAP = SWAPPER - 0x3000


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    return opened(tmp_path / "Image", SYMBOLS + MORE)


def test_the_trampoline_is_told_by_its_code(kernel: KernelImage) -> None:
    guest = Guest(0x1000_0000)
    found = trampoline(guest.view(kernel))
    assert (found.root.pa, found.root.provenance) == (TRAMP, "2 pages below swapper_pg_dir, one entry")
    other = Guest(0x1000_0000)
    other.memory.write(TRAMP, bytes(4096))
    one = TreeBuilder(other.regime, memory=other.memory, tables_at=0x44A0_0000, root=SWAPPER - 0x1000)
    one.map(0xFFFF_8000_4000_0000, IMAGE_PA + 0x1_0000, size=0x3_0000, attributes=KERNEL_TEXT)
    with pytest.raises(GuestError, match="no trampoline table was found"):
        trampoline(other.view(kernel))


def test_the_identity_map_maps_all_of_its_text(kernel: KernelImage) -> None:
    guest = Guest()
    lower = regime_4k(upper=False)
    tree = TreeBuilder(lower, memory=guest.memory, tables_at=0x44B0_0000, root=IDMAP)
    tree.map(IMAGE_PA + 0x4_0000, IMAGE_PA + 0x4_0000, attributes=KERNEL_TEXT)
    view = guest.view(kernel)
    with pytest.raises(GuestError, match="no table was found that maps the kernel's identity text"):
        identity_map(view, view.state)
    tree.map(IMAGE_PA + 0x4_1000, IMAGE_PA + 0x4_1000, attributes=KERNEL_TEXT)
    assert identity_map(view, view.state).root.pa == IDMAP


@pytest.mark.parametrize(
    ("pid", "doubt"), [(1, ""), (2, "POR_EL0 is that of task 1 (init), not of this task")]
)
def test_an_overlay_is_that_of_the_task_that_runs(
    kernel: KernelImage, monkeypatch: pytest.MonkeyPatch, pid: int, doubt: str
) -> None:
    """The kernel changes POR_EL0 with the task (FEAT_S1POE); the register says nothing of others' tables."""
    guest = Guest()
    tasks = tuple(Task(0x1000 * n, n, n, c, 0, 0, None) for n, c in ((1, "init"), (2, "sh")))
    known = SimpleNamespace(named=lambda which: tasks[which - 1], current=lambda state: tasks[0])
    monkeypatch.setattr(other_roots, "Tasks", lambda view: known)
    monkeypatch.setattr(other_roots, "_address_space", lambda view, task, member: (0, guest.va(0x1_0000)))
    view = guest.view(kernel, guest.cpu(TCR2_EL1=1 << 2, POR_EL0=0x7))
    found = task_tables(view, view.state, pid).regime
    assert (found.e0poe, found.por0, found.doubt) == (True, 7, doubt)
