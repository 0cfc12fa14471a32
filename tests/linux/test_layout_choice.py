"""The parts of the address space: which arithmetic a kernel has is told by what its tables map."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from builders import KERNEL_TEXT, PXN, REGIMES, TreeBuilder, regime_4k
from kernels import TEXT_VA, image, opened
from stopped_guest import SYMBOLS, Guest

from ptinspect.arch.regime import Regime
from ptinspect.linux.layout.choice import chosen, layout, region_namer
from ptinspect.linux.layout.geometry import GENERIC, SW_TAGS, VARIANTS, Geometry, geometry
from ptinspect.linux.layout.regions import Region
from ptinspect.linux.running.guest_layout import view_layout
from ptinspect.snapshot.model import Snapshot

BIG = 2 << 20
FULL = REGIMES["4k-52-lpa2"]

# What each kernel maps in each region: the addresses are those of kernels that were run, or of the
# tables in Documentation/arch/arm64/memory.rst of their time.
KERNELS: dict[str, tuple[str, Regime, int, dict[str, int]]] = {
    "4.17": (
        "v4.16 to v4.20",
        regime_4k(),
        0xFFFF_0000_0808_0000,
        {
            "modules": 0xFFFF_0000_0123_0000,
            "vmalloc": 0xFFFF_0000_1000_0000,
            "fixmap": 0xFFFF_7DFF_FE7F_9000,
            "PCI I/O": 0xFFFF_7DFF_FEE0_0000,
            "vmemmap": 0xFFFF_7E00_0000_0000,
            "linear map": 0xFFFF_8000_0000_0000,
        },
    ),
    "5.2": (
        "v5.0 to v5.3",
        regime_4k(),
        0xFFFF_0000_1008_0000,
        {
            "bpf": 0xFFFF_0000_0012_3000,
            "modules": 0xFFFF_0000_0923_0000,
            "vmalloc": 0xFFFF_0000_2000_0000,
            "fixmap": 0xFFFF_7DFF_FE7F_9000,
            "linear map": 0xFFFF_8000_0000_0000,
        },
    ),
    "5.10": (
        "v5.4 to v5.10",
        regime_4k(),
        0xFFFF_8000_1000_0000,
        {
            "linear map": 0xFFFF_0000_0000_0000,
            "bpf": 0xFFFF_8000_0000_0000,
            "modules": 0xFFFF_8000_08F0_0000,
            "vmalloc": 0xFFFF_8000_1200_0000,
            "fixmap": 0xFFFF_FDFF_FE5F_9000,
            "PCI I/O": 0xFFFF_FDFF_FEC0_0000,
            "vmemmap": 0xFFFF_FDFF_FFE0_0000,
        },
    ),
    "5.10 39 bits": (
        "v5.4 to v5.10",
        regime_4k(39),
        0xFFFF_FFC0_1000_0000,
        {
            "linear map": 0xFFFF_FF80_0000_0000,
            "vmalloc": 0xFFFF_FFC0_1200_0000,
            "fixmap": 0xFFFF_FFFE_FE5F_9000,
            "vmemmap": 0xFFFF_FFFE_FFE0_0000,
        },
    ),
    "5.10 64K 42 bits without vmemmap": (
        "v5.4 to v5.10",
        Regime(16, 42, 48, True),
        0xFFFF_FE00_1000_0000,
        {
            "linear map": 0xFFFF_FC00_0000_0000,
            "vmalloc": 0xFFFF_FFFF_5FF7_0000,
            "fixmap": 0xFFFF_FFFF_7E5B_0000,
        },
    ),
    "5.13": (
        "v5.11 to v5.16",
        regime_4k(),
        0xFFFF_8000_1000_0000,
        {
            "linear map": 0xFFFF_0000_0000_0000,
            "bpf": 0xFFFF_8000_0000_0000,
            "vmalloc": 0xFFFF_8000_1200_0000,
            "fixmap": 0xFFFF_FBFF_FDBF_6000,
            "PCI I/O": 0xFFFF_FBFF_FE80_0000,
            "vmemmap": 0xFFFF_FC00_0000_0000,
        },
    ),
    "6.1": (
        "v5.17 to v6.4",
        regime_4k(),
        0xFFFF_8000_0800_0000,
        {
            "linear map": 0xFFFF_0000_0000_0000,
            "modules": 0xFFFF_8000_0000_0000,
            "vmalloc": 0xFFFF_8000_0A00_0000,
            "fixmap": 0xFFFF_FBFF_FDBF_6000,
            "PCI I/O": 0xFFFF_FBFF_FE80_0000,
            "vmemmap": 0xFFFF_FC00_0000_0000,
        },
    ),
    "6.6": (
        "v6.5 to v6.8",
        regime_4k(),
        0xFFFF_8000_8000_0000,
        {
            "linear map": 0xFFFF_0000_0000_0000,
            "modules": 0xFFFF_8000_7AAA_0000,
            "vmalloc": 0xFFFF_8000_8200_0000,
            "fixmap": 0xFFFF_FBFF_FDBF_6000,
            "PCI I/O": 0xFFFF_FBFF_FE80_0000,
            "vmemmap": 0xFFFF_FC00_0000_0000,
        },
    ),
    "6.12 on 48 bits": (
        "v6.9 and later",
        regime_4k(),
        0xFFFF_8000_8000_0000,
        {
            "linear map": 0xFFFF_0000_0000_0000,
            "modules": 0xFFFF_8000_7AAA_0000,
            "vmalloc": 0xFFFF_8000_8200_0000,
            "fixmap": 0xFFFF_FFFF_FF5F_4000,
            "PCI I/O": 0xFFFF_FFFF_C080_0000,
            "vmemmap": 0xFFFF_FDFF_C000_0000,
        },
    ),
    "6.12 52 bits": (
        "v6.9 and later",
        FULL,
        0xFFFF_8000_8000_0000,
        {
            "linear map": 0xFFF0_0000_0000_0000,
            "vmalloc": 0xFFFF_8000_8200_0000,
            "fixmap": 0xFFFF_FFFF_FF5F_4000,
            "vmemmap": 0xFFFF_C1FF_C000_0000,
        },
    ),
    "6.12 16K": (
        "v6.9 and later",
        REGIMES["16k-52-lpa2"],
        0xFFFF_C000_8000_0000,
        {
            "linear map": 0xFFF0_0000_0000_0000,
            "vmalloc": 0xFFFF_C000_8260_0000,
            "fixmap": 0xFFFF_FFFF_FF5D_0000,
            "vmemmap": 0xFFFF_F03F_C000_0000,
        },
    ),
}


def mapped(regime: Regime, text: int, places: dict[str, int]) -> Snapshot:
    """Map the kernel's text, some of the linear map, and a page or two in each other region."""
    tree = TreeBuilder(regime)
    tree.map(text + 0x1_0000, 0x4201_0000, size=0x10_0000, attributes=KERNEL_TEXT)
    for name, va in places.items():
        if name == "linear map":
            tree.map(va, 0x4000_0000, size=4 * regime.entry_size(2), level=2)
        else:
            attributes = {"attributes": KERNEL_TEXT} if name == "fixmap" else {}
            tree.map(va, 0x4300_0000, size=regime.granule, **attributes)
    return tree.snapshot()


