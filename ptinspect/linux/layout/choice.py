"""The layout of a kernel: its geometry, by its tables, image or release, and the names in a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ptinspect.analysis.map import RegionNamer, half_namer
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.layout.geometry import (
    GENERIC,
    MIB,
    SW_TAGS,
    TOP,
    VARIANTS,
    Geometry,
    by_name,
    geometries,
    variant_of,
)
from ptinspect.linux.layout.leaves import Leaves
from ptinspect.linux.layout.regions import Layout, Region
from ptinspect.linux.layout.sections import image_regions, text_by_tables, trampoline
from ptinspect.linux.releases import parse
from ptinspect.snapshot.fact_names import AREAS, LAYOUT, LOWER, REGIONS
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.walk import walk

LINK_SLACK = 16 * MIB
"""Bytes after KIMAGE_VADDR in which an image is linked: TEXT_OFFSET of kernels before v5.8."""

_RANK = {0: 0.0, SW_TAGS: 0.25, GENERIC: 0.5}
"""What a shadow that the tables show counts."""


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
        return Layout((Region(0, 1 << regime.va_bits, half_namer(regime)(0)),), "the lower half")
    leaves = Leaves.of(snapshot.tables, snapshot.regime)
    known = image_regions(image, kaslr_offset, leaves)
    best = _best(snapshot, image, leaves, used)
    if best is None:
        return of_variant(regime, "", (*more, *known))
    return of_geometry(
        best, (*more, *trampoline(leaves, best.fixmap), *(known or text_by_tables(leaves, best.linear)))
    )


def chosen(snapshot: Snapshot) -> Geometry | None:
    """Return the geometry that explains what a snapshot of the kernel's half maps; None if none does."""
    return _best(snapshot, None, Leaves.of(snapshot.tables, snapshot.regime), ())


def geometry_of(snapshot: Snapshot) -> Geometry | None:
    """Return where the parts of a snapshot's address space lie: as it notes, else as its tables tell.

    None for a lower half, and where neither tells.
    """
    noted = snapshot.meta.extra.get(LAYOUT)
    if not snapshot.regime.upper or noted == "":
        return None
    stored = by_name(noted, snapshot.regime) if noted else None
    release = parse(snapshot.meta.kernel)
    if stored is not None and (release is None or variant_of(release) is stored.variant):
        return with_shadow(stored, snapshot)
    return chosen(snapshot) or stored


def with_shadow(made: Geometry, snapshot: Snapshot) -> Geometry:
    """Return a geometry with KASAN's shadow, if it has none but the snapshot's tables show one."""
    shown = [
        other
        for other in geometries(made.variant, snapshot.regime)
        if other.kernel_bits == made.kernel_bits and _shows_shadow(other, snapshot)
    ]
    return made if made.scale else max(shown, key=lambda other: _RANK[other.scale])


def of_geometry(made: Geometry, known: Iterable[Region]) -> Layout:
    """Return the layout with the parts of a geometry, and `known` before them."""
    first = tuple(known)
    source = f"the arithmetic of {made.name} explains what is mapped"
    return Layout((*first, *made.regions), source, made.name, first)


def of_variant(regime: Regime, name: str, known: Iterable[Region]) -> Layout:
    """Return the layout of the geometry that has this name, and `known` before it.

    Where nothing has the name (an empty one, or one of a newer ptinspect) all else is `kernel`.
    """
    made = by_name(name, regime) if name else None
    if made is not None:
        return of_geometry(made, known)
    first = (*known, Region(regime.va_min, TOP, "kernel"))
    return Layout(first, "nothing tells which arithmetic the kernel has", "", first)


def region_namer(made: Layout, regime: Regime) -> RegionNamer:
    """Return a function for `map` and `diff`; addresses in no region have the name of their half."""
    other = half_namer(regime)
    return lambda va: made.name(va) or other(va)


def _best(
    snapshot: Snapshot, image: KernelImage | None, leaves: Leaves, used: Sequence[int]
) -> Geometry | None:
    """Return the geometry that has most for it; None if nothing tells."""
    release = parse(image.banner) if image is not None else None
    release = release or parse(snapshot.meta.kernel)
    expected = None if release is None else variant_of(release)
    linked = image.text_va if image is not None and image.linked else None
    scale = None if image is None or "_stext" not in image.symbols else _scale_of(image)
    candidates = [
        made
        for variant in VARIANTS
        for made in geometries(variant, snapshot.regime)
        if (made.scale == scale if scale is not None else _shows_shadow(made, snapshot))
    ]

    def score(made: Geometry) -> float:
        inside = sum(leaves.count(part) for part in made.regions)
        found = _linked(made, linked) * 2.0 + (made.variant is expected) * 1.5
        found += _RANK[made.scale]
        for part in (made.fixmap, made.vmemmap, made.linear):
            touched = part is made.linear and any(part.start <= va < part.end for va in used)
            found += leaves.count(part) > 0 or touched
        return found + 4.0 * inside / max(leaves.va.size, 1)

    best = max(candidates, key=score)
    telling = any(leaves.count(part) for part in (best.fixmap, best.vmemmap))
    return best if telling or _linked(best, linked) or best.variant is expected else None


