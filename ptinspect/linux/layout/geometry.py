"""Where the parts of the kernel's address space lie: the arithmetic of each release, for any size of it.

Sources: arch/arm64/include/asm/{memory,pgtable,fixmap,kasan}.h and Kconfig (KASAN_SHADOW_OFFSET) of v4.17 to
v7.2. Names of regions and the kernel's own text both stand on it.
"""

from __future__ import annotations

from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.linux.layout.regions import Region
from ptinspect.linux.releases import Release, Series, has_bpf_region

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TOP = 1 << 64
STRUCT_PAGE_SHIFT = 6
"""log2 of sizeof(struct page) (STRUCT_PAGE_MAX_SHIFT)."""
GENERIC, SW_TAGS = 3, 4
"""KASAN_SHADOW_SCALE_SHIFT: log2 of the bytes that a byte of shadow stands for. KASAN by the CPU's own tags
(CONFIG_KASAN_HW_TAGS) has no shadow."""
BPF_SIZE = 128 * MIB


@dataclass(frozen=True)
class Variant:
    """One arithmetic of the address space."""

    name: str
    """Releases that have it, for people; snapshots keep it."""
    since: Series
    """The first of them."""
    usual: Series
    """The one of them that stands for all where the release is not known: it is maintained for long."""
    modules: int
    """Bytes for modules; the image follows them."""
    bpf: bool = False
    """BPF programs have a place of their own before the modules."""

    @property
    def flipped(self) -> bool:
        """Tell whether the linear map is the lower part (from v5.4 on)."""
        return self.since >= (5, 4)


VARIANTS = (
    Variant("v4.16 to v4.20", (4, 16), (4, 19), 128 * MIB),
    Variant("v5.0 to v5.3", (5, 0), (5, 3), 128 * MIB, bpf=True),
    Variant("v5.4 to v5.10", (5, 4), (5, 10), 128 * MIB, bpf=True),
    Variant("v5.11 to v5.16", (5, 11), (5, 15), 128 * MIB, bpf=True),
    Variant("v5.17 to v6.4", (5, 17), (6, 1), 128 * MIB),
    Variant("v6.5 to v6.8", (6, 5), (6, 6), 2 * GIB),
    Variant("v6.9 and later", (6, 9), (6, 12), 2 * GIB),
)
"""Oldest first.

Source: Linux commits 91fc957c9b1d ("arm64/bpf: don't allocate BPF JIT programs in module memory") (in v5.0),
14c127c957c1 ("arm64: mm: Flip kernel VA space") (in v5.4), f4693c2716b3 ("arm64: mm: extend linear region for
52-bit VA configurations") and 9ad7c6d5e75b ("arm64: mm: tidy up top of kernel VA space") (in v5.11),
b89ddf4cca43 ("arm64/bpf: Remove 128MB limit for BPF JIT programs") (in v5.17, v5.15.17 and v5.16.3),
3e35d303ab7d ("arm64: module: rework module VA range selection") (in v6.5), 32697ff38287 ("arm64: vmemmap:
Avoid base2 order of struct page size to dimension region") and its neighbours (in v6.9).
"""
OLD_NAMES = {"v4.16 to v5.3": "v4.16 to v4.20"}
"""Names that older snapshots have -> those of today."""


def variant_of(release: Release) -> Variant:
    """Return the arithmetic of a release; the oldest for one that is older than all."""
    found = [variant for variant in VARIANTS if variant.since <= release.series] or [VARIANTS[0]]
    if found[-1].bpf and not has_bpf_region(release):
        return next(variant for variant in VARIANTS if variant.flipped and not variant.bpf)
    return found[-1]


@dataclass(frozen=True)
class Geometry:
    """Where the parts of one kernel's address space lie; the spans are [start, end)."""

    variant: Variant
    bits: int
    """Size of addresses in use."""
    kernel_bits: int
    """Size of addresses that the kernel was built for (CONFIG_ARM64_VA_BITS)."""
    scale: int
    """GENERIC, SW_TAGS, or 0 without KASAN's shadow."""
    linear: Region
    shadow: Region
    """KASAN's shadow; empty without."""
    bpf: Region
    """BPF programs; empty where they have no place of their own."""
    modules: Region
    """Modules; the image is linked at their end (KIMAGE_VADDR), and runs there unless KASLR moves it."""
    vmalloc: Region
    """Memory of vmalloc, and the image."""
    vmemmap: Region
    """The array of struct page."""
    pci: Region
    fixmap: Region
    """The fixmap; its end is exact (FIXADDR_TOP), how far down it reaches depends on the configuration: with
    KVM, 64K pages and 512 CPUs it has 33 MiB for them alone (FIX_VNCR, seen in v6.18)."""

    @property
    def name(self) -> str:
        """The geometry's name, which by_name() understands."""
        kernel = "" if self.kernel_bits == self.bits else f", {self.kernel_bits}-bit kernel"
        return self.variant.name + kernel + {0: "", GENERIC: ", KASAN", SW_TAGS: ", KASAN tags"}[self.scale]

    @property
    def regions(self) -> list[Region]:
        """The parts in the order in which they name an address: what is small and certain first."""
        parts = (
            self.fixmap, self.pci, self.vmemmap, self.bpf, self.modules, self.shadow, self.vmalloc,
            self.linear,
        )  # fmt: skip
        return [part for part in parts if part.start < part.end]


