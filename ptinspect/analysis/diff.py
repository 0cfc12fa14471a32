"""Compare two snapshots descriptor by descriptor."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

import numpy as np

from ptinspect.analysis.changes import UNREADABLE, Change, Diff, LevelDiff
from ptinspect.analysis.compare import KINDS
from ptinspect.analysis.comparison import Comparison
from ptinspect.tables.model import Snapshot

__all__ = ["KINDS", "MAX_CHANGES", "UNREADABLE", "Change", "Diff", "LevelDiff", "diff"]

MAX_CHANGES = 10_000
"""How many changes are listed unless told otherwise; all are counted."""


def diff(
    a: Snapshot, b: Snapshot, *, max_changes: int = MAX_CHANGES, kinds: Collection[str] = (*KINDS, UNREADABLE)
) -> Diff:
    """Compare the trees of two snapshots, pairing tables by the addresses that they translate.

    Tables are paired by the entries that lead to them, also where the table itself moved. Below a
    descriptor that is lost or new nothing is paired: the change says what hung there. Only changes that
    have one of `kinds` are listed; all are counted. Raises SnapshotError if the two have different
    geometries or no address in common.
    """
    worker = Comparison(a, b)
    wanted = np.uint16(sum(1 << i for i, kind in enumerate(KINDS) if kind in kinds))
    changes: list[Change] = []
    total = 0
    for step in worker.steps():
        total += len(step.beyond)
        room = max(max_changes - len(changes), 0)
        if room and len(step.beyond):
            chosen = step.beyond[(step.beyond.codes & wanted) != 0]
            changes += worker.changes(step, chosen[:room])
    blind = islice(worker.unreadable_tables(), max_changes if UNREADABLE in kinds else 0)
    total += sum(len(pairs) for _, pairs in worker.unreadable)
    changes = sorted([*changes, *blind], key=lambda change: (change.level, change.va_start))[:max_changes]
    notes = worker.notes()
    if total > len(changes) and set(kinds) >= {*KINDS}:
        notes.append(f"{len(changes)} of {total} changes are listed")
    return Diff(
        a=a.name,
        b=b.name,
        levels=tuple(worker.levels),
        changes=tuple(changes),
        changes_total=total,
        only_bit11=worker.complete and total == 0,
        complete=worker.complete,
        notes=tuple(notes),
    )
