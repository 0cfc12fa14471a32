"""Rules on what is mapped, and on memory that two mappings lead to with attributes that do not agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.expand import Expansion
from ptinspect.analysis.findings import Finding, Findings, Mapping
from ptinspect.analysis.map import Collector, LeafKind, LeafKinds, MapFilter, Stretches
from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr
from ptinspect.arch.sysregs import cacheability
from ptinspect.dataclass import dataclass, replace
from ptinspect.memory.ranges import Range, Ranges
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.walk import walk
from ptinspect.tables.window import Window

Flags = NDArray[np.bool_]
DEVICE, NON_CACHEABLE = "Device", "Non-cacheable"
CACHEABILITY = {"NC": NON_CACHEABLE, "WT": "Write-Through", "WB": "Write-Back"}
Sort = tuple[str, str]
"""Type and cacheability of memory, and its shareability where that counts."""
SHARES = ("Non-shareable", "reserved", "Outer Shareable", "Inner Shareable")
"""Meaning of SH (Arm ARM D8.6.2)."""


@dataclass(frozen=True, eq=False)
class Mappings:
    """Hold the stretches of a snapshot in order of va, a shared table once for each set of inherited bits."""

    stretches: Stretches
    kinds: Sequence[LeafKind]
    """What `stretches.kind` stands for."""
    truncated: str
    """Why some are left out; empty if none are."""

    def __getitem__(self, which: Flags) -> Mappings:
        return Mappings(self.stretches[np.flatnonzero(which)], self.kinds, self.truncated)

    def __len__(self) -> int:
        return len(self.stretches)

    def of_kind(self, wanted: Callable[[LeafKind], bool]) -> Mappings:
        """Return those of the kinds that are wanted."""
        chosen = np.array([wanted(kind) for kind in self.kinds], dtype=np.bool_)
        return self[chosen[self.stretches.kind]] if len(self) else self

    def within(self, ranges: Sequence[Range]) -> Flags:
        """Tell which begin in one of some ranges of virtual addresses."""
        found = np.zeros(len(self), dtype=np.bool_)
        for start, end in ranges:
            found |= (self.stretches.va >= np.uint64(start)) & (self.stretches.va <= np.uint64(end - 1))
        return found

    @property
    def physical(self) -> Ranges:
        """The physical addresses that they lead to."""
        return Ranges.of(self.stretches.pa, self.stretches.span)

    @property
    def virtual(self) -> Ranges:
        """The virtual addresses that they map."""
        return Ranges.of(self.stretches.va, self.stretches.span)

    def leading_to(self, pa: int) -> int:
        """Return the lowest virtual address that leads to a physical one, which one of them must."""
        pas, spans = self.stretches.pa, self.stretches.span
        at = int(np.flatnonzero((pas <= np.uint64(pa)) & (np.uint64(pa) - pas < spans))[0])
        return int(self.stretches.va[at]) + pa - int(pas[at])


def mappings(snapshot: Snapshot) -> Mappings:
    """Return all that a snapshot maps; what EL0 may do is given as if TCR_EL1.E0PD did not keep it out."""
    regime = replace(snapshot.regime, e0pd=False)
    kinds = LeafKinds(regime, MapFilter())
    collector = Collector(kinds, regime, MapFilter(max_runs=1 << 62))
    expansion = Expansion(snapshot, Window.of(snapshot.va_range, regime), once=True)
    expansion.run(collector.add)
    return Mappings(collector.result(), kinds.decoded, expansion.truncated)


@dataclass(frozen=True)
class Places:
    """Name areas of the kernel's half; one that is not known is empty."""

    text: tuple[Range, ...] = ()
    linear: tuple[Range, ...] = ()
    vmalloc: tuple[Range, ...] = ()
    """The area in which vmap() and DMA pools map."""
    modules: tuple[Range, ...] = ()
    """Modules, and BPF programs where they lie with them."""
    fixmap: tuple[Range, ...] = ()
    """The fixmap, in which a page is mapped for a moment to be written."""


