"""What a snapshot does not show of the tables under its root: whoever judges it has to say so."""

from __future__ import annotations

import numpy as np

from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window


def unseen(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what was not captured, one sentence each; empty if every table under the root was read.

    A snapshot lacks what lies outside its range of addresses, what was left out after so many tables or
    below a level, and the contents of tables that could not be read.
    """
    found = []
    window = Window.of(snapshot.va_range, snapshot.regime)
    if not window.whole:
        found.append(f"{snapshot.name}: only {window.low:#x}..{window.high:#x} was captured")
    if snapshot.truncated:
        found.append(f"{snapshot.name}: incomplete, {snapshot.truncated}")
    unreadable = int(np.count_nonzero(~snapshot.tables.readable))
    if unreadable:
        tables = "1 table" if unreadable == 1 else f"{unreadable} tables"
        found.append(f"{snapshot.name}: {tables} could not be read")
    return tuple(found)
