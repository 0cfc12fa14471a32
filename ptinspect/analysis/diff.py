"""Compare two snapshots descriptor by descriptor."""

from __future__ import annotations

from ptinspect.analysis.changes import UNREADABLE, Change, Diff, LevelDiff
from ptinspect.analysis.compare import KINDS
from ptinspect.analysis.comparison import Comparison
from ptinspect.arch.regime import Regime
from ptinspect.errors import SnapshotError
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window

__all__ = ["KINDS", "MAX_CHANGES", "UNREADABLE", "Change", "Diff", "LevelDiff", "diff"]

MAX_CHANGES = 10_000
"""How many changes are listed unless told otherwise; all are counted."""


def diff(a: Snapshot, b: Snapshot, *, max_changes: int = MAX_CHANGES) -> Diff:
    """Compare the trees of two snapshots, pairing tables by the addresses that they translate.

    Tables are paired by the entries that lead to them, also where the table itself moved. Below a
    descriptor that is lost or new nothing is paired: the change says what hung there. Raises
    SnapshotError if the two have different geometries or no address in common.
    """
    window, notes = _common(a, b)
    worker = Comparison(a, b, window, max_changes)
    levels = worker.run()
    notes += worker.notes()
    complete = worker.complete and not a.truncated and not b.truncated
    return Diff(
        a=a.name,
        b=b.name,
        levels=levels,
        changes=tuple(worker.changes),
        changes_total=worker.total,
        only_bit11=complete and worker.total == 0,
        complete=complete,
        notes=tuple(notes),
    )


def _common(a: Snapshot, b: Snapshot) -> tuple[Window, list[str]]:
    """Return the part that both snapshots hold, and what the reader must know about the two."""
    ra, rb = a.regime, b.regime
    for what, this, that in (
        ("granule", ra.granule, rb.granule),
        ("VA size", ra.va_bits, rb.va_bits),
        ("half", "upper" if ra.upper else "lower", "upper" if rb.upper else "lower"),
        ("descriptor format", _format(ra), _format(rb)),
    ):
        if this != that:
            raise SnapshotError(f"{a.name} and {b.name} cannot be compared: {what} {this} and {that}")
    notes = []
    if a.root.pa != b.root.pa:
        notes.append(f"the roots differ: pa:{a.root.pa:#x} and pa:{b.root.pa:#x}")
    if ra.mair != rb.mair:
        notes.append(f"MAIR_EL1 differs: {ra.mair:#x} and {rb.mair:#x}")
    for snapshot in (a, b):
        if snapshot.truncated:
            notes.append(f"{snapshot.name} is incomplete: {snapshot.truncated}")
    one, other = Window.of(a.va_range, ra), Window.of(b.va_range, rb)
    low, high = max(one.low, other.low), min(one.high, other.high)
    if low > high:
        raise SnapshotError(f"{a.name} and {b.name} have no address in common")
    if not (one.whole and other.whole):
        notes.append(f"only {low:#x}-{high:#x} is in both and was compared")
    return Window(low, high, one.whole and other.whole), notes


def _format(regime: Regime) -> str:
    return "LPA2" if regime.ds else "LPA" if regime.wide_oa else "48-bit"
