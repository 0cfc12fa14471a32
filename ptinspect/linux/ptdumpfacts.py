"""What the kernel's text form depends on besides arithmetic, found in a snapshot."""

from __future__ import annotations

import numpy as np

from ptinspect.linux.ptdump import Facts, least_bits, markers, shadow_places
from ptinspect.linux.releases import (
    EARLY_PAGE,
    Release,
    TextForm,
    has_data_slot,
    has_early_page,
    parse,
)
from ptinspect.paging.walk import walk
from ptinspect.snapshot.classify import are_leaves
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot

PXN = np.uint64(1 << 53)


def facts_of(snapshot: Snapshot, form: TextForm) -> tuple[Facts, list[str]]:
    """Return the facts, and what had to be assumed."""
    regime = snapshot.regime
    memory = SnapshotMemory(snapshot)
    shadow = shadow_places(form, regime)
    kasan = any(walk(memory, va, snapshot.root.pa, regime).pa is not None for va in shadow)
    plain = {marker.name: marker.address for marker in markers(form, regime, Facts(kasan))}
    low, top = plain["Fixmap start"] - (4 << 20), plain["Fixmap end"]
    tables = snapshot.tables
    size = regime.entry_size(3)
    rows = np.flatnonzero((tables.level == 3) & (tables.va < np.uint64(top)))
    rows = rows[tables.va[rows] + np.uint64(size * regime.entries(3) - 1) >= np.uint64(low)]
    row, slot = np.nonzero(are_leaves(tables.raw[rows], 3, regime))
    raw = tables.raw[rows][row, slot]
    va = tables.va[rows][row] + slot.astype(np.uint64) * np.uint64(size)
    text = va[((raw & PXN) == 0) & (va >= np.uint64(low)) & (va < np.uint64(top))]
    assumed = []
    if regime.va_bits > least_bits(regime) and form.since < (6, 9):
        assumed.append("the kernel is taken to have been started on a CPU with all its address bits")
    release = parse(snapshot.meta.kernel) or Release(*form.since, 0)
    early_page = has_early_page(release)
    if release.series > EARLY_PAGE[:2]:
        assumed.append("the slots for early mappings are taken to have the page that 6.12.111 gave them")
    slot_behind = has_data_slot(release)
    vmemmap = form.since >= (5, 17) or _in_use(snapshot, plain["vmemmap start"], plain["vmemmap end"])
    if not text.size:
        assumed.append("no KPTI trampoline is mapped: where the fixmap begins depends on the configuration")
        return Facts(kasan, vmemmap=vmemmap, early_page=early_page), assumed
    return Facts(kasan, int(text.min()), slot_behind, vmemmap, early_page), assumed


def _in_use(snapshot: Snapshot, low: int, high: int) -> bool:
    """Tell whether a table of the last two levels begins in a range: something is mapped there."""
    tables = snapshot.tables
    chosen = (tables.level >= 2) & (tables.va >= np.uint64(low)) & (tables.va <= np.uint64(high - 1))
    return bool(tables.raw[chosen].any())
