"""Every table of a snapshot, entry by entry, with the state that a picture colours it by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.descriptor import Kind, decode
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.snapshot.classify import (
    BIT11,
    K_INVALID,
    K_RESERVED,
    K_TABLE,
    KIND_NAMES,
    address_bits,
    attribute_bits,
    kinds,
)
from ptinspect.snapshot.index import TableIndex
from ptinspect.snapshot.model import Snapshot

STATES = (
    "invalid",
    "table, no mark",
    "table, marked",
    "leaf, global",
    "leaf, nG",
    "reserved",
    "invalid, not zero",
    "unreadable",
    "marked",
    "became nG",
    "mark lost",
    "nG lost",
    "lost",
    "new",
    "points elsewhere",
    "other attributes",
)
"""State by code; from MARKED on, what changed since another snapshot."""
(
    S_INVALID,
    S_TABLE,
    S_TABLE_MARKED,
    S_GLOBAL,
    S_NG,
    S_RESERVED,
    S_NOT_ZERO,
    S_UNREADABLE,
    S_MARKED,
    S_BECAME_NG,
    S_UNMARKED,
    S_BECAME_GLOBAL,
    S_LOST,
    S_NEW,
    S_MOVED,
    S_ATTRIBUTES,
) = range(len(STATES))

MAX_TABLES = 16_384
"""How many tables a picture holds: 64 MiB of descriptors at 4K."""
MAX_PATTERNS = 4096
"""How many different sets of attributes are explained."""

Words = NDArray[np.uint64]
States = NDArray[np.uint8]
"""Codes of STATES."""
ADDRESS_FIELDS = ("output address", "next table")


@dataclass(frozen=True)
class Pattern:
    """Explain one set of attributes: descriptors that differ in nothing but their address."""

    level: int
    """Level of the table it is in."""
    kind: str
    """A word of KIND_NAMES."""
    bits: int
    """The descriptor without its address."""
    fields: tuple[tuple[str, str, str], ...]
    """Name, bits and meaning of each field but the address."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Hold the tables of a snapshot for a picture; arrays of one length but `raw` and `states`."""

    level: NDArray[np.int8]
    """Level of each table."""
    pa: Words
    """Where it is."""
    va: Words
    """First address that it translates."""
    raw: Words
    """Descriptors, shape (tables, entries)."""
    states: NDArray[np.uint8]
    """State codes of the descriptors alone, same shape."""
    patterns: tuple[Pattern, ...]
    """Every set of attributes that occurs, as far as MAX_PATTERNS allows."""
    left_out: int
    """Tables that are not shown because there are more than MAX_TABLES."""


def atlas(snapshot: Snapshot) -> Atlas:
    """Return the tables of a snapshot with the state of each descriptor."""
    tables = snapshot.tables
    count = min(len(tables), MAX_TABLES)
    raw = tables.raw[:count]
    states = np.zeros(raw.shape, dtype=np.uint8)
    patterns: list[Pattern] = []
    index = TableIndex(tables)
    for level in levels_of(snapshot.regime):
        rows = index.rows(level)
        part = slice(rows.start, min(rows.stop, count))
        if part.start < part.stop:
            states[part] = _states(raw[part], level, snapshot.regime)
            patterns += _patterns(raw[part], level, snapshot.regime, MAX_PATTERNS - len(patterns))
    states[~tables.readable[:count]] = S_UNREADABLE
    return Atlas(
        tables.level[:count],
        tables.pa[:count],
        tables.va[:count],
        raw,
        states,
        tuple(patterns),
        len(tables) - count,
    )


def changes(before: Snapshot, after: Snapshot) -> NDArray[np.uint8]:
    """Return the state of each descriptor of `after`, and where it changed since `before`, how.

    Tables are paired by level and the first address that they translate; one that `before` does not
    hold is shown as it stands. Shape: that of `atlas(after).states`.
    """
    shown = atlas(after)
    states = shown.states.copy()
    index = TableIndex(before.tables)
    for level in levels_of(after.regime):
        mine = np.nonzero(shown.level == level)[0]
        rows = index.rows(level)
        addresses = before.tables.va[rows]
        if not mine.size or not addresses.size:
            continue
        slot = np.minimum(np.searchsorted(addresses, shown.va[mine]), addresses.size - 1)
        theirs = rows.start + slot
        found = (addresses[slot] == shown.va[mine]) & before.tables.readable[theirs]
        found &= after.tables.readable[mine]
        mine, theirs = mine[found], theirs[found]
        changed = _changed(before.tables.raw[theirs], shown.raw[mine], level, after.regime)
        states[mine] = np.where(changed > 0, changed, states[mine])
    return states


