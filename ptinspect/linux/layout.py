"""The parts of the kernel's address space, by name: which layout a kernel has is told by its tables.

The arithmetic of arch/arm64/include/asm/memory.h, pgtable.h and fixmap.h was changed several times.
Each known variant is computed for the size of addresses in use, and the one that explains what is
mapped is taken; no version is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.errors import PtinspectError
from ptinspect.linux.image import KernelImage
from ptinspect.linux.kasan import shadow_of, shifted
from ptinspect.linux.regions import Layout, Region
from ptinspect.linux.view import GuestView
from ptinspect.paging.regions import RegionNamer, half_namer
from ptinspect.snapshot.classify import K_BLOCK, K_PAGE, kinds
from ptinspect.snapshot.model import Snapshot

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TOP = 1 << 64
STRUCT_PAGE_SHIFT = 6
"""log2 of sizeof(struct page) as vmemmap is dimensioned (STRUCT_PAGE_MAX_SHIFT)."""
PXN, READ_ONLY = np.uint64(1 << 53), np.uint64(1 << 7)
SMALLEST_TEXT = 256 * KIB
"""Executable memory in one piece that is taken for the kernel's text where no symbols are known."""
SECTIONS = (
    ("kernel text", "_stext", ("_etext",)),
    ("kernel rodata", "__start_rodata", ("__init_begin", "__inittext_begin", "__end_rodata")),
    ("kernel init", "__init_begin", ("__init_end",)),
    ("kernel data", "_sdata", ("_edata",)),
    ("kernel bss", "__bss_start", ("__bss_stop",)),
)
"""Name, first symbol, symbols one of which ends it (include/asm-generic/sections.h)."""


@dataclass(frozen=True)
class _Variant:
    """One arithmetic of the address space."""

    name: str
    """Releases that have it, for people."""
    image_offset: int
    """Bytes from the middle of the kernel half (its beginning, with the linear map on top) to the image."""
    regions: Callable[[_Sizes], list[Region]]
    """Computes the regions."""


@dataclass(frozen=True)
class _Sizes:
    """Hold what the arithmetic starts from."""

    start: int
    """Lowest kernel address."""
    middle: int
    """Where linear map and the rest meet (PAGE_END; PAGE_OFFSET with the linear map on top)."""
    pud: int
    """Bytes that a pud entry maps."""
    vmemmap: int
    """Bytes of vmemmap for the whole linear map."""
    modules: int
    """Bytes for modules."""


def _linear_on_top(s: _Sizes) -> list[Region]:
    vmemmap = s.middle - s.vmemmap
    return [
        Region(s.start, s.start + 128 * MIB, "modules"),
        Region(s.start + 128 * MIB, s.middle - s.pud - s.vmemmap - 64 * KIB, "vmalloc"),
        *_devices(vmemmap - 2 * MIB - 16 * MIB, 2 * MIB),
        Region(vmemmap, s.middle, "vmemmap"),
        Region(s.middle, TOP, "linear map"),
    ]


def _flipped(s: _Sizes) -> list[Region]:
    vmemmap = TOP - s.vmemmap - 2 * MIB
    return [
        Region(s.start, s.middle, "linear map"),
        *_modules(s),
        Region(s.middle + s.modules, TOP - s.pud - s.vmemmap - 64 * KIB, "vmalloc"),
        *_devices(vmemmap - 2 * MIB - 16 * MIB, 2 * MIB),
        Region(vmemmap, TOP - 2 * MIB, "vmemmap"),
    ]


def _power_of_two(s: _Sizes) -> list[Region]:
    vmemmap = TOP - 2 * s.vmemmap if s.vmemmap & (s.vmemmap - 1) == 0 else TOP - (1 << s.vmemmap.bit_length())
    return [
        Region(s.start, s.middle, "linear map"),
        *_modules(s),
        Region(s.middle + s.modules, vmemmap - 256 * MIB, "vmalloc"),
        *_devices(vmemmap - 8 * MIB - 16 * MIB, 8 * MIB),
        Region(vmemmap, vmemmap + s.vmemmap, "vmemmap"),
    ]


