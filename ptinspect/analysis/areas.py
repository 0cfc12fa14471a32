"""What a snapshot maps, summed up by the regions of its address space."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ptinspect.analysis.map import MapFilter, RegionNamer, Repeat, Run, runs
from ptinspect.arch.bits import PhysAddr, VirtAddr, align_up
from ptinspect.dataclass import dataclass, replace
from ptinspect.snapshot.model import Snapshot

Kind = tuple[str, str, bool]
"""What EL1 may do, what EL0 may do, nG."""
Piece = tuple[int, int, Kind, int]
"""First and last address, what may be done, and how many bytes of it are mapped."""


@dataclass(frozen=True)
class Share:
    """What of a region has one set of permissions."""

    el1: str
    """What EL1 may do, as in Permissions."""
    el0: str
    """What EL0 may do."""
    ng: bool
    """Whether its leaves are nG."""
    size: int
    """Bytes that are mapped so."""


@dataclass(frozen=True)
class Area:
    """One region, from where it begins to where the next one does."""

    va_start: VirtAddr
    va_end: VirtAddr
    """Last address."""
    name: str
    shares: tuple[Share, ...]
    """By size, the largest first; empty if nothing is mapped there."""
    runs: tuple[Run, ...]
    """What is mapped there, also where physical addresses do not follow each other; of neighbours that lead
    to one table what the first maps."""

    @property
    def size(self) -> int:
        """Bytes of addresses."""
        return self.va_end - self.va_start + 1

    @property
    def mapped(self) -> int:
        """Bytes that are mapped."""
        return sum(share.size for share in self.shares)


def areas(
    snapshot: Snapshot, regions: RegionNamer, edges: Sequence[int]
) -> tuple[list[Area], tuple[str, ...]]:
    """Return all regions of a snapshot's half in order of va, and why what is mapped there is incomplete.

    `edges` are the addresses, ascending, at which the name that `regions` gives changes.
    """
    regime = snapshot.regime
    starts = sorted({int(regime.va_min), *(edge for edge in edges if regime.va_min <= edge <= regime.va_max)})
    ends = [start - 1 for start in starts[1:]] + [int(regime.va_max)]
    found = runs(snapshot, MapFilter(merge_pa=True), regions)
    inside: list[list[Run]] = [[] for _ in starts]
    sums: list[dict[Kind, int]] = [{} for _ in starts]
    pieces: list[Piece] = []
    for run in (piece for whole in found for piece in _cut(whole, starts, snapshot)):
        inside[bisect_right(starts, run.va_start) - 1].append(run)
        key = run.permissions.el1, run.permissions.el0, bool(run.attributes.ng)
        pieces.append((run.va_start, run.va_end, key, run.size))
    for repeat in sorted(found.repeats, key=lambda each: each.span):  # what lies in others first
        pieces += _again(pieces, repeat)
    for first, _, key, size in pieces:
        each = sums[bisect_right(starts, first) - 1]
        each[key] = each.get(key, 0) + size
    made = [
        Area(
            VirtAddr(start),
            VirtAddr(end),
            regions(start),
            tuple(sorted((Share(*key, size) for key, size in kinds.items()), key=lambda share: -share.size)),
            tuple(listed),
        )
        for start, end, kinds, listed in zip(starts, ends, sums, inside, strict=True)
    ]
    return made, (found.truncated,) if found.truncated else ()


def _cut(run: Run, starts: Sequence[int], snapshot: Snapshot) -> Iterator[Run]:
    """Cut a run where regions begin; a leaf belongs to the region of its first byte."""
    inside = starts[bisect_right(starts, run.va_start) : bisect_right(starts, run.va_end)]
    cuts = {align_up(start, run.leaf_size) for start in inside}
    firsts = [int(run.va_start), *sorted(cut for cut in cuts if run.va_start < cut <= run.va_end)]
    for first, after in pairwise([*firsts, run.va_end + 1]):
        pa = run.pa_start
        if first > run.va_start and not run.repeated:
            pa = PhysAddr(pa + first - run.va_start) if run.pa_contiguous else _leads_to(first, snapshot)
        count = (after - first) // run.leaf_size
        yield replace(run, va_start=VirtAddr(first), va_end=VirtAddr(after - 1), pa_start=pa, count=count)


def _leads_to(va: int, snapshot: Snapshot) -> PhysAddr:
    """Return where the leaf that begins at `va` leads."""
    return runs(snapshot, MapFilter(va_range=(va, va)))[0].pa_start


def _again(pieces: Sequence[Piece], repeat: Repeat) -> list[Piece]:
    """Return what the other ways to a table map, in one piece of each kind that the first way maps."""
    last = repeat.as_at + repeat.span - 1
    sums: dict[Kind, int] = {}
    for start, end, key, size in pieces:
        if start >= repeat.as_at and end <= last:
            sums[key] = sums.get(key, 0) + size
        elif start <= last and end >= repeat.as_at:  # a run, which has no gaps
            sums[key] = sums.get(key, 0) + min(end, last) - max(start, repeat.as_at) + 1
    return [(repeat.va_start, repeat.va_end, key, size * repeat.times) for key, size in sums.items()]
