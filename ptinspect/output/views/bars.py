"""Translation tables drawn in characters, one for each entry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ptinspect.arch.levels import level_name
from ptinspect.output.model import Note, Report, Style, Styled, Table, escape, hex_address, spanned
from ptinspect.output.views.diff import counts_of, level_table
from ptinspect.output.views.snapshot import root_note, seen, source_of, warnings

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


def bars_report(snapshot: Snapshot, shown: Atlas, va: int | None, before: Snapshot | None = None) -> Report:
    """Draw a bar for each level, and the tables on the way to `va`, or the root.

    `before` is the snapshot that the atlas holds the changes since.
    """
    regime = snapshot.regime
    body: list[Note | Table] = [
        root_note(snapshot.root, source_of(snapshot), regime),
        *([] if before is None else [Note(f"changes since {escape(source_of(before))}", "dim")]),
        *warnings(snapshot),
        Note("levels, all tables of each joined, empty entries left out:", "title"),
    ]
    changed = {level.level: counts_of(level) for level in shown.changes}
    levels = []
    for level, counts in shown.counts.items():
        name = level_name(level, regime)
        levels.append({"level": level, "name": name, "states": dict(counts)})
        if shown.changes:
            levels[-1]["changes"] = changed[level]
        body.append(_level_bar(f"{name} {level}", dict(counts)))
    if shown.changes:
        body += [
            Note(""),
            level_table(shown.changes),
            *(Note(escape(note), "changed") for note in shown.notes),
        ]
    tables = [_table(row, shown) for row in _way(snapshot, shown, va)]
    for table in tables:
        level = table["level"]
        title = f"{level_name(level, regime)} {level} at pa:{table['pa']}, from {table['va']}"
        each = f"{regime.entry_size(level):#x} bytes an entry"
        body += [Note(""), Note(f"{title}, {each}", "title"), *_grid(table["letters"])]
    used = {letter for table in tables for letter in table["letters"]}
    used |= {_letter(name) for counts in shown.counts.values() for name in counts}
    body += [Note(""), *_legend(used)]
    return Report({"levels": levels, "tables": tables, "notes": list(shown.notes), **seen(snapshot)}, body)


def _letter(name: str) -> str:
    from ptinspect.analysis.atlas import STATES

    return LETTERS[STATES.index(name)][0]


def _level_bar(title: str, counts: dict[str, int]) -> Note:
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


def _table(row: int, shown: Atlas) -> dict[str, Any]:
    return {
        "level": int(shown.level[row]),
        "pa": hex_address(int(shown.pa[row])),
        "va": hex_address(int(shown.va[row])),
        "letters": "".join(LETTERS[state][0] for state in shown.states[row].tolist()),
    }


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
