"""`diff`: compare two snapshots descriptor by descriptor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ptinspect.analysis.counts import LevelDiff
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.descriptor import decode
from ptinspect.arch.levels import size_text
from ptinspect.arch.regime import Regime
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables.kernel_text_view import SHOWN as SHOWN_RANGES
from ptinspect.commands.tables.kernel_text_view import TextDiffResult, compare_texts
from ptinspect.commands.tables.paths import PathResult, captured_walk, levels_of, path_results, side_by_side
from ptinspect.commands.tables.summary import Counts, counts_table
from ptinspect.commands.written import WriteResult, write_result
from ptinspect.commands.written import told as who_wrote
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import EXIT_CHECK, EXIT_OK, UserError
from ptinspect.guest.capturing import snapshot_of
from ptinspect.guest.expression import Address, address
from ptinspect.guest.guest import Guest
from ptinspect.guest.kernel_texts import is_kernel_text
from ptinspect.guest.names import SnapshotNames
from ptinspect.guest.regions import names_of
from ptinspect.guest.table_choice import Tables
from ptinspect.output.descriptor_words import in_words
from ptinspect.output.encode import ABSENT, Absent, Hex, filled
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Note, Report, Table, escape, headings, more
from ptinspect.text import counted

if TYPE_CHECKING:
    from ptinspect.analysis.diff import Change, Diff
    from ptinspect.analysis.map import RegionNamer
    from ptinspect.guest.recordings.writers import Write
    from ptinspect.linux.layout.mapped_parts import Part
    from ptinspect.snapshot.model import Snapshot

SHOWN = 20
"""Changes shown to people unless --limit is given; files and JSON hold up to MAX_CHANGES."""
COUNTS: Counts = (
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
"""Field of LevelDiff, head of its column, and the style of a number that is not zero: bad, where it counts
what is more than bit 11."""
OPTIONAL = {"kind", "invalid_changed", "unreadable"}
"""Columns that are shown only if they count something."""
MAX_HELD = 256
"""Names of what lay in a range that JSON has for each change."""


@dataclass(frozen=True)
class PartResult:
    """A named part of a range, and how much of it was mapped."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ChangeResult:
    """One descriptor that differs in more than bit 11."""

    va_start: VirtAddr
    va_end: VirtAddr
    level: int
    descriptor_pa: PhysAddr
    descriptor_pa_after: PhysAddr
    before: Hex | None
    after: Hex | None
    before_decoded: str | None
    after_decoded: str | None
    kinds: Sequence[str]
    leaves_before: int
    bytes_before: int
    leaves_after: int
    bytes_after: int
    note: str
    region: str
    held: Sequence[PartResult]
    """What lay there before, if it was taken away or leads elsewhere."""
    held_total: int
    written: WriteResult | Absent | None = ABSENT
    """The last write that made the change; null where none did. With --who, or where B keeps it."""


@dataclass(frozen=True)
class DiffResult:
    """The difference of two snapshots."""

    a: str
    b: str
    levels: Sequence[LevelDiff]
    changes: Sequence[ChangeResult]
    changes_total: int
    only_bit11: bool
    complete: bool
    unseen: Sequence[str]
    notes: Sequence[str]
    file: str | Absent = ABSENT
    at: Sequence[PathResult] | Absent = ABSENT
    """The path of --at in both; of B's last steps `kinds` is null."""
    writers_left_out: int | Absent = ABSENT
    """With --who: changes whose writers were not searched."""


