"""What a judgement of snapshots has to name: what one does not hold, and that two do not belong together."""

from __future__ import annotations

import numpy as np

from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, take_rows
from ptinspect.tables.window import Window
from ptinspect.text import counted


def unseen(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what was not captured, one sentence each; empty if every table under the root was read.

    A snapshot lacks what lies outside its range of addresses (B of A..B is not in it), what was left out
    after so many tables or below a level, and the contents of tables that could not be read.
    """
    found = []
    window = Window.of(snapshot.va_range, snapshot.regime)
    if not window.whole:
        found.append(f"{snapshot.name}: only {window.low:#x}..{window.high + 1:#x} was captured")
    if snapshot.truncated:
        found.append(f"{snapshot.name}: incomplete, {snapshot.truncated}")
    count, first = _missing(snapshot, window)
    if count:
        entries = counted(count, "entry points", "entries point")
        found.append(f"{snapshot.name}: {entries} to a table that is not in it, the first for {first:#x}")
    unreadable = int(np.count_nonzero(~snapshot.tables.readable))
    if unreadable:
        found.append(f"{snapshot.name}: {counted(unreadable, 'table')} could not be read")
    return tuple(found)


def strangers(a: Snapshot, b: Snapshot) -> tuple[str, ...]:
    """Return what shows that two snapshots are not of the same tables of one boot, one sentence each."""
    found = []
    this, that = a.meta.kernel, b.meta.kernel
    if this and that and this != that:
        names = [" ".join(kernel.split(maxsplit=3)[:3]) for kernel in (this, that)]
        names = names if names[0] != names[1] else [this, that]
        found.append(f"the kernels differ: {names[0]} and {names[1]}")
    if a.root.pa != b.root.pa:
        found.append(f"the roots differ: pa:{a.root.pa:#x} and pa:{b.root.pa:#x}")
    return tuple(found)


def _missing(snapshot: Snapshot, window: Window) -> tuple[int, int]:
    """Count the entries within the window whose tables are not there; with the lowest address of one."""
    tables, regime = snapshot.tables, snapshot.regime
    index = TableIndex(tables)
    count, lowest = 0, int(regime.va_max)
    for level in range(regime.start_level, LEVEL_LAST):
        rows = index.readable(level)
        links = index.links(take_rows(tables.raw, rows), tables.va[rows], level, regime, window)
        gone = links.va[links.child < 0]
        if gone.size:
            count += int(gone.size)
            lowest = min(lowest, int(gone.min()))
    return count, lowest
