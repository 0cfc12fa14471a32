"""What is counted of the tables of one level: of a snapshot, and of two that are compared."""

from __future__ import annotations

from ptinspect.dataclass import dataclass


@dataclass(frozen=True)
class LevelSummary:
    """Count what the tables of one level hold; a table that is reached several times counts once."""

    level: int
    """Level of the tables, -1 to 3."""
    name: str
    """Linux's name of it."""
    tables: int
    """Translation tables at this level, those included that could not be read."""
    entries_valid: int
    """Descriptors that are tables, blocks or pages."""
    table_descriptors: int
    """Descriptors that point to a next table."""
    table_descriptors_marked: int
    """Those of them in which bit 11 is set."""
    leaves: int
    """Blocks or pages."""
    leaves_ng: int
    """Those of them in which nG is set."""
    leaf_size: int
    """Bytes that a leaf of this level maps; 0 where the level allows none."""
    leaves_contiguous: int
    """Leaves with the contiguous hint."""
    reserved: int
    """Descriptors with an encoding that is reserved at this level; they fault."""
    invalid_nonzero: int
    """Invalid descriptors with contents: swap entries, or present but made invalid."""
    unreadable: int
    """Tables that could not be read; nothing in them is counted."""


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
