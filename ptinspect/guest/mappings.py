"""What the tables of a guest or of a snapshot map: runs of leaves, mixed groups, ways to an address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from ptinspect.arch.bits import PhysAddr, VirtAddr, bit
from ptinspect.arch.levels import level_number
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, PtinspectError
from ptinspect.guest.capturing import capture_of, snapshot_of
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import names
from ptinspect.guest.regions import names_of
from ptinspect.guest.roots import source
from ptinspect.guest.table_choice import Tables

if TYPE_CHECKING:
    from ptinspect.analysis.contiguous import MixedGroup
    from ptinspect.analysis.find import Hit
    from ptinspect.analysis.map import MapFilter, Repeat, Run
    from ptinspect.snapshot.model import Snapshot

Item = TypeVar("Item")
MOST_WAYS = 16
"""Most addresses of one place that are looked for under each root."""


@dataclass(frozen=True)
class Listed(Generic[Item]):
    """Join what was found in tables with the snapshot that holds them."""

    snapshot: Snapshot
    """The snapshot that was named, or a capture of the guest."""
    items: Sequence[Item]
    truncated: str = ""
    """Why it is not all; empty if it is."""
    repeats: Sequence[Repeat] = ()
    """Runs are also where these say."""


def runs_of(guest: Guest, tables: Tables, wanted: MapFilter, levels: Sequence[int | str] = ()) -> Listed[Run]:
    """List runs of leaves (analysis.map); only tables of these levels and addresses are read."""
    from ptinspect.analysis.map import runs

    snapshot, wanted = _chosen(guest, tables, wanted, levels)
    namer, layout = names_of(snapshot)
    found = runs(snapshot, wanted, namer, layout.edges)
    return Listed(snapshot, found, found.truncated, found.repeats)


def mixed_groups_of(
    guest: Guest, tables: Tables, wanted: MapFilter, levels: Sequence[int | str] = ()
) -> Listed[MixedGroup]:
    """List contiguous groups whose entries differ in AF or dirty (analysis.contiguous)."""
    from ptinspect.analysis.contiguous import mixed_groups

    snapshot, wanted = _chosen(guest, tables, wanted, levels)
    found = list(islice(mixed_groups(snapshot, wanted.va_range, wanted.levels), wanted.max_runs))
    return Listed(snapshot, found)


def _chosen(
    guest: Guest, tables: Tables, wanted: MapFilter, levels: Sequence[int | str]
) -> tuple[Snapshot, MapFilter]:
    """Return the snapshot to list, read no deeper than needed, and the filter with levels as numbers."""
    where = source(guest, tables, None if wanted.va_range is None else wanted.va_range[0])
    numbers = frozenset(level_number(level, where.regime.start_level) for level in levels)
    deepest = max(numbers, default=LEVEL_LAST)
    snapshot = capture_of(guest, where, wanted.va_range, max_level=deepest)
    return snapshot, replace(wanted, levels=numbers) if numbers else wanted


def ways_to(guest: Guest, tables: Tables, pa: PhysAddr, limit: int) -> Listed[Hit]:
    """List the virtual addresses that map a physical one, and the tables that it lies in."""
    from ptinspect.analysis.find import find_pa

    snapshot = snapshot_of(guest, tables)
    found = find_pa(snapshot, pa, max_hits=limit)
    return Listed(snapshot, found, found.truncated)


def mapped_at(guest: Guest, pa: PhysAddr) -> Iterator[VirtAddr]:
    """Yield the virtual addresses that lead to a physical one now: kernel's, and those of the chosen CPU."""
    for root in (None, "ttbr0", "ttbr1"):
        with suppress(PtinspectError):
            for hit in ways_to(guest, Tables(root), pa, MOST_WAYS).items:
                if hit.kind == "leaf":
                    yield hit.va


def physical_address(guest: Guest, tables: Tables, chosen: Address) -> PhysAddr:
    """Return the physical address that is meant; a kernel address is translated by the tables.

    Raises GuestError if it is not mapped.
    """
    from ptinspect.tables.walk import walk

    value = chosen.value(names(guest, tables.cpu, tables.snap))
    if chosen.physical or not bit(value, 55):
        return PhysAddr(value)
    where = source(guest, tables, value)
    found = walk(where.memory, value, where.root.pa, where.regime)
    if found.pa is None:
        raise GuestError(f"{value:#x} is not mapped: {found.reason}", f"walk {value:#x} shows why")
    return found.pa
