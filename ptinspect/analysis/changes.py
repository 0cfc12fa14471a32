"""What a comparison of two snapshots says."""

from __future__ import annotations

from dataclasses import dataclass, field

from ptinspect.arch.bits import PhysAddr, VirtAddr

UNREADABLE = "unreadable"
"""Kind of a change that is a table which cannot be compared."""


@dataclass(frozen=True)
class LevelDiff:
    """Count the descriptors of one level that differ; one may be counted under several kinds.

    A table that is reached at several addresses counts once.
    """

    level: int
    """Level of the tables, -1 to 3."""
    name: str
    """Linux's name of it."""
    tables: int
    """Tables that were compared."""
    changed: int
    """Descriptors whose eight bytes differ in any way."""
    marked: int
    """Table descriptors whose bit 11 became set."""
    unmarked: int
    """Table descriptors whose bit 11 became clear."""
    ng_set: int
    """Leaves whose nG became set."""
    ng_cleared: int
    """Leaves whose nG became clear."""
    lost: int
    """Valid before, invalid (or reserved) after."""
    new: int
    """Invalid (or reserved) before, valid after."""
    retargeted: int
    """Valid both times and of one kind, with another output or next table address."""
    attributes: int
    """Valid both times and of one kind, with other attributes than bit 11."""
    kind: int
    """Valid both times, but a table before and a block after, or the reverse."""
    invalid_changed: int
    """Invalid both times, with other contents."""
    unreadable: int
    """Tables that one snapshot or both could not read: nothing is known of them."""


@dataclass(frozen=True)
class Change:
    """Show one descriptor that differs in more than bit 11, or one table that cannot be compared."""

    va_start: VirtAddr
    """First address that it translates; the lowest compared, if its table is reached several times."""
    va_end: VirtAddr
    """Last address that it translates."""
    level: int
    """Level of its table."""
    descriptor_pa: PhysAddr
    """Where it is in the first snapshot; for an unreadable table, where the table is."""
    before: int | None
    """Raw value in the first snapshot; None for an unreadable table."""
    after: int | None
    """Raw value in the second."""
    kinds: tuple[str, ...]
    """Words of compare.KINDS, or `unreadable`."""
    descriptor_pa_after: PhysAddr
    """Where it is in the second snapshot; another address if its table moved."""
    older: bool = False
    """True if it leads elsewhere and its bit 11 is clear: an older value, if the rewrite lies between."""
    leaves_before: int = 0
    """Leaves at or below it in the first snapshot; counted where a mapping was lost, new or moved."""
    bytes_before: int = 0
    """Bytes that those leaves map."""
    leaves_after: int = 0
    """The same in the second snapshot."""
    bytes_after: int = 0
    """The same in the second snapshot."""
    note: str = ""
    """Which snapshot could not read the table."""


@dataclass(frozen=True)
class Diff:
    """Hold the difference of two snapshots."""

    a: str
    """Name of the first."""
    b: str
    """Name of the second."""
    levels: tuple[LevelDiff, ...]
    """One for each level of the regime, root first."""
    changes: tuple[Change, ...]
    """What is more than bit 11, by level and address; at most the number asked for."""
    changes_total: int
    """How many there are, listed or not."""
    only_bit11: bool
    """True if all was compared, and nothing but bit 11 of valid descriptors differs."""
    complete: bool
    """False if parts of the trees could not be compared; `notes` says why."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know: other roots, a part only, incomplete captures."""

    @property
    def changed(self) -> int:
        """How many descriptors differ in any way."""
        return sum(level.changed for level in self.levels)