def check_mappings(snapshot: Snapshot, places: Places, out: Findings) -> None:
    """Apply the rules on mappings of one snapshot.

    Two mappings of the same memory with other types, cacheability or shareability are mismatched (Arm ARM
    B2.16, mismatched memory attributes). What the kernel itself does is known and no finding: DMA pools of
    memory that the linear map holds as Write-Back (dma_common_contiguous_remap() in kernel/dma), and pages
    that are written through the fixmap (patch_map() in arch/arm64, pgd_set_fixmap()).
    """
    found = mappings(snapshot)
    if found.truncated:
        out.unseen.append(f"{snapshot.name}: {found.truncated}")
    judge = _Judge(snapshot, found, places, out)
    judge.attributes()
    if snapshot.regime.upper or snapshot.regime.name == "EL2":
        judge.writable_executable()
    if snapshot.regime.upper:
        judge.user_access()
        judge.writable_aliases()


class _Judge:
    """Judge the mappings of one snapshot."""

    def __init__(self, snapshot: Snapshot, found: Mappings, places: Places, out: Findings) -> None:
        self._snapshot, self._found, self._places, self._out = snapshot, found, places, out
        self._memory = SnapshotMemory(snapshot)
        self._regime = replace(snapshot.regime, e0pd=False)

    # -- one mapping -----------------------------------------------------------------------------

    def writable_executable(self) -> None:
        """Find what EL1, or EL2 in its own tables, can write to and execute, the tables above considered."""
        bad = self._found.of_kind(lambda kind: {"w", "x"} <= set(kind.permissions.el1))
        self._each("writable-executable", bad, f"{self._regime.privileged} may write to it and execute it")

    def user_access(self) -> None:
        """Find what EL0 may read, write or execute in the kernel's half."""
        bad = self._found.of_kind(lambda kind: kind.permissions.el0 != "---")
        held = "; E0PD keeps EL0 out" if self._snapshot.regime.e0pd else ""
        self._each("user-access", bad, f"EL0 has access to it{held}")

    def _each(self, rule: str, bad: Mappings, why: str) -> None:
        """Make a finding of each range of virtual addresses."""
        ranges = bad.virtual
        room = self._out.room(rule)
        for start, end in ranges.pairs()[:room]:
            self._add(rule, f"{end - start:#x} bytes, {{}}: {why}", end - start, (start,))
        self._out.count(rule, max(len(ranges) - room, 0), "error")

    # -- two mappings ----------------------------------------------------------------------------

    def attributes(self) -> None:
        """Find memory that is mapped with attributes that do not agree."""
        rule = "alias-attributes"
        if not self._snapshot.regime.mair:
            self._out.skipped[rule] = "MAIR_EL1 is not known"
            return
        sorts = sorted({self._sort(kind) for kind in self._found.kinds})
        found = [(sort, self._found.of_kind(partial(self._is, sort))) for sort in sorts]
        for one, other in combinations(found, 2):
            if DEVICE in (one[0][0], other[0][0]):
                self._pair(rule, *(each[1] for each in sorted((one, other), key=lambda e: e[0][0] != DEVICE)))
            else:
                self._normals(one, other)

    def _normals(self, one: tuple[Sort, Mappings], other: tuple[Sort, Mappings]) -> None:
        """Compare two sorts of Normal memory."""
        rule = "alias-attributes"
        (sort, first), (against, second) = one, other
        if NON_CACHEABLE not in (sort[0], against[0]):
            self._pair(rule, *sorted((first, second), key=lambda found: int(found.stretches.span.sum())))
            return
        loose, cached = (first, second) if sort[0] == NON_CACHEABLE else (second, first)
        places = self._places
        if not places.linear or not places.vmalloc:
            self._out.skipped[rule] = "of Non-cacheable memory: where DMA pools are mapped is not known"
            return
        pools = loose.within(places.vmalloc)
        self._pair(rule, loose[~pools], cached)
        self._pair(rule, loose[pools], cached[~cached.within(places.linear)])

    def writable_aliases(self) -> None:
        """Find kernel text and read-only data that can be written to elsewhere."""
        rule, places = "writable-alias", self._places
        kept = self._found.of_kind(lambda kind: "w" not in kind.permissions.el1)
        code = kept.of_kind(lambda kind: "x" in kind.permissions.el1)
        written = self._found.of_kind(lambda kind: "w" in kind.permissions.el1)
        written = written[~written.within(places.fixmap)]
        if not len(code.virtual.common(Ranges.of_pairs(places.text))):
            self._out.skipped[rule] = "it is not known where the kernel's text lies"
            return
        if not places.fixmap:
            self._out.skipped[rule] = "it is not known where the fixmap lies"
            return
        end = max(last for _, last in places.text)
        pieces = [p for p in kept.virtual.pairs() if any(a < p[1] and p[0] < b for a, b in places.text)]
        image = kept[kept.within(pieces)]
        data = image.of_kind(lambda kind: "x" not in kind.permissions.el1)
        if not data.within([(end, MASK64 + 1)]).any():
            self._out.skipped[rule] = "the kernel's rodata is still writable: its boot has not ended"
            return
        self._pair(rule, written, image)
        modules = code[code.within(places.modules)]
        aliases = self._found[self._found.within(places.linear)]
        sealed = aliases.of_kind(lambda kind: "w" not in kind.permissions.el1)
        if len(sealed.physical.common(modules.physical)):  # rodata=full: aliases follow their modules
            self._pair(rule, written, modules)

    def _pair(self, rule: str, one: Mappings, other: Mappings) -> None:
        """Make a finding of each range of memory that both lead to."""
        if not len(one) or not len(other):
            return
        both = one.physical.common(other.physical)
        room = self._out.room(rule)
        for start, end in both.pairs()[:room]:
            places = one.leading_to(start), other.leading_to(start)
            self._add(rule, f"pa:{start:#x}, {end - start:#x} bytes: {{}}", end - start, places)
        self._out.count(rule, max(len(both) - room, 0), "error")

    # -- evidence --------------------------------------------------------------------------------

    def _add(self, rule: str, why: str, size: int, addresses: Iterable[int]) -> None:
        """Make a finding about memory that is mapped at some addresses, the first of which is to blame."""
        mapped = tuple(self._mapping(va) for va in addresses)
        first = mapped[0]
        end = VirtAddr(min(first.va + size - 1, MASK64))
        places = " and ".join(f"{m.text} at {m.va:#x}" for m in mapped)
        where, raw = first.descriptor_pa, first.raw
        self._out.add(
            Finding(rule, "error", first.va, end, first.level, where, raw, why.format(places), mapped)
        )

    def _mapping(self, va: int) -> Mapping:
        """Show how an address is translated."""
        found = walk(self._memory, va, self._snapshot.root.pa, self._regime)
        last = found.steps[-1]
        assert last.raw is not None and last.descriptor is not None and found.permissions is not None
        attributes = last.descriptor.attributes
        assert attributes is not None
        sort = f"{attributes.memory_type}"
        text = f"{sort} {self._regime.privileged} {found.permissions.el1} EL0 {found.permissions.el0}"
        if attributes.sh is not None and not sort.startswith(DEVICE):
            text += f" {SHARES[attributes.sh]}"
        path = tuple((step.level, step.descriptor_pa, step.raw or 0) for step in found.steps)
        pa = PhysAddr(self._regime.output_address(last.raw, last.level))
        pa = pa if found.pa is None else found.pa
        return Mapping(VirtAddr(va), pa, last.level, last.descriptor_pa, last.raw, text, path)

    # -- sorts of memory -------------------------------------------------------------------------

    def _is(self, sort: Sort, kind: LeafKind) -> bool:
        return self._sort(kind) == sort

    def _sort(self, kind: LeafKind) -> Sort:
        """Return what must agree: type and cacheability, and shareability where it counts.

        Device and Normal Non-cacheable memory is always Outer Shareable; hints on allocation, and tagging,
        may differ (Arm ARM D8.6.1, D8.6.2).
        """
        a = kind.attributes
        byte = self._snapshot.regime.mair >> 8 * (a.attr_index or 0) & 0xFF
        if not byte & 0xF0:
            return DEVICE, ""
        outer, inner = (CACHEABILITY[name] for name in cacheability(byte))
        if outer == inner == NON_CACHEABLE:
            return NON_CACHEABLE, ""
        named = outer if outer == inner else f"outer {outer}, inner {inner}"
        return named, SHARES[a.sh or 0]
