"""Where the tables are in memory that came without registers, by the kernel file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from builders import KERNEL_TEXT, REGIMES, TreeBuilder

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.regime import regime_from_registers
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import UserError
from ptinspect.linux.running import dump_registers as imported
from ptinspect.linux.running import placement
from ptinspect.linux.running.dump_registers import Given, derive
from ptinspect.linux.running.placement import Placement

IMAGE = 0x4020_0000
SIZE = 0x20_0000
ROOT_AT = 0x15_0000


class Image:
    """What `derive` asks of a kernel file."""

    linked = True
    header = None
    size = SIZE
    path = Path("Image")
    code_pages = (0x1_0000, 0x8_0000, 0xF_FFFC)
    data_pages = (0x17_FFF8, SIZE - 8)
    symbols: ClassVar[dict[str, list[int]]] = {}

    def __init__(self, text_va: int, release: str = "6.1.0") -> None:
        self.text_va = text_va
        self.banner = f"Linux version {release}"

    def lookup(self, name: str) -> int:
        return self.symbols[name][0]


def guest(name: str, text_va: int) -> TreeBuilder:
    """An image that holds its root table, a page like one, and code."""
    tree = TreeBuilder(REGIMES[name], tables_at=0x4100_0000, root=IMAGE + ROOT_AT)
    tree.map(text_va, IMAGE, size=SIZE, attributes=KERNEL_TEXT)
    tree.map(int(tree.regime.va_min), 0x4000_0000, size=1 << 20)
    tree.set_word(IMAGE + 0x3000, tree.get(text_va, tree.regime.start_level) ^ 0x8000)
    tree.memory.write(IMAGE + 0x4000, b"\x1f\x20\x03\xd5" * 1024)
    tree.memory.write(IMAGE + 0x5000, b"\x03\0\0\0\0\0\0\0" * 512)
    return tree


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Placement(PhysAddr(IMAGE), 1.0, "its Image header in RAM")
    monkeypatch.setattr(placement, "find_image", lambda *_: found)


@pytest.mark.parametrize(
    ("name", "text_va"),
    [
        ("4k-48", 0xFFFF_8000_0800_0000),
        ("4k-48", 0xFFFF_0000_0808_0000),
        ("4k-39", 0xFFFF_FFC0_0800_0000),
        ("4k-52-lpa2", 0xFFFF_8000_8000_0000),
        ("64k-42", 0xFFFF_FE00_0800_0000),
        ("64k-52-lpa", 0xFFFF_8000_0800_0000),
        ("16k-47", 0xFFFF_C000_0800_0000),
        ("16k-52-lpa2", 0xFFFF_C000_8000_0000),
    ],
)
def test_the_root_is_found_in_the_image(name: str, text_va: int) -> None:
    """Without a symbol for it, and with neither granule nor address size known."""
    tree = guest(name, text_va)
    image: Any = Image(text_va, "4.17.0" if text_va == 0xFFFF_0000_0808_0000 else "6.1.0")
    found = derive(tree.memory, tree.memory.ram, image, lambda: (), Given())
    assert found.root == tree.root
    regime = tree.regime
    assert 64 - (found.system["TCR_EL1"] >> 16 & 0x3F) == regime.va_bits
    assert {1: 14, 2: 12, 3: 16}[found.system["TCR_EL1"] >> 30 & 3] == regime.granule_bits
    assert bool(found.system["TCR_EL1"] >> 59 & 1) == regime.ds
    assert "a table in the image, which maps the kernel's code" in found.provenance


@pytest.mark.parametrize("first", [0, 0x2_0000], ids=["other code", "the first code alone"])
def test_a_table_that_maps_other_code_is_not_taken(first: int) -> None:
    tree = guest("4k-48", 0xFFFF_8000_0800_0000)
    tree.map(0xFFFF_8000_0800_0000 + first, IMAGE + 0x1000, size=SIZE - first)
    image: Any = Image(0xFFFF_8000_0800_0000)
    with pytest.raises(UserError, match="a table in the image"):
        derive(tree.memory, tree.memory.ram, image, lambda: (), Given())


def test_releases_tell_mair() -> None:
    assert imported._mair("6.12.1", None)[0] == 0x4_0044_FFFF
    assert imported._mair("Linux version 5.10.0-32", None)[0] == 0xC_0400_BB44_FFFF
    with pytest.raises(UserError, match="MAIR"):
        imported._mair("3.18", None)


@pytest.mark.parametrize(
    ("release", "doubt"), [("5.10.0", False), ("6.4.16", False), ("6.5.0", True), ("7.2.6", True), ("", True)]
)
def test_a_kernel_from_before_indirect_permissions_has_direct_ones(release: str, doubt: bool) -> None:
    """Linux uses FEAT_S1PIE from v6.5 on; a dump does not tell whether the CPU has it."""
    given = Given(mair=0xFF)
    candidate = imported._Candidate(0x4000_0000, "", 12, 48, release, (), ())
    found = candidate.derived(given)
    state = CpuState(0, (0,) * 31, 0, 0, 0x3C5, found.system)
    assert bool(regime_from_registers(state, True).doubt) == doubt
    assert any("indirect permissions" in source for source in found.sources) == doubt