@command(
    "diff",
    group="Snapshots",
    summary="Compare two snapshots, descriptor by descriptor",
    example="diff before after --expect-only-bit11",
    arguments=(
        argument("a", type=arguments.snapshot, metavar="A", help="snapshot: a name or a file"),
        argument(
            "b",
            nargs="?",
            type=arguments.snapshot,
            metavar="B",
            help="snapshot: a name or a file; without it the stopped guest, as it is now",
        ),
        argument(
            "--at",
            type=address,
            metavar="VA",
            help="compare the path of this address, level by level; $REGISTER is as in A",
        ),
        arguments.output_argument("write the whole report to a file"),
        arguments.switch("--expect-only-bit11", "exit code 1 if anything else changed"),
        arguments.number_argument(
            "--limit",
            0,
            1 << 24,
            f"list at most N changes (default {SHOWN} on the screen, 10000 in files and JSON)",
        ),
        arguments.switch("--who", "name who wrote what changed: in a recorded boot"),
        arguments.SEARCH_LIMIT,
    ),
    result=DiffResult | TextDiffResult,
    details="diff before compares with the guest as it stands now. "
    "Per level: how many descriptors changed, tables marked, leaves that became nG, and every "
    "other kind of change. Each change that is more than bit 11 is listed, decoded. "
    "-o writes text, JSON, CSV or Markdown by the suffix of FILE (.txt .json .csv .md). "
    "A or B may be a text of the kernel's /sys/kernel/debug/kernel_page_tables: what is mapped "
    "is then compared, range by range. --who, where the boot is replayed in which A and B were captured "
    "(timeline open), names the last write between the two that made each change that is more than bit 11, "
    f"of the first {SHOWN} or those of --limit.",
)
def diff(
    ctx: Context,
    *,
    a: str,
    b: str | None = None,
    at: Address | None = None,
    output: Path | None = None,
    expect_only_bit11: bool = False,
    limit: int | None = None,
    who: bool = False,
    timeout: float = arguments.SEARCH_SECONDS,
) -> Report:
    """Compare two snapshots, or one with the guest as it is now."""
    from ptinspect.analysis.diff import MAX_CHANGES
    from ptinspect.analysis.diff import diff as compare
    from ptinspect.guest.recordings.last_writes import of_changes, searched

    guest = ctx.guest
    if who:
        searched(guest)
    if output is not None:
        form_of(output)
    if b is not None and (is_kernel_text(guest, a) or is_kernel_text(guest, b)):
        if expect_only_bit11 or at is not None or who:
            raise UserError("the kernel's text does not tell bit 11 of table descriptors, nor any of a path")
        report = compare_texts(guest, a, b, limit or ctx.rows(SHOWN_RANGES))
        if output is not None:
            write(report, output)
        return report
    before = guest.snapshot_or_file(a)
    after = now(guest, before) if b is None else guest.snapshot_or_file(b)
    found = compare(before, after, max_changes=MAX_CHANGES if limit is None else limit)
    code = EXIT_CHECK if expect_only_bit11 and not found.only_bit11 else EXIT_OK
    shown = ctx.rows(SHOWN) if limit is None else limit
    va = None if at is None else at.value(SnapshotNames(guest, before))
    numbers = [n for n, c in enumerate(found.changes) if va is None or c.va_start <= va <= c.va_end][:shown]
    writes = None
    if who:
        asked = [found.changes[n] for n in numbers]
        writes = dict(zip(numbers, of_changes(guest, asked, before, after, timeout), strict=True))
    listed = numbers if va is None or who else []
    report = diff_report(found, before, after, listed=listed, exit_code=code, writes=writes)
    if va is not None:
        report = _with_path(report, before, after, VirtAddr(va))
    if output is None:
        return report
    wide = output.suffix.lower() in (".csv", ".md")
    every = range(len(found.changes))
    write(diff_report(found, before, after, listed=every, wide=wide, writes=writes), output)
    said = Note(f"written to {escape(str(output))}", "dim")
    result = replace(cast("DiffResult", report.value), file=str(output))
    return Report(result, (*report.body, said), code)


def now(guest: Guest, before: Snapshot) -> Snapshot:
    """Return the guest's tables as they are now. Raises UserError if the snapshot is not of the same root."""
    found = snapshot_of(guest, Tables())
    if found.root.pa == before.root.pa:
        return replace(found, name="now")
    here = f"pa:{found.root.pa:#x} ({found.root.provenance})"
    raise UserError(
        f"snapshot {before.name!r} was captured under pa:{before.root.pa:#x}; the guest's own root is {here}",
        f"snap now --root pa:{before.root.pa:#x}, then: diff {before.name} now",
    )


def _with_path(report: Report, a: Snapshot, b: Snapshot, va: VirtAddr) -> Report:
    """Add how the path of one address differs."""
    walks = [captured_walk(snapshot, va) for snapshot in (a, b)]
    levels = levels_of(walks, a.regime)
    result = replace(cast("DiffResult", report.value), at=path_results(walks, levels))
    return Report(result, (*report.body, *side_by_side(walks, levels, a.regime)), report.exit_code)