def count_states(states: States) -> dict[str, int]:
    """Return how many descriptors are in each state, by its name; empty entries are left out."""
    numbers = np.bincount(states.reshape(-1), minlength=len(STATES)).tolist()
    counted = enumerate(zip(STATES, numbers, strict=True))
    return {name: n for code, (name, n) in counted if n and code != S_INVALID}


def delta_planes(raw: Words) -> bytes:
    """Return 64-bit words as differences, byte plane by byte plane: neighbouring descriptors are alike.

    The first word is kept; word i is the sum of the first i + 1 differences modulo 2^64.
    """
    flat = np.ascontiguousarray(raw, dtype="<u8").reshape(-1)
    delta = np.diff(flat, prepend=np.uint64(0)).astype("<u8")
    return np.ascontiguousarray(delta.view(np.uint8).reshape(-1, 8).T).tobytes()


def _states(raw: Words, level: int, regime: Regime) -> NDArray[np.uint8]:
    kind, bit11 = kinds(raw, level, regime), (raw & BIT11) != 0
    invalid = np.where(raw == 0, S_INVALID, S_NOT_ZERO)
    leaf = np.where(bit11, S_NG, S_GLOBAL)
    table = np.where(bit11, S_TABLE_MARKED, S_TABLE)
    found = np.where(kind == K_TABLE, table, leaf)
    found = np.where(kind == K_INVALID, invalid, found)
    return np.where(kind == K_RESERVED, S_RESERVED, found).astype(np.uint8)


def _changed(old: Words, new: Words, level: int, regime: Regime) -> NDArray[np.uint8]:
    """Return a code for each descriptor that differs, 0 for the others."""
    was, now = kinds(old, level, regime), kinds(new, level, regime)
    valid_old, valid_new = _valid(was), _valid(now)
    table, set_now = now == K_TABLE, (new & BIT11) != 0
    mask = np.where(
        table,
        np.uint64(address_bits(level, regime, table=True)),
        np.uint64(address_bits(level, regime)),
    )
    differs = old ^ new
    found = np.where(table, np.where(set_now, S_MARKED, S_UNMARKED), 0)
    found = np.where(~table, np.where(set_now, S_BECAME_NG, S_BECAME_GLOBAL), found)
    found = np.where((differs & ~BIT11) != 0, S_ATTRIBUTES, found)
    found = np.where(((differs & mask) != 0) | (was != now), S_MOVED, found)
    found = np.where(valid_old & ~valid_new, S_LOST, found)
    found = np.where(~valid_old & valid_new, S_NEW, found)
    found = np.where(~valid_old & ~valid_new, S_NOT_ZERO, found)
    return np.where(differs == 0, 0, found).astype(np.uint8)


def _valid(kind: NDArray[np.uint8]) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = (kind != K_INVALID) & (kind != K_RESERVED)
    return valid


def _patterns(raw: Words, level: int, regime: Regime, room: int) -> list[Pattern]:
    kind = kinds(raw, level, regime)
    found: list[Pattern] = []
    for code, name in enumerate(KIND_NAMES):
        if code in (K_INVALID, K_RESERVED):
            continue
        keep = np.uint64(attribute_bits(level, regime, table=code == K_TABLE) | 3)
        for bits in np.unique(raw[kind == code] & keep)[: max(room - len(found), 0)].tolist():
            found.append(Pattern(level, name, bits, _explained(bits, level, regime)))
    return found


def _explained(bits: int, level: int, regime: Regime) -> tuple[tuple[str, str, str], ...]:
    descriptor = decode(bits, level, regime)
    assert descriptor.kind is not Kind.INVALID
    return tuple(
        (field.name, field.bits, f"{field.value:#x}: {field.meaning}")
        for field in descriptor.explain()
        if not field.name.startswith(ADDRESS_FIELDS)
    )
