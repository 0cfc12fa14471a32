"""The difference of two snapshots, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptinspect.arch.descriptor import decode
from ptinspect.arch.regime import Regime
from ptinspect.output.model import Cell, Column, Note, Report, Style, Styled, Table, escape, hex_address
from ptinspect.output.views.descriptor import in_words
from ptinspect.output.views.snapshot import seen

if TYPE_CHECKING:
    from ptinspect.analysis.diff import Change, Diff, LevelDiff
    from ptinspect.analysis.map import RegionNamer
    from ptinspect.linux.layout.mapped_parts import Contents, Part
    from ptinspect.snapshot.model import Snapshot

COUNTS: tuple[tuple[str, str, Style], ...] = (
    ("tables", "tables", "plain"),
    ("changed", "changed", "plain"),
    ("marked", "marked", "changed"),
    ("unmarked", "unmarked", "changed"),
    ("ng_set", "+nG", "changed"),
    ("ng_cleared", "-nG", "changed"),
    ("lost", "lost", "bad"),
    ("new", "new", "bad"),
    ("retargeted", "retarg.", "bad"),
    ("attributes", "attrs", "bad"),
    ("kind", "kind", "bad"),
    ("invalid_changed", "invalid", "bad"),
    ("unreadable", "unread.", "bad"),
)
"""Field of LevelDiff, head of its column, and the style of a number that is not zero."""
MAX_HELD = 256
"""Names of what lay in a range that JSON has for each change."""
OPTIONAL = {"kind", "invalid_changed", "unreadable"}
"""Columns that are shown only if they count something."""


def diff_report(
    diff: Diff,
    a: Snapshot,
    b: Snapshot,
    *,
    shown: int,
    regions: RegionNamer,
    contents: Contents | None = None,
    wide: bool = False,
    exit_code: int = 0,
) -> Report:
    """Show counts by level and the changes that are more than bit 11.

    `shown` limits the changes in the body, not in the result; `wide` makes them one row each.
    `regions` names the addresses; `contents` says what lay in the ranges that were lost or moved.
    """
    from ptinspect.snapshot.coverage import unseen

    body: list[Note | Table] = [
        Note(f"{diff.a} -> {diff.b}", "title"),
        *(_side(snapshot) for snapshot in (a, b)),
        level_table(diff.levels),
        *(Note(escape(note), "changed") for note in diff.notes),
        _verdict(diff, part=bool(unseen(a) or unseen(b))),
    ]
    listed = diff.changes[:shown]
    if listed and wide:
        body.append(_rows(listed, a.regime, regions, contents))
    elif listed:
        body.append(Note("changes that are more than bit 11:", "title"))
        for change in listed:
            body += _block(change, a.regime, b.regime, regions(change.va_start), contents)
    if len(diff.changes) > len(listed) or diff.changes_total > len(diff.changes):
        more = diff.changes_total - len(listed)
        body.append(Note(f"… and {more} more (--limit N shows more, -o FILE writes them)", "dim"))
    return Report(_result(diff, a, b, regions, contents), body, exit_code)


def _side(snapshot: Snapshot) -> Note:
    where = f", {escape(snapshot.meta.where)}" if snapshot.meta.where else ""
    text = f"  {snapshot.name}: {len(snapshot.tables)} tables, root pa:{snapshot.root.pa:#x}{where}"
    return Note(text, "dim")


def _result(
    diff: Diff, a: Snapshot, b: Snapshot, regions: RegionNamer, contents: Contents | None
) -> dict[str, Any]:
    return {
        "a": diff.a,
        "b": diff.b,
        "levels": [{"level": level.level, "name": level.name, **counts_of(level)} for level in diff.levels],
        "changes": [
            {
                **_change(change, a.regime, b.regime),
                "region": regions(change.va_start),
                **held_json(_held(change, contents)),
            }
            for change in diff.changes
        ],
        "changes_total": diff.changes_total,
        "only_bit11": diff.only_bit11,
        "complete": diff.complete,
        "unseen": seen(a, b)["unseen"],
        "notes": list(diff.notes),
    }


def _held(change: Change, contents: Contents | None) -> Sequence[Part]:
    """Return what lay in the range of a change before, if it was taken away or leads elsewhere."""
    from ptinspect.linux.layout.mapped_parts import took

    return contents.of(change.va_start, change.va_end) if contents is not None and took(change) else ()


def held_json(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the first MAX_HELD parts of a range, and how many there are."""
    held = [{"name": part.name, "bytes": part.size} for part in parts[:MAX_HELD]]
    return {"held": held, "held_total": len(parts)}


def counts_of(level: LevelDiff) -> dict[str, int]:
    """Return the counts of a level, by the names that JSON has for them."""
    return {field: getattr(level, field) for field, _, _ in COUNTS}