def diff_report(
    diff: Diff,
    a: Snapshot,
    b: Snapshot,
    *,
    listed: Sequence[int],
    regions: RegionNamer | None = None,
    wide: bool = False,
    exit_code: int = 0,
    writes: Mapping[int, Write | None] | None = None,
) -> Report:
    """Show counts by level and the changes that are more than bit 11.

    `listed` are the numbers of the changes in the body, not in the result; `wide` makes them one row each.
    `regions` names the addresses, by default as `a` and `b` do; `writes` are those that made some of the
    changes, by their numbers, if they were searched.
    """
    result, held = _compared(diff, a, b, regions, writes)
    body: list[Note | Table] = [
        Note(f"{diff.a} -> {diff.b}", "title"),
        *(_side(snapshot) for snapshot in (a, b)),
        level_table(diff.levels),
        *(Note(escape(note), "changed") for note in diff.notes),
        _verdict(diff, part=bool(result.unseen)),
    ]
    if listed and wide:
        body.append(_rows([held[n] for n in listed]))
    elif listed:
        body.append(Note("changes that are more than bit 11:", "title"))
        for n in listed:
            body += _block(*held[n])
    left = more(diff.changes_total - len(listed), hint="--limit N shows more, -o FILE writes them")
    if left and not listed:
        left = [Note("--limit N lists them, -o FILE writes them", "dim")]
    return Report(result, (*body, *left), exit_code)


def told(
    diff: Diff, a: Snapshot, b: Snapshot, writes: Mapping[int, Write | None] | None
) -> tuple[DiffResult, str, list[str]]:
    """Return the result, the verdict, and each listed change in words, a line for each fact."""
    result, held = _compared(diff, a, b, None, writes)
    words = ["\n".join(note.text.strip() for note in _block(*each)) for each in held]
    return result, _verdict(diff, part=bool(result.unseen)).text, words


def _compared(
    diff: Diff,
    a: Snapshot,
    b: Snapshot,
    regions: RegionNamer | None,
    writes: Mapping[int, Write | None] | None,
) -> tuple[DiffResult, list[tuple[ChangeResult, Sequence[Part]]]]:
    """Return the result, and each of its changes with all that lay there before."""
    from ptinspect.guest.recordings.kept_writes import of_changes
    from ptinspect.linux.layout.mapped_parts import Contents, took
    from ptinspect.snapshot.coverage import unseen

    regions = regions or names_of(b, a)[0]
    contents = Contents.of_changes(a, diff.changes)
    held = [contents.of(c.va_start, c.va_end) if took(c) else () for c in diff.changes]
    changes = [
        _change(change, a.regime, b.regime, regions(change.va_start), parts)
        for change, parts in zip(diff.changes, held, strict=True)
    ]
    for n, made in {**of_changes(diff.changes, a, b), **(writes or {})}.items():
        if changes[n].after is not None:
            by = None if made is None else write_result(made, changes[n].level, b.regime)
            changes[n] = replace(changes[n], written=by)
    result = filled(
        DiffResult,
        diff,
        changes=changes,
        unseen=(*unseen(a), *unseen(b)),
        writers_left_out=ABSENT if writes is None else diff.changes_total - len(writes),
    )
    return result, list(zip(changes, held, strict=True))


def _side(snapshot: Snapshot) -> Note:
    where = f", {escape(snapshot.meta.where)}" if snapshot.meta.where else ""
    text = (
        f"  {snapshot.name}: {counted(len(snapshot.tables), 'table')}, root pa:{snapshot.root.pa:#x}{where}"
    )
    return Note(text, "dim")


def _change(
    change: Change, before: Regime, after: Regime, region: str, parts: Sequence[Part]
) -> ChangeResult:
    return filled(
        ChangeResult,
        change,
        before_decoded=_decoded(change.before, change.level, before),
        after_decoded=_decoded(change.after, change.level, after),
        region=region,
        held=held_result(parts),
        held_total=len(parts),
    )


def _decoded(raw: int | None, level: int, regime: Regime) -> str | None:
    return None if raw is None else in_words(decode(raw, level, regime))


def held_result(parts: Sequence[Part]) -> list[PartResult]:
    """Return the first MAX_HELD parts of a range."""
    return [PartResult(part.name, part.size) for part in parts[:MAX_HELD]]