@pytest.mark.parametrize("known", [True, False], ids=["with file", "without"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_mapped_tells_the_arithmetic(kernel: str, known: bool, tmp_path: Path) -> None:
    variant, regime, text, places = KERNELS[kernel]
    file = None
    if known:
        symbols = [(name, va - TEXT_VA + text, kind) for name, va, kind in SYMBOLS]
        data = image(size=0x20_0000, text_offset=text % BIG)
        file = opened(tmp_path / "Image", symbols, data)
    snapshot = mapped(regime, text, places)
    found = layout(snapshot, file, 0 if known else None)
    if known:
        assert variant in found.source
    for name, va in places.items():
        if known or name not in ("modules", "bpf", "vmalloc"):
            assert found.name(va) == ("KPTI trampoline" if name == "fixmap" else name), f"{va:#x}"
    assert found.name(text + 0x2_0000) == "kernel text"


def test_regions_do_not_overlap() -> None:
    for name, (_, regime, text, places) in KERNELS.items():
        made = layout(mapped(regime, text, places))
        plain = sorted(
            (r for r in made.regions if not r.name.startswith("K") and r.name != "kernel text"),
            key=lambda r: r.start,
        )
        for a, b in pairwise(plain):
            assert a.start < a.end <= b.start < b.end <= 1 << 64, name
        assert {r.name for r in plain} >= {"linear map", "modules", "vmalloc", "vmemmap", "fixmap", "PCI I/O"}


def test_sections_of_the_image(tmp_path: Path) -> None:
    more = [
        ("__start_rodata", TEXT_VA + 0x5_0000, "R"), ("__init_begin", TEXT_VA + 0x6_0000, "T"),
        ("__init_end", TEXT_VA + 0x7_0000, "B"), ("_sdata", TEXT_VA + 0x7_0000, "D"),
        ("_edata", TEXT_VA + 0x8_0000, "D"), ("__bss_start", TEXT_VA + 0x8_1000, "B"),
        ("__bss_stop", TEXT_VA + 0x9_0000, "B"),
    ]  # fmt: skip
    file = opened(tmp_path / "Image", [*SYMBOLS, *more])
    offset = 0x1000_0000
    guest = Guest(offset)
    view = guest.view(file)
    stack = Region(TEXT_VA + offset + 0x7_4000, TEXT_VA + offset + 0x7_8000, "task stack")
    made = view_layout(view, guest.tree.snapshot(), more=[stack])
    names = {
        at: made.name(TEXT_VA + offset + at)
        for at in (
            0x0,
            0x1_0000,
            0x4_FFFF,
            0x5_0000,
            0x6_0000,
            0x7_0000,
            0x7_4000,
            0x7_8000,
            0x8_0800,
            0x8_1000,
        )
    }
    assert names == {
        0x0: "kernel head", 0x1_0000: "kernel text", 0x4_FFFF: "kernel text", 0x5_0000: "kernel rodata",
        0x6_0000: "kernel init", 0x7_0000: "kernel data", 0x7_4000: "task stack", 0x7_8000: "kernel data",
        0x8_0800: "kernel image", 0x8_1000: "kernel bss",
    }  # fmt: skip
    assert made.name(TEXT_VA + 0x1_0000) != "kernel text", "it runs elsewhere"
    guest.tree.map(TEXT_VA + offset, 0x4800_0000, size=0x1000, attributes=KERNEL_TEXT | PXN)
    made = view_layout(guest.view(file), guest.tree.snapshot())
    assert made.name(TEXT_VA + offset) == "vmalloc", "memory of vmalloc lies where nothing was mapped"
    assert made.name(TEXT_VA + offset + 0x1000) == "kernel head"
    own = view.pa_of_link(TEXT_VA)
    guest.tree.map(TEXT_VA + offset, own, size=0x1000, attributes=KERNEL_TEXT | PXN)
    made = view_layout(guest.view(file), guest.tree.snapshot())
    assert [made.name(TEXT_VA + offset + at) for at in (0, 0x1_0000)] == ["kernel head", "kernel text"]
    guest.tree.map(TEXT_VA + offset, own, size=0x1000, attributes=KERNEL_TEXT)
    made = view_layout(guest.view(file), guest.tree.snapshot())
    assert made.name(TEXT_VA + offset) == "kernel text", "mapped up to v5.10"


def test_sections_of_an_image_that_names_no_data(tmp_path: Path) -> None:
    """As Debian's 5.10 and 6.1: what the symbols of text leave open has the name of the whole."""
    more = [("__init_begin", TEXT_VA + 0x6_0000, "T"), ("_einittext", TEXT_VA + 0x6_8000, "T")]
    file = opened(tmp_path / "Image", [*SYMBOLS, *more])
    guest = Guest()
    made = view_layout(guest.view(file), guest.tree.snapshot())
    names = [made.name(TEXT_VA + at) for at in (0x4_FFFF, 0x5_0000, 0x5_FFFF, 0x6_0000, 0x6_7FFF, 0x6_8000)]
    assert names == [
        "kernel text", "kernel rodata", "kernel rodata", "kernel init", "kernel init", "kernel image",
    ]  # fmt: skip


KASAN_PAGE = 0x4400_0000


def kasan_guest(variant: int, bits: int, scale: int, *, tbi: bool = False) -> tuple[Geometry, Snapshot]:
    """Map the shadow of the whole address space to one page, as KASAN does, and its beginning to another."""
    regime = replace(regime_4k(bits), tbi=tbi)
    made = geometry(VARIANTS[variant], regime, scale=scale)
    tree = TreeBuilder(regime)
    for va in (
        made.linear.start,
        made.vmemmap.start,
        made.fixmap.end - 0x40_0000,
        made.modules.end + 0x1_0000,
    ):
        tree.map(va, 0x4300_0000, size=0x1000)
    tree.map(made.shadow.start, 0x4500_0000, size=0x1_0000)
    tree.map(made.shadow.end - 0x20_0000, KASAN_PAGE, size=0x1000)
    first = tree.table_at(made.shadow.end - 0x20_0000, 3)
    tree.memory.write(first, tree.memory.read(first, 8) * 512)
    return made, tree.snapshot()


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@pytest.mark.parametrize(("scale", "tbi"), [(0, False), (GENERIC, False), (GENERIC, True), (SW_TAGS, True)])
def test_a_shadow_of_kasan_is_told_by_the_tables(variant: int, scale: int, tbi: bool) -> None:
    if not variant and scale == SW_TAGS:
        return
    for bits in (39, 48):
        made, snapshot = kasan_guest(variant, bits, scale or GENERIC, tbi=tbi)
        if not scale:
            made, regime = geometry(VARIANTS[variant], snapshot.regime), snapshot.regime
            tree = TreeBuilder(regime)
            for va in (made.linear.start, made.vmemmap.start, made.fixmap.end - 0x40_0000, made.modules.end):
                tree.map(va, 0x4300_0000, size=0x1000)
            snapshot = tree.snapshot()
        release = f"Linux version {made.variant.usual[0]}.{made.variant.usual[1]}.0"
        snapshot = replace(snapshot, meta=replace(snapshot.meta, kernel=release))
        found = chosen(snapshot)
        assert found == made, (found and found.name, made.name)


def test_a_release_decides_what_the_tables_leave_open() -> None:
    """v5.11 to v5.16 and v5.17 to v6.4 differ in what modules and BPF programs have, no more."""
    regime = regime_4k()
    tree = TreeBuilder(regime)
    made = geometry(VARIANTS[3], regime)
    for va in (made.linear.start, made.vmemmap.start, made.fixmap.end - 0x40_0000):
        tree.map(va, 0x4300_0000, size=0x1000)
    for name, variant in (("5.13.1", 3), ("5.15.200", 4), ("6.1.100", 4)):
        snapshot = tree.snapshot()
        snapshot = replace(snapshot, meta=replace(snapshot.meta, kernel=f"Linux version {name}"))
        found = chosen(snapshot)
        assert found is not None and found.variant is VARIANTS[variant]
    snapshot = replace(snapshot, meta=replace(snapshot.meta, kernel="Linux version 6.12.1"))
    found = chosen(snapshot)
    assert found is not None and found.variant is not VARIANTS[6], "the tables contradict the release"


def test_a_52_bit_kernel_of_before_6_9_on_48_bits() -> None:
    regime = Regime(16, 48, 48, True)
    made = geometry(VARIANTS[4], regime, kernel_bits=52)
    tree = TreeBuilder(regime)
    for va in (made.linear.start, made.vmemmap.end - 0x2_0000, made.fixmap.end - 0x40_0000):
        tree.map(va, 0x4300_0000, size=0x1_0000)
    snapshot = tree.snapshot()
    snapshot = replace(snapshot, meta=replace(snapshot.meta, kernel="Linux version 6.1.50"))
    assert chosen(snapshot) == made
    assert layout(snapshot).name(made.vmemmap.end - 1) == "vmemmap"


def test_a_view_without_a_file() -> None:
    guest = Guest()
    made = view_layout(guest.view(None), guest.tree.snapshot())
    assert made.name(0xFFFF_0000_0000_0000) == "linear map"


def test_the_lower_half() -> None:
    made = layout(TreeBuilder(REGIMES["4k-48-user"]).snapshot())
    assert (made.name(0x40_0000), made.name(0xFFFF_0000_0000_0000)) == ("lower half", "")


def test_the_namer_falls_back_to_the_half() -> None:
    regime = regime_4k()
    made = layout(mapped(regime, KERNELS["6.1"][2], KERNELS["6.1"][3]))
    namer = region_namer(made, regime)
    assert namer(0xFFFF_0000_0000_0000) == "linear map"
    assert namer(0xFFFF_FFFF_FFFF_0000) == "kernel"
    assert namer(0x40_0000) == ""


def test_tables_that_map_nothing() -> None:
    assert layout(TreeBuilder(regime_4k()).snapshot()).source


def test_each_variant_has_a_kernel_here() -> None:
    assert {variant.name for variant in VARIANTS} == {kernel[0] for kernel in KERNELS.values()}