def _change(change: Change, regime: Regime, after: Regime) -> dict[str, Any]:
    return {
        "va_start": hex_address(change.va_start),
        "va_end": hex_address(change.va_end),
        "level": change.level,
        "descriptor_pa": hex_address(change.descriptor_pa),
        "descriptor_pa_after": hex_address(change.descriptor_pa_after),
        "before": _hex(change.before),
        "after": _hex(change.after),
        "before_decoded": _decoded(change.before, change.level, regime),
        "after_decoded": _decoded(change.after, change.level, after),
        "kinds": list(change.kinds),
        "leaves_before": change.leaves_before,
        "bytes_before": change.bytes_before,
        "leaves_after": change.leaves_after,
        "bytes_after": change.bytes_after,
        "note": change.note,
    }


def level_table(levels: Sequence[LevelDiff]) -> Table:
    """Return a table of the counts, a row for each level."""
    used = [c for c in COUNTS if c[0] not in OPTIONAL or any(getattr(level, c[0]) for level in levels)]
    rows = []
    for level in levels:
        row: list[Cell] = [Styled(f"{level.name} {level.level}", "level")]
        for field, _, style in used:
            count = getattr(level, field)
            row.append(Styled(str(count), style if count else "dim"))
        rows.append(row)
    return Table((Column("level"), *(Column(title, "right") for _, title, _ in used)), rows)


def _verdict(diff: Diff, *, part: bool) -> Note:
    where = " in the part that was compared" if part else ""
    marked = sum(level.marked for level in diff.levels)
    ng = sum(level.ng_set for level in diff.levels)
    if not diff.complete:
        found = f"; {diff.changes_total} changes that are more than bit 11" if diff.changes_total else ""
        return Note(f"not all could be compared{found}", "bad")
    if diff.only_bit11 and not diff.changed:
        return Note(f"identical{where}: no descriptor changed", "good")
    if diff.only_bit11:
        back = sum(level.unmarked + level.ng_cleared for level in diff.levels)
        cleared = f", {back} cleared" if back else ""
        return Note(
            f"only bit 11 changed{where}: {marked} tables marked, {ng} leaves became nG{cleared}", "good"
        )
    kinds: dict[str, int] = {}
    for field in ("lost", "new", "retargeted", "attributes", "kind", "invalid_changed", "unreadable"):
        count = sum(getattr(level, field) for level in diff.levels)
        if count:
            kinds[field.replace("_", " ")] = count
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return Note(f"{diff.changes_total} changes are more than bit 11: {what}", "bad")


def _block(
    change: Change, regime: Regime, after: Regime, region: str, contents: Contents | None
) -> list[Note]:
    moved = change.descriptor_pa_after != change.descriptor_pa
    where = f"pa:{change.descriptor_pa:#x}" + (f" -> pa:{change.descriptor_pa_after:#x}" if moved else "")
    head = f"{', '.join(change.kinds)}: level {change.level}, {change.va_start:#x}..{change.va_end + 1:#x}"
    head += f" ({escape(region)})" if region else ""
    from ptinspect.linux.layout.mapped_parts import in_words

    lines = [
        Note(head, "bad"),
        Note(f"  descriptor at {where}{_weight(change)}"),
    ]
    for word, raw, geometry in (("before", change.before, regime), ("after ", change.after, after)):
        if raw is not None:
            lines.append(Note(f"  {word} {raw:#018x}  {_decoded(raw, change.level, geometry)}"))
    parts = _held(change, contents)
    if parts:
        lines.append(Note(f"  there lay: {escape(in_words(parts))}", "changed"))
    if change.note:
        lines.append(Note(f"  {escape(change.note)}"))
    return lines


def _weight(change: Change) -> str:
    if "lost" in change.kinds and change.leaves_before:
        return f"; {change.leaves_before} leaves with {change.bytes_before} bytes are gone"
    if "new" in change.kinds and change.leaves_after:
        return f"; {change.leaves_after} leaves with {change.bytes_after} bytes came"
    return ""


def _rows(
    changes: tuple[Change, ...], regime: Regime, regions: RegionNamer, contents: Contents | None
) -> Table:
    from ptinspect.linux.layout.mapped_parts import in_words

    titles = (
        "va_start", "va_end", "level", "descriptor_pa", "kinds", "before", "after", "before decoded",
        "after decoded", "note", "region", "held before",
    )  # fmt: skip
    rows = [
        (
            hex_address(c.va_start),
            hex_address(c.va_end),
            str(c.level),
            hex_address(c.descriptor_pa),
            " ".join(c.kinds),
            _hex(c.before) or "",
            _hex(c.after) or "",
            _decoded(c.before, c.level, regime) or "",
            _decoded(c.after, c.level, regime) or "",
            c.note,
            escape(regions(c.va_start)),
            escape(in_words(_held(c, contents))),
        )
        for c in changes
    ]
    return Table([Column(title) for title in titles], rows, "Changes that are more than bit 11")


def _decoded(raw: int | None, level: int, regime: Regime) -> str | None:
    return None if raw is None else in_words(decode(raw, level, regime))


def _hex(value: int | None) -> str | None:
    return None if value is None else hex_address(value)
