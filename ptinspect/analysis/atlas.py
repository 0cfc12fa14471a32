"""Every table of a snapshot, entry by entry, with the state that a picture colours it by."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptinspect.analysis.classify import (
    ATTRIBUTES,
    ELSEWHERE,
    KINDS,
    LOST,
    MARKED,
    NEW,
    NG_CLEARED,
    NG_SET,
    UNMARKED,
)
from ptinspect.analysis.counts import LevelDiff
from ptinspect.analysis.diff import Comparison
from ptinspect.arch.descriptor import Kind, decode
from ptinspect.arch.descriptor_fields import explain
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass, replace
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.index import TableIndex, Tables, parts, take_rows
from ptinspect.tables.kinds import (
    BIT11,
    K_BLOCK,
    K_INVALID,
    K_PAGE,
    K_RESERVED,
    K_TABLE,
    KIND_NAMES,
    are_tables,
    attribute_bits,
    kinds,
    next_tables,
    output_addresses,
)

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
    S_INVALID, S_TABLE, S_TABLE_MARKED, S_GLOBAL, S_NG, S_RESERVED, S_NOT_ZERO, S_UNREADABLE, S_MARKED,
    S_BECAME_NG, S_UNMARKED, S_BECAME_GLOBAL, S_LOST, S_NEW, S_MOVED, S_ATTRIBUTES,
) = range(len(STATES))  # fmt: skip

MAX_TABLES = 16_384
"""How many tables a picture holds: 64 MiB of descriptors at 4K."""
MORE_TABLES = 1024
"""How many further ones it holds that have changes of more than bit 11."""
FIRST_PATTERN = len(KIND_NAMES)
MAX_PATTERNS = 1024
"""How many different sets of attributes of one level and kind are explained, the most frequent ones first."""

Words = NDArray[np.uint64]
Rows = NDArray[np.intp]
States = NDArray[np.uint8]
"""Codes of STATES."""
ADDRESS_FIELDS = ("output address", "next table")


def _state_of_code(code: int) -> int:
    """Return the one state that shows a change; one that changes what is mapped comes first."""
    order = (
        (LOST, S_LOST), (NEW, S_NEW), (ELSEWHERE, S_MOVED), (ATTRIBUTES, S_ATTRIBUTES), (MARKED, S_MARKED),
        (UNMARKED, S_UNMARKED), (NG_SET, S_BECAME_NG), (NG_CLEARED, S_BECAME_GLOBAL),
    )  # fmt: skip
    return next((state for kind, state in order if code & kind), 0)


STATE_OF_CODE = np.array([_state_of_code(code) for code in range(1 << len(KINDS))], dtype=np.uint8)
"""State by change code (analysis.classify); 0 for one that changed nothing that is mapped."""


@dataclass(frozen=True)
class Pattern:
    """Explain one set of attributes: descriptors that differ in nothing but their address."""

    level: int
    """Level of the table it is in."""
    kind: str
    """A word of KIND_NAMES."""
    bits: int
    """The descriptor without its address."""
    distance: int
    """What added to the descriptor gives the address that it leads to, modulo 2^64."""
    fields: tuple[tuple[str, str, str], ...]
    """Name, bits and meaning of each field but the address."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Hold tables for a picture, one row each, in order of level and va.

    A picture of what changed has a row for each pair of tables that was compared, so that a table of the
    later snapshot stands there once for each table whose place it takes; and one for each table that
    only the later snapshot has.
    """

    level: NDArray[np.int8]
    """Level of each table."""
    pa: Words
    va: Words
    """First address that it translates."""
    raw: Words
    """Descriptors, shape (tables, entries)."""
    states: States
    """State of each descriptor, same shape."""
    patterns: tuple[Pattern, ...]
    """Every set of attributes that occurs, as far as MAX_PATTERNS allows."""
    decoded: NDArray[np.uint16]
    """What each descriptor is, shape (tables, entries): FIRST_PATTERN plus the number of its pattern; if it
    is not explained, its kind code."""
    links: NDArray[np.int32]
    """Row of the table that each descriptor leads to, same shape; -1 for none, or one that is not shown.

    Of several rows of one table that of the same address is meant, else the first one.
    """
    left_out: int
    """Rows that are not shown because there are more than MAX_TABLES."""
    hidden: Words
    """Those of them with changes: va, and in its low bits `hidden_word`."""
    counts: Mapping[int, Mapping[str, int]]
    """By level: how many descriptors are in each state, by its name, empty ones left out; in all rows."""
    changes: tuple[LevelDiff, ...] = ()
    """What `diff` counts, where the picture is of what changed."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the two snapshots."""


