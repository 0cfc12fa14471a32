"""List what a snapshot maps, as runs of equal attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.descriptor import Attributes, decode
from ptinspect.arch.perms import Permissions, effective
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.paging.bounded import Bounded
from ptinspect.paging.fragments import MAX_VISITS, Expansion, Fragments
from ptinspect.paging.regions import RegionNamer, half_namer
from ptinspect.snapshot.classify import HIERARCHY_SHIFT, address_bits
from ptinspect.snapshot.index import LOWEST_LEVEL
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window

MAX_RUNS = 100_000


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
    max_visits: int = MAX_VISITS
    """Follow no more than this many ways to reach a table, at each level."""


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
    """Level of the leaves."""
    leaf_size: int
    """Bytes that each leaf maps."""
    count: int
    """How many leaves."""
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

    @property
    def size(self) -> int:
        """Bytes that the run maps."""
        return self.count * self.leaf_size


@dataclass(frozen=True, eq=False)
class _Joined:
    """Fragments of all levels in order of va."""

    va: NDArray[np.uint64]
    pa: NDArray[np.uint64]
    count: NDArray[np.int64]
    level: NDArray[np.int8]
    kind: NDArray[np.intp]
    """Position in the list of distinct attributes; those of different levels are distinct."""
    whole: NDArray[np.bool_]
    """Whether the physical addresses follow each other."""

    def __len__(self) -> int:
        return int(self.va.shape[0])


def runs(
    snapshot: Snapshot, chosen: MapFilter | None = None, regions: RegionNamer | None = None
) -> Bounded[Run]:
    """List runs of leaves in order of va, a shared table at each address that reaches it.

    Adjacent leaves are joined if size, attributes, permissions and, unless `merge_pa`, the step in
    physical addresses agree; also across tables. `truncated` of the result says why it is not
    complete: bounds that were hit, tables that are missing or could not be read. Raises UserError if
    `va_range` lies outside the regime's half.
    """
    wanted = chosen or MapFilter()
    window = _window(snapshot, wanted)
    expansion = Expansion(snapshot, window, wanted.pa_range, wanted.levels, wanted.max_visits)
    parts = expansion.run()
    kinds = _Kinds(snapshot.regime, wanted)
    joined = _join(parts, kinds)
    first = snapshot.regime.start_level
    sizes = np.array(
        [snapshot.regime.entry_size(max(level, first)) for level in range(LOWEST_LEVEL, LEVEL_LAST + 1)],
        dtype=np.uint64,
    )
    joined = _merge(joined, sizes, strict=True)
    if wanted.merge_pa:
        joined = _merge(joined, sizes, strict=False)
    reasons = [expansion.truncated]
    if expansion.missing:
        why = f" ({snapshot.truncated})" if snapshot.truncated else ""
        reasons.append(f"{expansion.missing} tables are not in the snapshot{why}")
    if expansion.unreadable:
        reasons.append(f"{expansion.unreadable} tables could not be read")
    if len(joined) > wanted.max_runs:
        reasons.append(f"{wanted.max_runs} of {len(joined)} runs are listed")
    found = _runs(joined, kinds, sizes, regions or half_namer(snapshot.regime), wanted.max_runs)
    return Bounded(found, "; ".join(reason for reason in reasons if reason))


def _window(snapshot: Snapshot, wanted: MapFilter) -> Window:
    """Return the part to list: what was asked for, as far as it was captured."""
    captured = Window.of(snapshot.va_range, snapshot.regime)
    asked = Window.of(wanted.va_range, snapshot.regime)
    low, high = max(captured.low, asked.low), min(captured.high, asked.high)
    return Window(low, high, captured.whole and asked.whole)


class _Kinds:
    """Decode each distinct combination of level, attributes and hierarchical bits once."""

    def __init__(self, regime: Regime, wanted: MapFilter) -> None:
        self._regime = regime
        self._wanted = wanted
        self.decoded: list[tuple[Attributes, Permissions, int]] = []
        self._known: dict[tuple[int, int, int], int] = {}

    def of(self, part: Fragments) -> NDArray[np.intp]:
        """Return the number of each fragment's combination, -1 where the filter rejects it."""
        keep = np.uint64(~address_bits(part.level, self._regime) & (1 << 64) - 1)
        bits, inverse = np.unique(part.raw & keep, return_inverse=True)
        code = inverse.reshape(-1) * 16 + part.hierarchy
        codes, inverse = np.unique(code, return_inverse=True)
        numbers = [self._number(part.level, int(bits[c >> 4]), c & 15) for c in codes.tolist()]
        return np.array(numbers, dtype=np.intp)[inverse.reshape(-1)]

    def _number(self, level: int, raw: int, hierarchy: int) -> int:
        key = (level, raw, hierarchy)
        if key not in self._known:
            leaf = decode(raw, level, self._regime)
            above = decode(hierarchy << HIERARCHY_SHIFT | 3, self._regime.start_level, self._regime)
            assert leaf.attributes is not None
            pair = (leaf.attributes, effective(leaf, [above], self._regime))
            self._known[key] = len(self.decoded) if self._accepts(*pair) else -1
            self.decoded.append((*pair, raw))
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