def _one_gib_below_top(s: _Sizes) -> list[Region]:
    vmemmap = TOP - GIB - s.vmemmap
    return [
        Region(s.start, s.middle, "linear map"),
        Region(s.middle, s.middle + s.modules, "modules"),
        Region(s.middle + s.modules, vmemmap - 8 * MIB, "vmalloc"),
        Region(vmemmap, TOP - GIB, "vmemmap"),
        Region(TOP - GIB + 8 * MIB, TOP - GIB + 24 * MIB, "PCI I/O"),
        Region(TOP - 24 * MIB, TOP - 8 * MIB, "fixmap"),
    ]


def _modules(s: _Sizes) -> list[Region]:
    """Modules, and before them BPF programs where these have a place of their own."""
    if s.modules != 256 * MIB:
        return [Region(s.middle, s.middle + s.modules, "modules")]
    half = s.middle + 128 * MIB
    return [Region(s.middle, half, "bpf"), Region(half, half + 128 * MIB, "modules")]


def _devices(pci: int, gap: int) -> list[Region]:
    """PCI I/O, and the fixmap a gap below it."""
    return [Region(pci - gap - 16 * MIB, pci - gap, "fixmap"), Region(pci, pci + 16 * MIB, "PCI I/O")]


VARIANTS = (
    _Variant("v4.16 to v5.3", 128 * MIB, _linear_on_top),
    _Variant("v5.4 to v5.10", 256 * MIB, _flipped),
    _Variant("v5.11 to v5.16", 256 * MIB, _power_of_two),
    _Variant("v5.17 to v6.4", 128 * MIB, _power_of_two),
    _Variant("v6.5 to v6.8", 2 * GIB, _power_of_two),
    _Variant("v6.9 and later", 2 * GIB, _one_gib_below_top),
)
"""Source: Linux commits 14c127c957c1 ("arm64: mm: Flip kernel VA space") (in v5.4), 9ad7c6d5e75b ("arm64:
mm: tidy up top of kernel VA space") (in v5.11), b89ddf4cca43 ("arm64/bpf: Remove 128MB limit for BPF JIT
programs") (in v5.17, and in v5.15.y), 3e35d303ab7d ("arm64: module: rework module VA range selection")
(in v6.5), 32697ff38287 ("arm64: vmemmap: Avoid base2 order of struct page size to dimension region") (in
v6.9). The releases are for people; the choice does not depend on them."""


def layout(
    snapshot: Snapshot,
    image: KernelImage | None = None,
    kaslr_offset: int | None = None,
    *,
    more: Iterable[Region] = (),
    used: Sequence[int] = (),
) -> Layout:
    """Name the parts of the address space that a snapshot shows.

    With the kernel file and the KASLR offset the sections of the image are named too. `more` are
    regions that the caller knows (stacks), which win over all others; `used` are further addresses
    at which the root has an entry, where the snapshot is a part only.
    """
    regime = snapshot.regime
    if not regime.upper:
        return Layout((Region(0, 1 << regime.va_bits, "user"),), "the lower half")
    leaves = _leaves(snapshot)
    known = _image_regions(image, kaslr_offset, leaves)
    linked = image.text_va if image is not None and image.linked else None
    shadow, shift = shadow_of(regime, image, _sizes(regime, VARIANTS[-1]).middle)
    linked = None if linked is None else linked - shift
    best = max(VARIANTS, key=lambda variant: _score(variant, regime, leaves, linked, used))
    regions = best.regions(_sizes(regime, best))
    if not _told(best, regime, leaves, linked):
        return of_variant(regime, "", (*more, *known))
    known += [*shadow, *shifted(regions, shift)]
    if not known:
        known = _text_by_tables(leaves, regions)
    return of_variant(regime, best.name, (*more, *_trampoline(leaves, regions), *known))


