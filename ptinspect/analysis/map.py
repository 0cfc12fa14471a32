"""List what a snapshot maps, as runs of equal attributes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.expand import Again, Expansion, Fragments
from ptinspect.arch.bits import PhysAddr, VirtAddr, align_up
from ptinspect.arch.descriptor import Attributes, decode
from ptinspect.arch.levels import levels_of
from ptinspect.arch.permissions import Permissions, effective
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass, replace
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import Columns
from ptinspect.tables.kinds import HIERARCHY_SHIFT, without_addresses
from ptinspect.tables.window import Window
from ptinspect.text import counted

T = TypeVar("T")
RegionNamer = Callable[[int], str]
"""Gives the name of the region that a virtual address lies in; empty if it has none."""
MAX_RUNS = 100_000


class Bounded(list[T]):
    """A list with the reason why it is not complete; empty if it is."""

    def __init__(self, items: Iterable[T] = (), truncated: str = "") -> None:
        super().__init__(items)
        self.truncated = truncated


def half_namer(regime: Regime) -> RegionNamer:
    """Return a namer that knows no more than which half an address lies in."""
    name = "kernel" if regime.upper else "EL2" if regime.name == "EL2" else "lower half"
    return lambda va: name if regime.contains(va) else ""


@dataclass(frozen=True)
class MapFilter:
    """Choose what is listed; everything is, by default."""

    levels: frozenset[int] | None = None
    """Only leaves of these levels."""
    ng: bool | None = None
    """Only leaves whose nG is this."""
    el1: str = ""
    """Letters of rwx that EL1 must be allowed."""
    el1_not: str = ""
    """Letters that EL1 must not be allowed."""
    el0: str = ""
    """Letters that EL0 must be allowed."""
    el0_not: str = ""
    """Letters that EL0 must not be allowed."""
    memory_type: str = ""
    """Part of the memory type's name, in any case: `device`, `normal`, `nc`."""
    contiguous: bool | None = None
    """Only leaves whose contiguous hint is this."""
    va_range: tuple[int, int] | None = None
    """Only leaves that touch these virtual addresses, both ends included; only their tables are read."""
    pa_range: tuple[int, int] | None = None
    """Only leaves that touch these physical addresses, both ends included."""
    merge_pa: bool = False
    """Join leaves that follow each other in VA but not in PA."""
    max_runs: int = MAX_RUNS
    """List no more than this."""
    max_visits: int = 0
    """Follow no more than this many ways to reach a table, at each level; 0: expand.MAX_VISITS."""


@dataclass(frozen=True)
class Run:
    """Describe leaves of one size and equal attributes that follow each other."""

    va_start: VirtAddr
    """First address."""
    va_end: VirtAddr
    """Last address."""
    pa_start: PhysAddr
    """Where the first address leads."""
    level: int
    leaf_size: int
    """Bytes that each leaf maps."""
    count: int
    attributes: Attributes
    """Attributes that all of them have."""
    permissions: Permissions
    """What EL1 and EL0 may do, the tables above considered."""
    region: str
    """Name of the region that it lies in; empty if unknown."""
    pa_contiguous: bool = True
    """False if the leaves were joined although their physical addresses do not follow each other."""
    bits: int = 0
    """The raw bits that all of them have: type and attributes, those without a name included."""
    repeated: bool = False
    """True if every leaf leads to `pa_start`: tables with one page in all entries (KASAN's zero shadow)."""

    @property
    def size(self) -> int:
        """Bytes that the run maps."""
        return self.count * self.leaf_size


@dataclass(frozen=True)
class Repeat:
    """Describe neighbours that lead to one table, all but the first, whose runs are listed."""

    va_start: VirtAddr
    """First address of the second."""
    va_end: VirtAddr
    """Last address of the last."""
    as_at: VirtAddr
    """First address of the first: each of the others maps what it maps."""
    times: int
    """How many there are, the first not counted."""
    span: int
    """Bytes of addresses that each has."""
    level: int
    table_pa: PhysAddr
    region: str
    """Name of the region that it lies in; empty if unknown."""


class Runs(Bounded[Run]):
    """Runs, and what repeats some of them."""

    def __init__(self, items: Iterable[Run], truncated: str, repeats: Sequence[Repeat]) -> None:
        super().__init__(items, truncated)
        self.repeats = repeats
        """In order of va."""


@dataclass(frozen=True, eq=False)
class Stretches(Columns):
    """Fragments that the filter accepts."""

    va: NDArray[np.uint64]
    pa: NDArray[np.uint64]
    span: NDArray[np.uint64]
    """Bytes that they map."""
    kind: NDArray[np.intp]
    """Position in the list of distinct attributes; those of different levels are distinct."""
    whole: NDArray[np.bool_]
    """Whether the physical addresses follow each other."""
    again: NDArray[np.bool_]
    """Whether all leaves lead to one physical address; they are not `whole` then."""