def counts_of(level: LevelDiff) -> dict[str, int]:
    """Return the counts of a level, by the names that JSON has for them."""
    return {field: getattr(level, field) for field, _, _ in COUNTS}


def level_table(levels: Sequence[LevelDiff]) -> Table:
    """Return a table of the counts, a row for each level."""
    return counts_table(levels, COUNTS, OPTIONAL)


def _verdict(diff: Diff, *, part: bool) -> Note:
    where = " in the part that was compared" if part else ""
    marked = sum(level.marked for level in diff.levels)
    ng = sum(level.ng_set for level in diff.levels)
    if not diff.complete:
        found = f"; {counted(diff.changes_total, 'change')} of more than bit 11" if diff.changes_total else ""
        return Note(f"not all could be compared{found}", "bad")
    if diff.only_bit11 and not diff.changed:
        return Note(f"identical{where}: no descriptor changed", "good")
    if diff.only_bit11:
        back = sum(level.unmarked + level.ng_cleared for level in diff.levels)
        cleared = f", {back} cleared" if back else ""
        tables, leaves = counted(marked, "table"), counted(ng, "leaf", "leaves")
        return Note(f"only bit 11 changed{where}: {tables} marked, {leaves} became nG{cleared}", "good")
    kinds: dict[str, int] = {}
    for field, _, style in COUNTS:
        count = sum(getattr(level, field) for level in diff.levels)
        if count and style == "bad":
            kinds[field.replace("_", " ")] = count
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return Note(f"{counted(diff.changes_total, 'change is', 'changes are')} more than bit 11: {what}", "bad")


def _block(change: ChangeResult, parts: Sequence[Part]) -> list[Note]:
    from ptinspect.linux.layout.mapped_parts import in_words as held_words

    moved = change.descriptor_pa_after != change.descriptor_pa
    where = f"pa:{change.descriptor_pa:#x}" + (f" -> pa:{change.descriptor_pa_after:#x}" if moved else "")
    head = f"{', '.join(change.kinds)}: level {change.level}, {change.va_start:#x}..{change.va_end + 1:#x}"
    head += f" ({escape(change.region)})" if change.region else ""
    lines = [Note(head, "bad"), Note(f"  descriptor at {where}{_weight(change)}")]
    for word, raw, decoded in (
        ("before", change.before, change.before_decoded),
        ("after ", change.after, change.after_decoded),
    ):
        if raw is not None:
            lines.append(Note(f"  {word} {raw:#018x}  {decoded}"))
    if parts:
        lines.append(Note(f"  there lay: {escape(held_words(parts))}", "changed"))
    if change.note:
        lines.append(Note(f"  {escape(change.note)}"))
    return lines + [Note(f"  {line}", "changed") for line in _written(change)]


def _written(change: ChangeResult) -> list[str]:
    if isinstance(change.written, Absent):
        return []
    return ["nothing wrote it in this recording"] if change.written is None else who_wrote(change.written)


def _weight(change: ChangeResult) -> str:
    if "lost" in change.kinds and change.leaves_before:
        return (
            f"; {counted(change.leaves_before, 'leaf', 'leaves')} with {size_text(change.bytes_before)} gone"
        )
    if "new" in change.kinds and change.leaves_after:
        return f"; {counted(change.leaves_after, 'leaf', 'leaves')} with {size_text(change.bytes_after)} new"
    return ""


def _rows(changes: Sequence[tuple[ChangeResult, Sequence[Part]]]) -> Table:
    from ptinspect.linux.layout.mapped_parts import in_words as held_words

    titles = (
        "va_start", "va_end", "level", "descriptor_pa", "kinds", "before", "after", "before decoded",
        "after decoded", "note", "region", "held before", "written by",
    )  # fmt: skip
    rows = [
        (
            f"{c.va_start:#x}",
            f"{c.va_end:#x}",
            str(c.level),
            f"{c.descriptor_pa:#x}",
            " ".join(c.kinds),
            "" if c.before is None else f"{c.before:#x}",
            "" if c.after is None else f"{c.after:#x}",
            c.before_decoded or "",
            c.after_decoded or "",
            c.note,
            escape(c.region),
            escape(held_words(parts)),
            "; ".join(line.strip() for line in _written(c)),
        )
        for c, parts in changes
    ]
    return Table(headings(*titles), rows, "Changes that are more than bit 11")