def _linked(made: Geometry, linked: int | None) -> bool:
    """Tell whether an image is linked where the geometry has it."""
    return linked is not None and 0 <= linked - made.modules.end < LINK_SLACK


def _scale_of(image: KernelImage) -> int:
    """Return the scale of KASAN's shadow by the symbols of the kernel."""
    if "kasan_early_init" not in image.symbols:
        return 0
    return SW_TAGS if "kasan_init_sw_tags" in image.symbols else GENERIC


def _shows_shadow(made: Geometry, snapshot: Snapshot) -> bool:
    """Tell whether what is mapped agrees with the geometry's shadow, if it has one.

    Its last page stands for the end of the address space and is mapped always, its middle (the shadow of
    memory of vmalloc) where CONFIG_KASAN_VMALLOC has nothing in use there. Without KASAN neither is mapped.
    From v5.11 on both kinds of shadow end at one address: that of tags needs TCR_EL1.TBI1, and has no tables
    where the other begins.
    """
    if not made.scale:
        return True
    shadow, regime = made.shadow, snapshot.regime
    if made.scale == SW_TAGS and not regime.tbi:
        return False
    middle = shadow.start + (shadow.end - shadow.start) // 2
    one_end = made.scale == GENERIC and made.variant.since >= (5, 11) and regime.tbi
    if one_end and not has_tables(snapshot, shadow.start, middle):
        return False
    memory = SnapshotMemory(snapshot)
    places = (shadow.end - regime.granule, middle)
    return any(walk(memory, place, snapshot.root.pa, regime).pa is not None for place in places)


def has_tables(snapshot: Snapshot, start: int, end: int) -> bool:
    """Tell whether tables of the last two levels begin in [start, end), and not all are empty."""
    tables = snapshot.tables
    inside = (tables.va >= np.uint64(start)) & (tables.va <= np.uint64(end - 1))
    return bool(tables.raw[(tables.level >= LEVEL_LAST - 1) & inside].any())


MAX_REGIONS = 65_536


def encode_regions(regions: tuple[Region, ...]) -> str:
    """Write regions as text, one a line."""
    return "\n".join(f"{r.start:x}-{r.end - 1:x} {r.name}" for r in regions[:MAX_REGIONS])


def decode_regions(text: str) -> list[Region]:
    """Read regions from text; lines that make no sense are left out, for files may be anybody's."""
    found = []
    for line in text.split("\n", MAX_REGIONS)[:MAX_REGIONS]:
        place, _, name = line.partition(" ")
        first, _, last = place.partition("-")
        try:
            start, end = int(first, 16), int(last, 16) + 1
        except ValueError:
            continue
        if 0 <= start < end <= TOP and name:
            found.append(Region(start, end, name))
    return found


def layout_of(snapshot: Snapshot, also: Snapshot | None = None) -> Layout:
    """Return the names that a snapshot knows, and after them those of an earlier one.

    Without facts of its own (older files) a snapshot of a Linux kernel is named by its tables; one of
    anything else has only the names of the halves.
    """
    extra = snapshot.meta.extra
    if snapshot.regime.upper and LAYOUT not in extra and snapshot.meta.kernel:
        return layout(snapshot)
    made = geometry_of(snapshot)
    if made is not None:
        extra = {**extra, LAYOUT: made.name}
    return layout_from(snapshot.regime, extra, {} if also is None else also.meta.extra)


def layout_from(regime: Regime, extra: Mapping[str, str], also: Mapping[str, str]) -> Layout:
    """Return the names that facts tell, and after them those of other facts."""
    if not regime.upper:
        areas = decode_regions(extra.get(AREAS, ""))
        all_of_it = Region(0, 1 << regime.va_bits, extra.get(LOWER, half_namer(regime)(0)))
        return Layout((*areas, all_of_it), "the lower half", known=tuple(areas))
    name = extra.get(LAYOUT, "")
    known = (*decode_regions(extra.get(REGIONS, "")), *decode_regions(also.get(REGIONS, "")))
    return of_variant(regime, name, known)
