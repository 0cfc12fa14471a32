"""What a snapshot maps, summed up by the regions of its address space."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ptinspect.analysis.map import RegionNamer, Repeat, Run, runs
from ptinspect.arch.bits import VirtAddr
from ptinspect.dataclass import dataclass
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
    """What is mapped there; of neighbours that lead to one table those of the first."""

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
    found = runs(snapshot, regions=regions, edges=edges)
    inside: list[list[Run]] = [[] for _ in starts]
    sums: list[dict[Kind, int]] = [{} for _ in starts]
    pieces: list[Piece] = [
        (
            run.va_start,
            run.va_end,
            (run.permissions.el1, run.permissions.el0, bool(run.attributes.ng)),
            run.size,
        )
        for run in found
    ]
    for run in found:
        inside[bisect_right(starts, run.va_start) - 1].append(run)
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
