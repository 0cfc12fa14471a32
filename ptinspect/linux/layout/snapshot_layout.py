"""The layout that a snapshot's facts name: its variant, and regions as text."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.analysis.map import half_namer
from ptinspect.arch.regime import Regime
from ptinspect.linux.layout.choice import geometry_of, layout, of_variant
from ptinspect.linux.layout.geometry import TOP
from ptinspect.linux.layout.regions import Layout, Region
from ptinspect.snapshot.fact_names import AREAS, LAYOUT, LOWER, REGIONS
from ptinspect.snapshot.model import Snapshot

MAX_REGIONS = 65_536


def encode(regions: tuple[Region, ...]) -> str:
    """Write regions as text, one a line."""
    return "\n".join(f"{r.start:x}-{r.end - 1:x} {r.name}" for r in regions[:MAX_REGIONS])


def decode(text: str) -> list[Region]:
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
        areas = decode(extra.get(AREAS, ""))
        all_of_it = Region(0, 1 << regime.va_bits, extra.get(LOWER, half_namer(regime)(0)))
        return Layout((*areas, all_of_it), "the lower half", known=tuple(areas))
    name = extra.get(LAYOUT, "")
    known = (*decode(extra.get(REGIONS, "")), *decode(also.get(REGIONS, "")))
    return of_variant(regime, name, known)