def _join(parts: Sequence[Fragments], kinds: _Kinds) -> _Joined:
    """Put the fragments that the filter accepts in order of va."""
    numbers = [kinds.of(part) if len(part) else np.zeros(0, dtype=np.intp) for part in parts]
    number = np.concatenate([np.zeros(0, dtype=np.intp), *numbers])
    va = np.concatenate([np.zeros(0, dtype=np.uint64), *(part.va for part in parts)])
    order = np.argsort(va, kind="stable")
    order = order[number[order] >= 0]
    level = np.repeat(np.array([part.level for part in parts], dtype=np.int8), [len(part) for part in parts])
    return _Joined(
        va=va[order],
        pa=np.concatenate([va[:0], *(part.pa for part in parts)])[order],
        count=np.concatenate([np.zeros(0, dtype=np.int64), *(part.count for part in parts)])[order],
        level=level[order],
        kind=number[order],
        whole=np.ones(order.shape[0], dtype=np.bool_),
    )


def _merge(parts: _Joined, sizes: NDArray[np.uint64], *, strict: bool) -> _Joined:
    """Join neighbours; `strict` asks for physical addresses that follow each other."""
    if not len(parts):
        return parts
    span = parts.count.astype(np.uint64) * sizes[parts.level.astype(np.intp) - LOWEST_LEVEL]
    same = (parts.va[:-1] + span[:-1]) == parts.va[1:]
    same &= parts.kind[:-1] == parts.kind[1:]
    if strict:
        same &= (parts.pa[:-1] + span[:-1]) == parts.pa[1:]
    first = np.nonzero(np.concatenate([[True], ~same]))[0]
    alone = np.diff(np.append(first, len(parts))) == 1
    return _Joined(
        va=parts.va[first],
        pa=parts.pa[first],
        count=np.add.reduceat(parts.count, first),
        level=parts.level[first],
        kind=parts.kind[first],
        whole=parts.whole[first] & (alone | strict),
    )


def _runs(
    joined: _Joined, kinds: _Kinds, sizes: NDArray[np.uint64], regions: RegionNamer, limit: int
) -> list[Run]:
    """Make the objects that are shown."""
    found = []
    columns = (joined.va, joined.pa, joined.count, joined.level, joined.kind, joined.whole)
    for va, pa, count, level, kind, whole in zip(*(c[:limit].tolist() for c in columns), strict=True):
        size = int(sizes[level - LOWEST_LEVEL])
        attributes, permissions, bits = kinds.decoded[kind]
        found.append(
            Run(
                va_start=VirtAddr(va),
                va_end=VirtAddr(va + count * size - 1),
                pa_start=PhysAddr(pa),
                level=level,
                leaf_size=size,
                count=count,
                attributes=attributes,
                permissions=permissions,
                region=regions(va),
                pa_contiguous=whole,
                bits=bits,
            )
        )
    return found
