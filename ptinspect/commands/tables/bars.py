"""Translation tables drawn in characters, one for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import level_name, size_text
from ptinspect.dataclass import dataclass
from ptinspect.guest.capturing import snapshot_of
from ptinspect.guest.guest import Guest
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, Style, Styled, Table, escape, spanned
from ptinspect.output.table_heads import root_note, source_of, warnings

if TYPE_CHECKING:
    from ptinspect.analysis.atlas import Atlas
    from ptinspect.snapshot.model import Snapshot

LETTERS: Sequence[tuple[str, Style]] = (
    (".", "dim"),
    ("t", "level"),
    ("T", "address"),
    ("g", "plain"),
    ("N", "good"),
    ("?", "bad"),
    ("o", "dim"),
    ("!", "bad"),
    ("M", "changed"),
    ("n", "changed"),
    ("u", "bad"),
    ("c", "bad"),
    ("L", "bad"),
    ("+", "bad"),
    ("@", "bad"),
    ("a", "bad"),
)
"""Letter and style of each state, in the order of analysis.atlas.STATES."""
COLUMNS = 64
"""Entries in a line: 64 of a 4K table's make eight lines, each an eighth of what it translates."""


@dataclass(frozen=True)
class StatesResult:
    """How many descriptors of one level are in each state."""

    level: int
    name: str
    states: Mapping[str, int]
    changes: Mapping[str, int] | Absent = ABSENT
    """The counts of `diff`, where the picture is of what changed."""


@dataclass(frozen=True)
class BarResult:
    """One table, a letter for each entry."""

    level: int
    pa: PhysAddr
    va: VirtAddr
    letters: str


@dataclass(frozen=True)
class BarsResult:
    """All levels at once, and the tables on the way to an address."""

    levels: Sequence[StatesResult]
    tables: Sequence[BarResult]
    notes: Sequence[str]
    complete: bool
    unseen: Sequence[str]


def bars(guest: Guest, tables: Tables, va: int | None, against: str | None) -> Report:
    """Draw the tables of a guest or a snapshot, or what changed in them since the snapshot `against`."""
    from ptinspect.analysis.atlas import atlas, changes

    snapshot = snapshot_of(guest, tables)
    before = None if against is None else guest.snapshot_or_file(against)
    return bars_report(snapshot, atlas(snapshot) if before is None else changes(before, snapshot), va, before)


def bars_report(snapshot: Snapshot, shown: Atlas, va: int | None, before: Snapshot | None = None) -> Report:
    """Draw a bar for each level, and the tables on the way to `va`, or the root.

    `before` is the snapshot that the atlas holds the changes since.
    """
    from ptinspect.commands.tables.diff import counts_of, level_table
    from ptinspect.snapshot.coverage import unseen

    regime = snapshot.regime
    changed = {level.level: counts_of(level) for level in shown.changes}
    levels = [
        StatesResult(level, level_name(level, regime), dict(counts), changed.get(level, ABSENT))
        for level, counts in shown.counts.items()
    ]
    body: list[Note | Table] = [
        root_note(snapshot.root, source_of(snapshot), regime),
        *([] if before is None else [Note(f"changes since {escape(source_of(before))}", "dim")]),
        *warnings(snapshot),
        Note("levels, all tables of each joined, empty entries left out:", "title"),
        *(_level_bar(f"{level.name} {level.level}", level.states) for level in levels),
    ]
    if shown.changes:
        notes = (Note(escape(note), "changed") for note in shown.notes)
        body += [Note(""), level_table(shown.changes), *notes]
    tables = [_table(row, shown) for row in _way(snapshot, shown, va)]
    for table in tables:
        title = f"{level_name(table.level, regime)} {table.level} at pa:{table.pa:#x}, from {table.va:#x}"
        each = f"{size_text(regime.entry_size(table.level))} an entry"
        body += [Note(""), Note(f"{title}, {each}", "title"), *_grid(table.letters)]
    used = {letter for table in tables for letter in table.letters}
    used |= {_letter(name) for level in levels for name in level.states}
    body += [Note(""), *_legend(used)]
    missing = unseen(snapshot)
    return Report(BarsResult(levels, tables, shown.notes, not missing, missing), body)


def _letter(name: str) -> str:
    from ptinspect.analysis.atlas import STATES

    return LETTERS[STATES.index(name)][0]


def _level_bar(title: str, counts: Mapping[str, int]) -> Note:
    """Return a bar of COLUMNS characters; no state that occurs is rounded away."""
    total = sum(counts.values())
    spans = [Styled(f"{title:<7}", "level")]
    left = COLUMNS
    for number, (name, count) in enumerate(counts.items()):
        more = len(counts) - number - 1
        share = left - more if not more else max(1, min(round(COLUMNS * count / total), left - more))
        left -= share
        letter, style = next(pair for pair in LETTERS if pair[0] == _letter(name))
        spans.append(Styled(letter * share, style))
    return spanned([*spans, Styled(f" {total}", "dim")])


def _way(snapshot: Snapshot, shown: Atlas, va: int | None) -> list[int]:
    """Return the rows of the tables on the way to an address, as far as they are there."""
    rows, regime = [0], snapshot.regime
    while va is not None and int(shown.level[rows[-1]]) < 3:
        below = int(shown.links[rows[-1], regime.index(va, int(shown.level[rows[-1]]))])
        if below < 0:
            break
        rows.append(below)
    return rows


def _table(row: int, shown: Atlas) -> BarResult:
    return BarResult(
        level=int(shown.level[row]),
        pa=PhysAddr(int(shown.pa[row])),
        va=VirtAddr(int(shown.va[row])),
        letters="".join(LETTERS[state][0] for state in shown.states[row].tolist()),
    )


def _grid(letters: str) -> list[Note]:
    styles = dict(LETTERS)
    lines = []
    for start in range(0, len(letters), COLUMNS):
        runs = ("".join(group) for _, group in groupby(letters[start : start + COLUMNS]))
        spans = [Styled(run, styles[run[0]]) for run in runs]
        lines.append(spanned([Styled(f"{start:>5}  ", "dim"), *spans]))
    return lines


def _legend(used: set[str]) -> list[Note]:
    from ptinspect.analysis.atlas import STATES

    words = [f"{letter} {name}" for (letter, _), name in zip(LETTERS, STATES, strict=True) if letter in used]
    return [Note("   ".join(words[at : at + 4]), "dim") for at in range(0, len(words), 4)]
