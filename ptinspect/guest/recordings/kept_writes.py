"""The writes that made a snapshot's descriptors what they are, kept with it once they were found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

from ptinspect.arch.bits import MASK64, PhysAddr
from ptinspect.dataclass import field_names, replace
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.writers import How, Write
from ptinspect.snapshot.fact_names import WRITERS, position

if TYPE_CHECKING:
    from ptinspect.analysis.diff import Change
    from ptinspect.snapshot.model import Snapshot

MOST = 4096
"""Writes that a snapshot keeps."""
_NUMBERS = frozenset({"pa", "position", "before", "after", "pc", "cpu", "el"})
_TEXTS = frozenset({"place", "instruction", "task", "source"})


def keep(guest: Guest, snapshot: Snapshot, writes: Iterable[Write]) -> None:
    """Add writes to a snapshot in memory; one that was read from a file for one command is left alone."""
    names = [name for name, known in guest.snapshots.items() if known is snapshot]
    found = {**kept(snapshot), **{write.pa: write for write in writes}}
    if not names or not found:
        return
    text = json.dumps([vars(write) for write in list(found.values())[-MOST:]])
    meta = replace(snapshot.meta, extra={**snapshot.meta.extra, WRITERS: text})
    for name in names:
        guest.snapshots[name] = replace(snapshot, meta=meta)


def kept(snapshot: Snapshot) -> dict[PhysAddr, Write]:
    """Return the writes that a snapshot keeps, by descriptor; those that are damaged are left out."""
    found = {}
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        for item in json.loads(snapshot.meta.extra.get(WRITERS, "[]"))[:MOST]:
            fields = {"source": "", **{name: item[name] for name in field_names(Write) if name in item}}
            if _sound(fields):
                found[PhysAddr(item["pa"])] = Write(**{**fields, "calls": tuple(item["calls"])})
    return found


def _sound(item: Mapping[str, Any]) -> bool:
    """Tell whether something that a file holds is a write."""
    if set(item) != set(field_names(Write)):
        return False
    numbers = [item[name] for name in _NUMBERS]
    numbers += [item[name] for name in ("va", "pid") if item[name] is not None]
    texts = [item[name] for name in _TEXTS] + list(item["calls"])
    return (
        all(type(number) is int and 0 <= number <= MASK64 for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and item["how"] in get_args(How)
        and (item["mmu_on"] is None or isinstance(item["mmu_on"], bool))
    )


def later_of(
    changes: Sequence[Change], a: Snapshot, b: Snapshot
) -> tuple[Snapshot, list[tuple[PhysAddr, int | None]]]:
    """Return which of two snapshots was captured later in a recording, and what each change is there."""
    first, last = position(a.meta.extra), position(b.meta.extra)
    if first is not None and last is not None and first > last:
        return a, [(change.descriptor_pa, change.before) for change in changes]
    return b, [(change.descriptor_pa_after, change.after) for change in changes]


def of_changes(changes: Sequence[Change], a: Snapshot, b: Snapshot) -> dict[int, Write | None]:
    """Return the writes that are known of the changes between two snapshots, by the changes' numbers."""
    later, places = later_of(changes, a, b)
    known = kept(later)
    found = {n: known[pa] for n, (pa, _) in enumerate(places) if pa in known}
    return {n: write for n, write in found.items() if write.after == places[n][1]}