def of_variant(regime: Regime, name: str, known: Iterable[Region]) -> Layout:
    """Return the layout that a variant of VARIANTS computes, and `known` before it. Raises KeyError.

    With no variant all else is `kernel`.
    """
    if not name:
        first = (*known, Region(regime.va_min, TOP, "kernel"))
        return Layout(first, "nothing tells which arithmetic the kernel has", "", first)
    variant = {variant.name: variant for variant in VARIANTS}[name]
    first = tuple(known)
    computed = variant.regions(_sizes(regime, variant))
    return Layout((*first, *computed), f"the arithmetic of {name} explains what is mapped", name, first)


def view_layout(
    view: GuestView, snapshot: Snapshot, *, more: Iterable[Region] = (), used: Sequence[int] = ()
) -> Layout:
    """Name the parts of the address space of a live guest, whose tables `snapshot` holds."""
    try:
        offset = view.kaslr_offset if view.image is not None else None
    except PtinspectError:
        offset = None
    return layout(snapshot, view.image if offset is not None else None, offset, more=more, used=used)


def region_namer(made: Layout, regime: Regime) -> RegionNamer:
    """Return a function for `map` and `diff`; addresses in no region have the name of their half."""
    other = half_namer(regime)
    return lambda va: made.name(va) or other(va)


def _sizes(regime: Regime, variant: _Variant) -> _Sizes:
    """Return the sizes for addresses of this width.

    52-bit kernels put all but the linear map where a 48-bit (16K: 47-bit) one has it (VA_BITS_MIN).
    """
    least = min(regime.va_bits, 48 if regime.granule_bits != 14 or regime.va_bits <= 48 else 47)
    start, middle = TOP - (1 << regime.va_bits), TOP - (1 << least - 1)
    linear = TOP - middle if variant.regions is _linear_on_top else middle - start
    vmemmap = linear >> regime.granule_bits - STRUCT_PAGE_SHIFT
    pud = regime.shift(max(1, regime.start_level))  # folded levels are as large as the root's
    return _Sizes(start, middle, 1 << min(pud, least), vmemmap, variant.image_offset)


@dataclass(frozen=True)
class _Leaves:
    """Hold the leaves of a snapshot."""

    va: NDArray[np.uint64]
    """First address of each, ascending."""
    size: NDArray[np.uint64]
    """Bytes."""
    executable: NDArray[np.bool_]
    """EL1 may execute it, as far as its own descriptor tells."""
    kept: NDArray[np.bool_]
    """EL1 may execute it, or may not write to it: no memory that vmalloc hands out."""


def _leaves(snapshot: Snapshot) -> _Leaves:
    tables, regime = snapshot.tables, snapshot.regime
    parts = []
    for level in range(regime.start_level, LEVEL_LAST + 1):
        rows = np.flatnonzero(tables.level == level)
        raw = tables.raw[rows]
        kind = kinds(raw, level, regime)
        row, slot = np.nonzero((kind == K_BLOCK) | (kind == K_PAGE))
        size = regime.entry_size(level)
        va = tables.va[rows][row] + slot.astype(np.uint64) * np.uint64(size)
        executable, read_only = (raw[row, slot] & PXN) == 0, (raw[row, slot] & READ_ONLY) != 0
        parts.append((va, np.full(va.shape, size, np.uint64), executable, executable | read_only))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0])
    return _Leaves(*(column[order] for column in columns))


def _score(
    variant: _Variant, regime: Regime, leaves: _Leaves, linked: int | None, used: Sequence[int]
) -> float:
    """Return how well a variant explains what is mapped: leaves in regions, regions that must be in use."""
    sizes = _sizes(regime, variant)
    regions = variant.regions(sizes)
    score = 0.0
    if linked is not None:
        base = sizes.start if variant.regions is _linear_on_top else sizes.middle
        score += 2.0 * (0 <= linked - base - variant.image_offset < 16 * MIB)
    inside = 0
    for region in regions:
        found = _count(leaves.va, region)
        inside += found
        if region.name == "linear map":
            found += any(region.start <= va < region.end for va in used)
        score += found > 0 and region.name in ("fixmap", "vmemmap", "linear map")
    return score + 4.0 * inside / max(leaves.va.size, 1)