def runs(
    snapshot: Snapshot,
    chosen: MapFilter | None = None,
    regions: RegionNamer | None = None,
    edges: Sequence[int] = (),
) -> Runs:
    """List runs of leaves in order of va, a shared table at each address that reaches it.

    Where many neighbours lead to one table (expand.NEIGHBOURS), its runs are listed for the first of them,
    and `repeats` of the result has the others: KASAN's zero shadow while the rewrite is in it.

    Adjacent leaves are joined if size, attributes, permissions and, unless `merge_pa`, the step in
    physical addresses agree, or tables repeat one page in all their entries; also across tables, but not
    (unless `merge_pa`) where the name of the region changes, for which only the addresses `edges`
    (ascending) are looked at. `truncated` of the result tells why it is not complete: bounds that were
    hit, tables that are missing or could not be read. Raises UserError if `va_range` lies outside the
    regime's half.
    """
    wanted = chosen or MapFilter()
    captured, asked = (Window.of(r, snapshot.regime) for r in (snapshot.va_range, wanted.va_range))
    window = captured.common(asked)
    kinds = LeafKinds(snapshot.regime, wanted)
    collector = Collector(kinds, snapshot.regime, wanted)
    expansion = Expansion(snapshot, window, wanted.pa_range, wanted.levels, wanted.max_visits, repeated=True)
    expansion.run(collector.add)
    joined = collector.result()
    reasons = [expansion.truncated]
    if (window.low, window.high) != (asked.low, asked.high):
        reasons.append(f"only {captured.low:#x}..{captured.high + 1:#x} was captured")
    if expansion.missing:
        why = f" ({snapshot.truncated})" if snapshot.truncated else ""
        reasons.append(f"{counted(expansion.missing, 'table is', 'tables are')} not in the snapshot{why}")
    if expansion.unreadable:
        reasons.append(f"{counted(expansion.unreadable, 'table')} could not be read")
    namer = regions or half_namer(snapshot.regime)
    found = _by_region(_runs(joined, kinds, namer, wanted.max_runs), namer, edges)
    if collector.full or max(len(joined), len(found)) > wanted.max_runs:
        reasons.append(f"only the first {wanted.max_runs} runs are listed")
    repeats = _repeats(expansion.again, joined, namer)
    return Runs(found[: wanted.max_runs], "; ".join(reason for reason in reasons if reason), repeats)


def _repeats(again: Sequence[Again], joined: Stretches, namer: RegionNamer) -> list[Repeat]:
    """Return those of the repeats at whose first address something is listed."""
    ends = joined.va + (joined.span - np.uint64(1))
    found = []
    for each in sorted(again, key=lambda each: each.va):
        first = each.va - each.span
        at = int(np.searchsorted(ends, np.uint64(first)))
        if at < len(joined) and int(joined.va[at]) < each.va:
            end = VirtAddr(each.va + each.times * each.span - 1)
            where = VirtAddr(each.va), end, VirtAddr(first), each.times, each.span, each.level
            found.append(Repeat(*where, PhysAddr(each.table_pa), namer(each.va)))
    return found


@dataclass(frozen=True)
class LeafKind:
    """One combination of level, attributes and hierarchical bits, decoded."""

    level: int
    size: int
    attributes: Attributes
    permissions: Permissions
    bits: int


class LeafKinds:
    """Decode each distinct combination of level, attributes and hierarchical bits once."""

    def __init__(self, regime: Regime, wanted: MapFilter) -> None:
        self._regime = regime
        self._wanted = wanted
        self.decoded: list[LeafKind] = []
        self._known: dict[tuple[int, int, int], int] = {}

    def of(self, part: Fragments) -> NDArray[np.intp]:
        """Return the number of each fragment's combination, -1 where the filter rejects it."""
        bits, inverse = np.unique(without_addresses(part.raw, part.level, self._regime), return_inverse=True)
        code = inverse.reshape(-1) * 16 + part.hierarchy
        codes, inverse = np.unique(code, return_inverse=True)
        numbers = [self._number(part.level, int(bits[c >> 4]), c & 15) for c in codes.tolist()]
        found: NDArray[np.intp] = np.array(numbers, dtype=np.intp)[inverse.reshape(-1)]
        return found

    def _number(self, level: int, raw: int, hierarchy: int) -> int:
        key = (level, raw, hierarchy)
        if key not in self._known:
            leaf = decode(raw, level, self._regime)
            above = decode(hierarchy << HIERARCHY_SHIFT | 3, self._regime.start_level, self._regime)
            assert leaf.attributes is not None
            permissions = effective(leaf, [above], self._regime)
            accepted = self._accepts(leaf.attributes, permissions)
            self._known[key] = len(self.decoded) if accepted else -1
            if accepted:
                size = self._regime.entry_size(level)
                self.decoded.append(LeafKind(level, size, leaf.attributes, permissions, raw))
        return self._known[key]

    def _accepts(self, attributes: Attributes, permissions: Permissions) -> bool:
        wanted = self._wanted
        return (
            wanted.ng in (None, attributes.ng)
            and wanted.contiguous in (None, attributes.contiguous)
            and wanted.memory_type.lower() in (attributes.memory_type or "").lower()
            and set(wanted.el1) <= set(permissions.el1)
            and set(wanted.el0) <= set(permissions.el0)
            and not set(wanted.el1_not) & set(permissions.el1)
            and not set(wanted.el0_not) & set(permissions.el0)
        )


