"""Parts of an address space that have names, and which of them an address lies in."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from heapq import heappop, heappush

from ptinspect.dataclass import dataclass


@dataclass(frozen=True)
class Region:
    """A named range of virtual addresses."""

    start: int
    """First address."""
    end: int
    """First address past the end; 2^64 at the top."""
    name: str
    """What Linux calls it."""


@dataclass(frozen=True)
class Layout:
    """The regions of an address space, the more particular ones first."""

    regions: tuple[Region, ...]
    """The first one that contains an address names it."""
    source: str
    """Which variant was taken, and why."""
    variant: str = ""
    """Name of the variant; empty if none was taken."""
    known: tuple[Region, ...] = ()
    """Those of the regions that are not the variant's arithmetic."""

    def name(self, va: int) -> str:
        """Return the name of the region that an address lies in; empty if it lies in none."""
        at = bisect_right(self.edges, va) - 1
        return self._pieces[at][1] if at >= 0 else ""

    def between(self, first: int, last: int) -> list[int]:
        """Return the addresses after `first`, up to `last`, at which another region begins."""
        return self.edges[bisect_right(self.edges, first) : bisect_right(self.edges, last)]

    @cached_property
    def edges(self) -> list[int]:
        """The addresses at which another region begins, ascending."""
        return [start for start, _ in self._pieces]

    @cached_property
    def _pieces(self) -> list[tuple[int, str]]:
        """First address and name of each part in which the first region that holds it is the same."""
        starts: dict[int, list[int]] = {}
        for number, region in enumerate(self.regions):
            starts.setdefault(region.start, []).append(number)
        cuts = sorted({r.start for r in self.regions} | {r.end for r in self.regions})
        active: list[int] = []
        pieces: list[tuple[int, str]] = []
        for cut in cuts:
            for number in starts.get(cut, ()):
                heappush(active, number)
            while active and self.regions[active[0]].end <= cut:
                heappop(active)
            name = self.regions[active[0]].name if active else ""
            if not pieces or pieces[-1][1] != name:
                pieces.append((cut, name))
        return pieces
