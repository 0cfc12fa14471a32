"""What TTBR1 points to on each CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TreeBuilder
from kernels import TEXT_VA, opened
from stopped_guest import IMAGE_PA, RESERVED, SWAPPER, SYMBOLS, TEMPORARY, TRAMP, TRAMP_VA, Guest

from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.ttbr import Role, ttbr1_role, upper_root

BOOT = 0x4700_0000
NAMED = [
    ("tramp_pg_dir", TEXT_VA + TRAMP - IMAGE_PA, "R"),
    ("reserved_pg_dir", TEXT_VA + RESERVED - IMAGE_PA, "R"),
    ("swapper_pg_dir", TEXT_VA + SWAPPER - IMAGE_PA, "R"),
    ("init_pg_dir", TEXT_VA + BOOT - IMAGE_PA, "D"),
]


@pytest.fixture(params=[False, True], ids=["content", "symbols"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> KernelImage:
    return opened(tmp_path / "Image", SYMBOLS + (NAMED if request.param else []))


@pytest.mark.parametrize(
    ("root", "name"),
    [
        (SWAPPER, "swapper"),
        (SWAPPER | 1 | 7 << 48, "swapper"),
        (TRAMP, "trampoline"),
        (RESERVED, "reserved"),
        (BOOT, "init"),
        (TEMPORARY, "temporary"),
        (0x4710_0000, "unknown"),
        (0x9_0000_0000, "unknown"),
        (0, "none"),
    ],
)
def test_roles(kernel: KernelImage, root: int, name: str) -> None:
    guest = Guest(0x1000_0000)
    boot = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4701_0000, root=BOOT)
    boot.map(guest.va(0), IMAGE_PA, size=0x10_0000)
    other = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4711_0000, root=0x4710_0000)
    other.map(TRAMP_VA, IMAGE_PA)
    asked = guest.cpu(1, TTBR1_EL1=root, pc=IMAGE_PA + 0x4_0600, x={2: TEMPORARY})
    view = guest.view(kernel, guest.cpu(0), asked)
    assert ttbr1_role(view, asked).name == name
    expected = (root & 0xFFFF_FFFF_FFFE, "" if name == "unknown" else name)
    assert upper_root(asked, view) == (None if name == "none" else expected)


def test_reasons(kernel: KernelImage) -> None:
    guest = Guest()
    view = guest.view(kernel)
    named = "swapper_pg_dir" in kernel.symbols
    assert ttbr1_role(view, view.state) == Role(
        "swapper", "swapper_pg_dir" if named else "it maps the kernel"
    )
    lost = guest.view(None, guest.cpu(TTBR1_EL1=0x4710_0000))
    assert ttbr1_role(lost, lost.state).name == "reserved"
