"""Rules over two snapshots, one before and one after: what a rewrite of the tables may not do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptinspect.analysis.changes import UNREADABLE, Change, Diff
from ptinspect.analysis.check import PHASE, check
from ptinspect.analysis.diff import diff
from ptinspect.analysis.findings import Finding, Findings, Severity
from ptinspect.analysis.pairs import Descent, Pairs
from ptinspect.arch.bits import PhysAddr, VirtAddr, bit
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.paging.walk import walk
from ptinspect.snapshot.classify import BIT11, address_bits, are_valid
from ptinspect.snapshot.index import TableIndex
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.window import Window

Early = Sequence[tuple[int, int, str]]
"""Physical ranges (first, one past the last, name) of tables of early boot, now out of use."""


@dataclass(frozen=True)
class Pair:
    """Join two snapshots of one root and what is known about the time between."""

    before: Snapshot
    after: Snapshot
    rewrite_done: bool = False
    """True if `after` was captured once the rewrite had ended."""
    early: Early = ()

    @property
    def across(self) -> bool:
        """True if no more than the rewrite lies between the two."""
        first, then = (s.meta.extra.get(PHASE) for s in (self.before, self.after))
        return first in ("before", "during") and then in ("during", "after")

    @property
    def done(self) -> bool:
        """True if every entry of `before` should be marked in `after`."""
        return self.rewrite_done or self.after.meta.extra.get(PHASE) == "after"


def check_pair(pair: Pair, findings: Findings | None = None) -> Findings:
    """Apply the rules of one snapshot to `after`, and those of a pair to both.

    Changes between captures that have more than the rewrite between them (the kernel maps and unmaps)
    are warnings. Raises SnapshotError if the two cannot be compared.
    """
    out = check(pair.after, findings)
    found = diff(pair.before, pair.after)
    out.notes += found.notes
    _changes(pair, found, out)
    _marks(pair, out)
    check_stacks(pair.after, out, pair.before if pair.across else None)
    return out


def _changes(pair: Pair, found: Diff, out: Findings) -> None:
    for change in found.changes:
        rule, why = _judge(pair, change)
        if not rule:
            continue
        severity: Severity = "error" if pair.across or "early" in why else "warning"
        out.add(
            Finding(
                rule, severity, change.va_start, change.va_end, change.level, change.descriptor_pa_after,
                change.after, why,
            )
        )  # fmt: skip


def _judge(pair: Pair, change: Change) -> tuple[str, str]:
    """Return the rule that a change breaks and what shows it; empty if it breaks none."""
    if UNREADABLE in change.kinds or change.before is None or change.after is None:
        return "", ""
    old, new = change.before, change.after
    said = f"{old:#x} became {new:#x}"
    if "lost" in change.kinds:
        return (
            "entry-lost",
            f"{said}: {change.leaves_before} leaves with {change.bytes_before} bytes are gone",
        )
    if "retargeted" in change.kinds or "kind" in change.kinds:
        regime = pair.before.regime
        table = change.level != LEVEL_LAST and new & 3 == 3
        address = address_bits(change.level, regime, table=table)
        early = next(
            (name for low, high, name in pair.early if table and low <= regime.next_table(new) < high), ""
        )
        if (old ^ new) & ~(address | int(BIT11)) == 0 and not new & int(BIT11):
            where = f", which is a table of early boot ({early})" if early else ""
            return "entry-reverted", f"{said}: the same without bit 11, and another address{where}"
        return "entry-retargeted", f"{said}: it leads elsewhere"
    if not pair.across and ("new" in change.kinds or "attributes" not in change.kinds):
        return "", ""
    return "entry-changed", f"{said}: {', '.join(change.kinds)}"


def _marks(pair: Pair, out: Findings) -> None:
    """Find entries that are valid in both and have lost bit 11, or should have it by now."""
    before, after = pair.before, pair.after
    regime = before.regime
    window = _window(before, after)
    index = TableIndex(before.tables), TableIndex(after.tables)
    descent = Descent(*index, regime, window)
    pairs = descent.root()
    exact = after.meta.extra.get(PHASE) == "after"
    for level in levels_of(regime):
        pairs = pairs[descent.readable(pairs)]
        below: list[Pairs] = [pairs[:0]]
        for chunk in descent.chunks(pairs, level):
            both = are_valid(chunk.raw_a, level, regime) & are_valid(chunk.raw_b, level, regime)
            for part in chunk.outside:
                both[0, part] = False
            clear = both & ((chunk.raw_b & BIT11) == 0)
            had = (chunk.raw_a & BIT11) != 0
            same = np.uint64(address_bits(level, regime, table=level != LEVEL_LAST))
            held = ((chunk.raw_a ^ chunk.raw_b) & same) == 0
            bad = [("mark-lost", clear & had & held, "bit 11 was set and is clear again")]
            if pair.done and not exact:
                bad.append(("not-marked", clear & ~had, "bit 11 is clear, and the rewrite has ended"))
            for rule, where, why in bad:
                row, slot = np.nonzero(where)
                for i in range(row.size):
                    va = int(chunk.pairs.va[row[i]]) + (int(slot[i]) << regime.shift(level))
                    at = int(after.tables.pa[chunk.pairs.b[row[i]]]) + 8 * int(slot[i])
                    end = VirtAddr(va + regime.entry_size(level) - 1)
                    value = int(chunk.raw_b[row[i], slot[i]])
                    more = row.size - i - 1 if i + 1 >= out.limit else 0
                    out.add(Finding(rule, "error", VirtAddr(va), end, level, PhysAddr(at), value, why), more)
                    if more:
                        break
            if level < LEVEL_LAST:
                below = descent.gather([*below, descent.children(chunk, level)], level)
        pairs = descent.below(below, level)


def _window(a: Snapshot, b: Snapshot) -> Window:
    one, other = Window.of(a.va_range, a.regime), Window.of(b.va_range, b.regime)
    return Window(max(one.low, other.low), min(one.high, other.high), one.whole and other.whole)


def check_stacks(snapshot: Snapshot, out: Findings, before: Snapshot | None = None) -> None:
    """Ask that the stack pointer of every CPU that is in the kernel translates, and as in `before`."""
    regime = snapshot.regime
    if not regime.upper or snapshot.truncated:
        return
    window = Window.of(snapshot.va_range, regime)
    memory = SnapshotMemory(snapshot)
    for state in snapshot.cpus:
        if (
            not bit(state.sp, 55)
            or not regime.contains(state.sp)
            or not window.low <= state.sp <= window.high
        ):
            continue
        found = walk(memory, state.sp, snapshot.root.pa, regime)
        if found.outcome != "mapped" and regime.contains(state.sp - 1):
            # SP of an empty stack is its top, the first byte of whatever follows: the stack lies below
            below = walk(memory, state.sp - 1, snapshot.root.pa, regime)
            if state.sp % regime.granule == 0 and below.outcome == "mapped":
                continue
        why = "" if found.outcome == "mapped" else f"sp of cpu {state.cpu}, {state.sp:#x}: {found.reason}"
        if not why and before is not None:
            old = walk(SnapshotMemory(before), state.sp, before.root.pa, regime)
            if old.pa is not None and old.pa != found.pa:
                why = f"sp of cpu {state.cpu}, {state.sp:#x}: pa:{found.pa:#x}, and pa:{old.pa:#x} before"
        if why:
            last = found.steps[-1]
            page = VirtAddr(state.sp & ~(regime.granule - 1))
            end = VirtAddr(page + regime.granule - 1)
            out.add(Finding("stack-lost", "error", page, end, last.level, last.descriptor_pa, last.raw, why))