class Collector:
    """Take fragments, keep those that the filter accepts, joined as far as they can be."""

    def __init__(self, kinds: LeafKinds, regime: Regime, wanted: MapFilter) -> None:
        self._kinds = kinds
        self._wanted = wanted
        self._sizes = {level: regime.entry_size(level) for level in levels_of(regime)}
        self._done: list[Stretches] = []
        self._counts: dict[int, int] = {}
        self._open: dict[int, Stretches] = {}
        """The last one of each level, which the next chunk may go on with."""
        self.full = False
        """True if fragments were left out because there are more than can be listed."""

    def add(self, part: Fragments) -> bool:
        """Take the fragments of one chunk; False once the level has all of its that can be listed."""
        level = part.level
        if len(part):
            number = self._kinds.of(part)
            kept = np.nonzero(number >= 0)[0]
            span = part.count[kept].astype(np.uint64) * np.uint64(self._sizes[level])
            again = part.again[kept]
            found = Stretches(part.va[kept], part.pa[kept], span, number[kept], ~again, again)
            joined = self._merge(Stretches.joined([self._open.get(level, found[:0]), found]))
            self._open[level] = joined[-1:]
            self._done.append(joined[:-1])
            self._counts[level] = self._counts.get(level, 0) + max(len(joined) - 1, 0)
        more = self._counts.get(level, 0) < self._wanted.max_runs
        self.full |= not more
        return more

    def result(self) -> Stretches:
        """Return all in order of va."""
        none = np.zeros(0, dtype=np.uint64)
        flags = none.astype(np.bool_)
        nothing = Stretches(none, none, none, none.astype(np.intp), flags, flags)
        joined = Stretches.joined([nothing, *self._done, *self._open.values()])
        return joined[np.argsort(joined.va, kind="stable")]

    def _merge(self, parts: Stretches) -> Stretches:
        parts = _merge(parts, strict=True)
        return _merge(parts, strict=False) if self._wanted.merge_pa else parts


def _merge(parts: Stretches, *, strict: bool) -> Stretches:
    """Join neighbours; `strict` asks for physical addresses that follow each other."""
    if not len(parts):
        return parts
    same = (parts.va[:-1] + parts.span[:-1]) == parts.va[1:]
    same &= parts.kind[:-1] == parts.kind[1:]
    if strict:
        follows = (parts.pa[:-1] + parts.span[:-1]) == parts.pa[1:]
        follows &= parts.whole[:-1] & parts.whole[1:]
        same &= follows | (parts.again[:-1] & parts.again[1:] & (parts.pa[:-1] == parts.pa[1:]))
    first = np.nonzero(np.concatenate([[True], ~same]))[0]
    alone = np.diff(np.append(first, len(parts))) == 1
    return Stretches(
        va=parts.va[first],
        pa=parts.pa[first],
        span=np.add.reduceat(parts.span, first),
        kind=parts.kind[first],
        whole=parts.whole[first] & (alone | strict),
        again=parts.again[first] & (alone | strict),
    )


def _runs(joined: Stretches, kinds: LeafKinds, regions: RegionNamer, limit: int) -> list[Run]:
    """Make the objects that are shown."""
    found = []
    columns = (joined.va, joined.pa, joined.span, joined.kind, joined.whole, joined.again)
    for va, pa, span, kind, whole, again in zip(*(c[:limit].tolist() for c in columns), strict=True):
        distinct = kinds.decoded[kind]
        found.append(
            Run(
                va_start=VirtAddr(va),
                va_end=VirtAddr(va + span - 1),
                pa_start=PhysAddr(pa),
                level=distinct.level,
                leaf_size=distinct.size,
                count=span // distinct.size,
                attributes=distinct.attributes,
                permissions=distinct.permissions,
                region=regions(va),
                pa_contiguous=whole,
                bits=distinct.bits,
                repeated=again,
            )
        )
    return found


def _by_region(found: list[Run], regions: RegionNamer, edges: Sequence[int]) -> list[Run]:
    """Cut runs where another region begins; a leaf has the name of its first byte."""
    cut: list[Run] = []
    for run in found:
        inside = edges[bisect_right(edges, run.va_start) : bisect_right(edges, run.va_end)]
        if not run.pa_contiguous and not run.repeated:
            inside = ()
        rest = run
        for edge in inside:
            at = align_up(edge, run.leaf_size)
            name = regions(at) if at <= run.va_end else rest.region
            if name == rest.region:
                continue
            leaves = (at - rest.va_start) // run.leaf_size
            cut.append(replace(rest, va_end=VirtAddr(at - 1), count=leaves))
            pa = PhysAddr(rest.pa_start + (0 if run.repeated else leaves * run.leaf_size))
            rest = replace(rest, va_start=VirtAddr(at), pa_start=pa, count=rest.count - leaves, region=name)
        cut.append(rest)
    return cut