def geometry(variant: Variant, regime: Regime, *, kernel_bits: int | None = None, scale: int = 0) -> Geometry:
    """Compute where everything lies for a size of pages and of addresses.

    `kernel_bits` is the size of addresses that the kernel was built for, if it is not the one in use: a
    52-bit kernel on a CPU without such addresses. `scale` is that of KASAN's shadow, 0 for none.
    """
    bits, built = regime.va_bits, kernel_bits or regime.va_bits
    least = least_bits(built, regime)
    lowest, middle = TOP - (1 << bits), TOP - (1 << least - 1)
    pages = regime.granule_bits - STRUCT_PAGE_SHIFT
    shadow = _shadow(variant, bits, least, scale)
    linear, modules = _halves(variant, bits, lowest, middle, shadow)
    bpf = Region(modules, modules + (BPF_SIZE if variant.bpf else 0), "bpf")
    after = bpf.end + variant.modules
    if not variant.flipped:
        size = 1 << built - 1 - pages
        vmemmap = Region(linear.start - size, linear.start, "vmemmap")
        pci_end = vmemmap.start - 2 * MIB
        fixmap_end, vmalloc_end = pci_end - 18 * MIB, linear.start - pud_size(regime) - size - 64 * KIB
    elif variant.since < (5, 11):
        size = (middle - (TOP - (1 << built))) >> pages
        vmemmap = Region(TOP - 2 * MIB - size, TOP - 2 * MIB, "vmemmap")
        pci_end = vmemmap.start - 2 * MIB
        fixmap_end, vmalloc_end = pci_end - 18 * MIB, TOP - pud_size(regime) - size - 64 * KIB
    elif variant.since < (6, 9):
        size = (middle - (TOP - (1 << built))) >> pages
        start = TOP - (1 << built - pages)
        vmemmap = Region(start, start + size, "vmemmap")
        pci_end = start - 8 * MIB
        fixmap_end, vmalloc_end = start - 32 * MIB, start - 256 * MIB
    else:
        start = TOP - GIB - ((middle - lowest) >> pages)
        vmemmap = Region(start, TOP - GIB, "vmemmap")
        pci_end = TOP - GIB + 24 * MIB
        fixmap_end, vmalloc_end = TOP - 8 * MIB, start - 8 * MIB
    return Geometry(
        variant=variant,
        bits=bits,
        kernel_bits=built,
        scale=scale,
        linear=linear,
        shadow=shadow,
        bpf=bpf,
        modules=Region(bpf.end, after, "modules"),
        vmalloc=Region(after, vmalloc_end, "vmalloc"),
        vmemmap=vmemmap,
        pci=Region(pci_end - 16 * MIB, pci_end, "PCI I/O"),
        fixmap=Region(fixmap_end - (16 if variant.since < (6, 9) else 64) * MIB, fixmap_end, "fixmap"),
    )


def _shadow(variant: Variant, bits: int, least: int, scale: int) -> Region:
    """Return KASAN's shadow: at the beginning up to v5.3, then above PAGE_END, from v5.11 on below it."""
    start = TOP - (1 << bits)
    size = 1 << bits - scale if scale else 0
    if variant.flipped:
        end = TOP - (1 << least - 1)
        if variant.since < (5, 11) and scale:
            end += 1 << least - scale
        start = end - size
    return Region(start, start + size, "KASAN shadow")


def _halves(variant: Variant, bits: int, lowest: int, middle: int, shadow: Region) -> tuple[Region, int]:
    """Return the linear map, and where what is neither it nor shadow begins."""
    if not variant.flipped:
        return Region(TOP - (1 << bits - 1), TOP, "linear map"), shadow.end
    if variant.since < (5, 11):  # PAGE_END is the middle of the addresses in use
        return Region(lowest, TOP - (1 << bits - 1), "linear map"), shadow.end
    return Region(lowest, shadow.start, "linear map"), middle


def geometries(variant: Variant, regime: Regime) -> list[Geometry]:
    """Return all that a variant allows for, without KASAN first.

    A 52-bit kernel with 64K pages (up to v6.8 the only kind) that runs with 48 bits has a larger vmemmap.
    """
    wider = variant.flipped and variant.since < (6, 9) and regime.granule_bits == 16 and regime.va_bits == 48
    scales = (0, GENERIC) if variant.since < (5, 0) else (0, GENERIC, SW_TAGS)
    return [
        geometry(variant, regime, kernel_bits=bits, scale=scale)
        for scale in scales
        for bits in ((48, 52) if wider else (regime.va_bits,))
    ]


def by_name(name: str, regime: Regime) -> Geometry | None:
    """Return the geometry that has a name (Geometry.name); None for a name of nobody's."""
    first, _, rest = name.partition(",")
    name = OLD_NAMES.get(first, first) + ("," + rest if rest else "")
    found = (made for variant in VARIANTS for made in geometries(variant, regime))
    return next((made for made in found if made.name == name), None)


def least_bits(built: int, regime: Regime) -> int:
    """Return VA_BITS_MIN: the size of addresses that a 52-bit kernel can do with (48; 16K pages: 47)."""
    if built <= 48:
        return built
    return 47 if regime.granule_bits == 14 else 48


def pud_size(regime: Regime) -> int:
    """Return PUD_SIZE: what an entry at level 1 maps, or one of the root where that level is folded."""
    return 1 << regime.shift(max(1, regime.start_level))
