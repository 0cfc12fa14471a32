"""What `demo --fault` writes: the descriptor, and the value that it had at boot."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TreeBuilder
from kernels import opened
from stopped_guest import IMAGE_PA, SWAPPER, SYMBOLS, Guest

from ptinspect.errors import GuestError
from ptinspect.guest.injection import reverted
from ptinspect.linux.image.image import KernelImage

STACK = 0xFFFF_8000_1140_3CC0
BIT11 = 1 << 11


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    return opened(tmp_path / "Image", SYMBOLS)


def root_of(guest: Guest, at: int) -> bytes:
    return guest.memory.read(at, guest.regime.root_size)


def test_where_the_boot_uses_swapper_itself(kernel: KernelImage) -> None:
    """Up to v5.3: swapper_pg_dir[0] is (PA(swapper_pg_dir) + 0x1000) | 3 until paging_init()."""
    guest = Guest()
    index = guest.regime.index(STACK, 0)
    boot = bytearray(guest.regime.root_size)
    boot[8 * index : 8 * index + 8] = (SWAPPER + 0x1000 | 3).to_bytes(8, "little")
    guest.tree.map(STACK & -4096, 0x4300_0000)
    assert reverted(guest.view(kernel), STACK, bytes(boot)) == (SWAPPER + 8 * index, SWAPPER + 0x1000 | 3)


def test_where_the_boot_has_a_table_of_its_own(kernel: KernelImage) -> None:
    guest = Guest()
    init = TreeBuilder(guest.regime, memory=guest.memory, tables_at=0x4710_0000, root=0x4700_0000)
    init.map(guest.va(0), IMAGE_PA, size=0x10_0000)
    guest.tree.map(STACK & -4096, 0x4300_0000)
    index = guest.regime.index(STACK, 0)
    boot = root_of(guest, 0x4700_0000)
    value = int.from_bytes(boot[8 * index : 8 * index + 8], "little")
    assert value & 1
    assert reverted(guest.view(kernel), STACK, boot) == (SWAPPER + 8 * index, value)


def test_where_the_boots_tables_stay_nothing_can_revert(kernel: KernelImage) -> None:
    guest = Guest()
    guest.tree.map(STACK & -4096, 0x4300_0000)
    boot = root_of(guest, SWAPPER)
    at = SWAPPER + 8 * guest.regime.index(STACK, 0)
    entry = int.from_bytes(guest.memory.read(at, 8), "little")
    guest.memory.write(at, (entry | BIT11).to_bytes(8, "little"))
    with pytest.raises(GuestError, match="goes on with the boot's tables"):
        reverted(guest.view(kernel), STACK, boot)
    with pytest.raises(GuestError, match="the boot's own table had no root entry for the stack"):
        reverted(guest.view(kernel), STACK, bytes(guest.regime.root_size))