def atlas(snapshot: Snapshot) -> Atlas:
    """Return the tables of a snapshot with the state of each descriptor."""
    drawing = _Drawing(snapshot)
    for level in levels_of(snapshot.regime):
        drawing.rest(level)
    return drawing.finish()


def changes(before: Snapshot, after: Snapshot) -> Atlas:
    """Return the tables of `after` with the state of each descriptor, and where it changed, how.

    What has changed, and which tables are compared, is as in `diff`. Raises SnapshotError if the two
    have different geometries or no address in common.
    """
    comparison = Comparison(before, after)
    drawing = _Drawing(after)
    for level, steps in groupby(comparison.steps(), lambda step: step.level):
        for step in steps:
            drawing.add(level, step.chunk.pairs.b, step.chunk.pairs.va, step.codes())
        drawing.rest(level)
    for level in levels_of(after.regime):
        drawing.rest(level)
    return drawing.finish(tuple(comparison.levels), tuple(comparison.notes()))


class _Drawing:
    """Collect the rows of a picture, level by level."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._index = TableIndex(snapshot.tables)
        self._drawn = np.zeros(len(snapshot.tables), dtype=np.bool_)
        self._parts: dict[int, list[tuple[Rows, Words, States]]] = {}
        self._counts: dict[int, NDArray[np.int64]] = {}
        self._shown = 0
        self._more = MORE_TABLES
        self._left_out = 0
        self._hidden: list[Words] = []

    def add(self, level: int, rows: Rows, va: Words, codes: NDArray[np.uint16] | None = None) -> None:
        """Draw tables at addresses, with the change codes of their descriptors."""
        tables = self._snapshot.tables
        states = _states(take_rows(tables.raw, rows), level, self._snapshot.regime)
        states[~tables.readable[rows]] = S_UNREADABLE
        if codes is not None:
            changed = STATE_OF_CODE[codes]
            states = np.where(changed > 0, changed, states)
        self._drawn[rows] = True
        counts = self._counts.setdefault(level, np.zeros(len(STATES), dtype=np.int64))
        counts += np.bincount(states.reshape(-1), minlength=len(STATES))
        worst = _worst(states)
        shown = self._room(worst)
        self._left_out += int((~shown).sum())
        hidden = ~shown & (worst > 0)
        self._hidden.append(hidden_word(va[hidden], level, worst[hidden]))
        if shown.any():
            self._parts.setdefault(level, []).append((rows[shown], va[shown], states[shown]))

    def _room(self, worst: States) -> NDArray[np.bool_]:
        """Choose the rows that are shown: the first ones, and of the others those with loud changes."""
        shown = np.zeros(worst.shape, dtype=np.bool_)
        room = max(MAX_TABLES - self._shown, 0)
        shown[:room] = True
        loud = np.nonzero(~shown & (worst == LOUD))[0][: self._more]
        shown[loud] = True
        self._shown += min(room, worst.shape[0])
        self._more -= len(loud)
        return shown

    def rest(self, level: int) -> None:
        """Draw the tables of a level that were not drawn, as they stand."""
        tables = self._snapshot.tables
        rows = self._index.numbers(level)
        rows = rows[~self._drawn[rows]]
        for part in parts(len(rows), tables):
            self.add(level, rows[part], tables.va[rows[part]])

    def finish(self, changes: tuple[LevelDiff, ...] = (), notes: tuple[str, ...] = ()) -> Atlas:
        """Return the picture."""
        tables, regime = self._snapshot.tables, self._snapshot.regime
        rows, va, states, decoded = [], [], [], []
        patterns: list[Pattern] = []
        for level in sorted(self._parts):
            row_parts, va_parts, state_parts = zip(*self._parts[level], strict=True)
            order = np.argsort(np.concatenate(va_parts), kind="stable")
            rows.append(np.concatenate(row_parts)[order])
            va.append(np.concatenate(va_parts)[order])
            states.append(np.concatenate(state_parts)[order])
            different, again = np.unique(rows[-1], return_inverse=True)
            decoded.append(_decoded(take_rows(tables.raw, different), level, regime, patterns)[again])
        chosen = np.concatenate(rows)
        drawn = Tables(
            tables.level[chosen],
            tables.pa[chosen],
            np.concatenate(va),
            tables.raw[chosen],
            tables.readable[chosen],
        )
        return Atlas(
            drawn.level,
            drawn.pa,
            drawn.va,
            drawn.raw,
            np.concatenate(states),
            tuple(patterns),
            np.concatenate(decoded),
            _links(drawn, regime),
            self._left_out,
            np.concatenate(self._hidden),
            {level: _named(counts) for level, counts in sorted(self._counts.items())},
            changes,
            notes,
        )


QUIET, LOUD = 1, 2
"""The worst that changed in a table: no more than bit 11, or more."""


def hidden_word(va: Words, level: int, worst: States) -> Words:
    """Return addresses of tables with their level (bits 4:2, one more) and worst change (bits 1:0)."""
    return va | np.uint64(level + 1 << 2) | worst.astype(np.uint64)


def _worst(states: States) -> States:
    """Return QUIET, LOUD or 0 for each row."""
    most = states.max(axis=1, initial=0)
    return np.where(most >= S_UNMARKED, LOUD, np.where(most >= S_MARKED, QUIET, 0)).astype(np.uint8)


def _named(counts: NDArray[np.int64]) -> dict[str, int]:
    counted = enumerate(zip(STATES, counts.tolist(), strict=True))
    return {name: n for code, (name, n) in counted if n and code != S_INVALID}


def delta_planes(numbers: NDArray[np.integer[Any]]) -> bytes:
    """Return numbers as differences, byte plane by byte plane: neighbouring descriptors are alike.

    The first number is kept; number i is the sum of the first i + 1 differences modulo 2^(its bits).
    """
    flat = np.ascontiguousarray(numbers).reshape(-1)
    delta = np.diff(flat, prepend=flat.dtype.type(0)).astype(flat.dtype.newbyteorder("<"))
    return np.ascontiguousarray(delta.view(np.uint8).reshape(-1, flat.itemsize).T).tobytes()


def _states(raw: Words, level: int, regime: Regime) -> NDArray[np.uint8]:
    kind, bit11 = kinds(raw, level, regime), (raw & BIT11) != 0
    invalid = np.where(raw == 0, S_INVALID, S_NOT_ZERO)
    leaf = np.where(bit11, S_NG, S_GLOBAL)
    table = np.where(bit11, S_TABLE_MARKED, S_TABLE)
    found = np.where(kind == K_TABLE, table, leaf)
    found = np.where(kind == K_INVALID, invalid, found)
    return np.where(kind == K_RESERVED, S_RESERVED, found).astype(np.uint8)


def _decoded(raw: Words, level: int, regime: Regime, patterns: list[Pattern]) -> NDArray[np.uint16]:
    """Return the number of each descriptor's pattern, adding to the patterns those that are new."""
    kind = kinds(raw, level, regime)
    found = kind.astype(np.uint16)
    for code in (K_TABLE, K_BLOCK, K_PAGE):
        here = kind == code
        words = raw[here]
        targets = next_tables(words, regime) if code == K_TABLE else output_addresses(words, level, regime)
        distances, first, which, counts = np.unique(
            targets - words, return_index=True, return_inverse=True, return_counts=True
        )
        numbers = np.full(distances.shape, code, dtype=np.uint16)
        keep = attribute_bits(level, regime, table=code == K_TABLE) | 3
        for each in np.argsort(-counts, kind="stable")[:MAX_PATTERNS].tolist():
            numbers[each] = FIRST_PATTERN + len(patterns)
            bits = int(words[first[each]]) & keep
            explained = _explained(bits, level, regime)
            patterns.append(Pattern(level, KIND_NAMES[code], bits, int(distances[each]), explained))
        found[here] = numbers[which]
    return found


def _links(drawn: Tables, regime: Regime) -> NDArray[np.int32]:
    """Return the row of the table that each descriptor leads to, or -1."""
    links = np.full(drawn.raw.shape, -1, dtype=np.int32)
    by_pa, by_va = TableIndex(drawn), TableIndex(replace(drawn, pa=drawn.va))
    for level in levels_of(regime):
        rows = by_pa.numbers(level)
        row, index = np.nonzero(are_tables(drawn.raw[rows], level))
        row = rows[row]
        targets = next_tables(drawn.raw[row, index], regime)
        va = drawn.va[row] + (index.astype(np.uint64) << np.uint64(regime.shift(level)))
        same = by_va.find(level + 1, va)
        there = (same >= 0) & (drawn.pa[same] == targets)
        links[row, index] = np.where(there, same, by_pa.find(level + 1, targets))
    return links


def _explained(bits: int, level: int, regime: Regime) -> tuple[tuple[str, str, str], ...]:
    descriptor = decode(bits, level, regime)
    assert descriptor.kind is not Kind.INVALID
    return tuple(
        (field.name, field.bits, f"{field.value:#x}: {field.meaning}")
        for field in explain(descriptor)
        if not field.name.startswith(ADDRESS_FIELDS)
    )