def _told(variant: _Variant, regime: Regime, leaves: _Leaves, linked: int | None) -> bool:
    """Tell whether a variant has more for it than the others: the image's address, fixmap or vmemmap."""
    sizes = _sizes(regime, variant)
    base = sizes.start if variant.regions is _linear_on_top else sizes.middle
    if linked is not None and 0 <= linked - base - variant.image_offset < 16 * MIB:
        return True
    telling = [r for r in variant.regions(sizes) if r.name in ("fixmap", "vmemmap")]
    return any(_count(leaves.va, region) for region in telling)


def _count(va: NDArray[np.uint64], region: Region) -> int:
    """Return how many addresses of a sorted array lie in a region."""
    first = int(np.searchsorted(va, np.uint64(region.start), side="left"))
    return int(np.searchsorted(va, np.uint64(region.end - 1), side="right")) - first


def _image_regions(image: KernelImage | None, offset: int | None, leaves: _Leaves) -> list[Region]:
    """Return the sections of the image that symbols delimit, and the whole image behind them.

    Since v5.11 the kernel does not map as text what lies before _stext, and gives the addresses to vmalloc
    (Linux commit e2a073dde921, "arm64: omit [_text, _stext) from permanent kernel mapping"); 7.2 and 7.3
    map it read-only.
    """
    if image is None or offset is None:
        return []
    found = []
    for name, first, ends in SECTIONS:
        end = next((image.symbols[e][0] for e in ends if e in image.symbols), None)
        if first in image.symbols and end is not None and image.symbols[first][0] < end:
            found.append(Region(image.symbols[first][0] + offset, end + offset, name))
    start, end = image.text_va + offset, image.text_va + offset + image.size
    head = np.searchsorted(leaves.va, np.uint64(start % TOP))
    mapped = head < leaves.va.size and int(leaves.va[head]) == start % TOP and leaves.kept[head]
    if "_stext" in image.symbols and not mapped:
        start = image.symbols["_stext"][0] + offset
    elif found and found[0].name == "kernel text" and (not mapped or leaves.executable[head]):
        found[0] = Region(start, found[0].end, "kernel text")
    found.append(Region(start, end, "kernel image"))
    return [Region(r.start % TOP, (r.end - 1) % TOP + 1, r.name) for r in found]


def _text_by_tables(leaves: _Leaves, regions: Sequence[Region]) -> list[Region]:
    """Return the largest executable memory in one piece outside the linear map, if it is large enough."""
    best: tuple[int, int] = (0, 0)
    start = end = 0
    for va, size in zip(
        leaves.va[leaves.executable].tolist(), leaves.size[leaves.executable].tolist(), strict=True
    ):
        start = start if va == end else va
        end = va + size
        if end - start > best[1] - best[0] and _named(regions, start) != "linear map":
            best = (start, end)
    return [Region(*best, "kernel text")] if best[1] - best[0] >= SMALLEST_TEXT else []


def _trampoline(leaves: _Leaves, regions: Sequence[Region]) -> list[Region]:
    """Return what is executable in the fixmap: FIX_ENTRY_TRAMP_TEXT*."""
    chosen = [
        (va, size)
        for va, size in zip(
            leaves.va[leaves.executable].tolist(), leaves.size[leaves.executable].tolist(), strict=True
        )
        if _named(regions, va) == "fixmap"
    ]
    return [Region(va, va + size, "KPTI trampoline") for va, size in chosen]


def _named(regions: Sequence[Region], va: int) -> str:
    return next((r.name for r in regions if r.start <= va < r.end), "")
