"""`check`: what should hold in the tables of a healthy kernel, of the guest, a snapshot or a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptinspect.analysis.findings import RULES, Finding, Findings
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.tables.diff import PartResult, held_result
from ptinspect.commands.written import WriteResult, told, write_result
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK
from ptinspect.guest.checkup import checkup
from ptinspect.guest.guest import Guest
from ptinspect.guest.regions import names_of
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import ABSENT, Absent, Hex, filled
from ptinspect.output.model import Note, Report, Style, Styled, Table, escape, headings, more
from ptinspect.output.table_heads import source_of

if TYPE_CHECKING:
    from ptinspect.analysis.map import RegionNamer
    from ptinspect.arch.regime import Regime
    from ptinspect.guest.recordings.writers import Write
    from ptinspect.linux.layout.mapped_parts import Contents, Part

STYLES: dict[str, Style] = {"error": "bad", "warning": "changed", "info": "dim"}
MOVED = ("entry-lost", "entry-reverted", "entry-retargeted")
"""Rules whose findings name what lay in the range before."""
LIMIT = 100
"""Findings kept of each rule, where the user does not choose."""
SEARCHED = 20
"""Findings whose writers --who searches."""
SHOWN = 40
"""Findings shown to people; JSON has all that are kept."""
COLUMNS = headings("rule", "addresses", "region", ">level", "descriptor", "evidence")


@dataclass(frozen=True)
class EntryResult:
    """One descriptor on the way to a mapping."""

    level: int
    descriptor_pa: PhysAddr
    raw: Hex


@dataclass(frozen=True)
class MappingResult:
    """One of the mappings that a finding is about."""

    va: VirtAddr
    pa: PhysAddr
    region: str
    level: int
    descriptor_pa: PhysAddr
    raw: Hex
    text: str
    path: Sequence[EntryResult]


@dataclass(frozen=True)
class FindingResult:
    """Where a rule does not hold, and what shows it."""

    rule: str
    severity: str
    va_start: VirtAddr
    va_end: VirtAddr
    region: str
    level: int
    descriptor_pa: PhysAddr
    raw: Hex | None
    evidence: str
    mappings: Sequence[MappingResult]
    held: Sequence[PartResult]
    """What lay there before, where an entry was lost or moved."""
    held_total: int
    written: WriteResult | Absent | None = ABSENT
    """The write that made it what it is; null where none did. With --who, or where the snapshot keeps it."""


@dataclass(frozen=True)
class CheckResult:
    """Which rules the tables break."""

    ok: bool
    of: str
    findings: Sequence[FindingResult]
    totals: Mapping[str, int]
    rules: Sequence[str]
    notes: Sequence[str]
    complete: bool
    unseen: Sequence[str]
    skipped: Mapping[str, str]
    writers_left_out: int | Absent = ABSENT
    """With --who: findings whose writers were not searched."""


@command(
    "check",
    group="Tables",
    summary="Say which rules the tables break, and what shows it",
    example="check --snap after --against before",
    arguments=(
        *arguments.TABLES,
        arguments.snapshot_argument("--against", "compare with this earlier snapshot"),
        arguments.switch("--rewrite-done", "the rewrite has ended: bit 11 must be set where it should"),
        arguments.switch("--partial", "exit code 0 if what was captured is sound"),
        arguments.switch("--expect-clean", "exit code 1 if there is any finding at all"),
        arguments.number_argument(
            "--limit", 1, 1 << 20, f"findings listed per rule ({LIMIT})", default=LIMIT
        ),
        arguments.switch("--who", "name who wrote what is wrong: in a recorded boot"),
        arguments.SEARCH_LIMIT,
    ),
    result=CheckResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Exit code 1 if a finding is an error, or if not all was captured (a range, --max-tables, tables "
    "that cannot be read), which --partial allows; with --expect-clean, if there is any finding. "
    "With --against, what was lost, reverted, moved or left unmarked since the earlier snapshot. "
    f"--who, where the boot is replayed (timeline open), names who wrote the entries of the first {SEARCHED} "
    "findings.",
    expectable=True,
)
def check(
    guest: Guest,
    *,
    tables: Tables,
    against: str | None = None,
    rewrite_done: bool = False,
    partial: bool = False,
    expect_clean: bool = False,
    limit: int = LIMIT,
    who: bool = False,
    timeout: float = arguments.SEARCH_SECONDS,
) -> Report:
    """Apply the rules."""
    from ptinspect.guest.recordings.kept_writes import kept
    from ptinspect.guest.recordings.last_writes import of_descriptors, searched
    from ptinspect.linux.layout.mapped_parts import Contents

    if who:
        searched(guest)
    done = checkup(guest, tables, against=against, rewrite_done=rewrite_done, partial=partial, limit=limit)
    found, snapshot, before = done.findings, done.snapshot, done.before
    failed = not found.ok or (expect_clean and bool(found.totals))
    label, source, held = snapshot.name, source_of(snapshot), None
    if before is not None:
        label, source = f"{before.name} -> {label}", f"{source_of(before)} -> {source}"
        held = Contents(before, ((f.va_start, f.va_end) for f in found.kept if f.rule in MOVED))
    writes: dict[PhysAddr, Write | None] = {**kept(snapshot)}
    if who:
        values = {f.descriptor_pa: f.raw for f in found.kept[:SEARCHED] if f.raw is not None}
        writes = {**dict.fromkeys(values), **of_descriptors(guest, values, snapshot, timeout)}
    return check_report(
        found,
        label,
        EXIT_CHECK if failed else EXIT_OK,
        source=source,
        regions=names_of(snapshot, before)[0],
        contents=held,
        written=_Written(snapshot.regime, writes, who=who),
    )


@dataclass(frozen=True)
class _Written:
    """The writes that are known, by descriptor."""

    regime: Regime
    writes: Mapping[PhysAddr, Write | None]
    """None where it was searched and not found."""
    who: bool
    """They were searched for this answer."""

    def of(self, finding: Finding) -> WriteResult | Absent | None:
        """Return the write that made what a finding is about."""
        write = self.writes.get(finding.descriptor_pa, ABSENT)
        if isinstance(write, Absent) or finding.raw is None or (write and write.after != finding.raw):
            return ABSENT
        return None if write is None else write_result(write, finding.level, self.regime)


def check_report(
    found: Findings,
    label: str,
    exit_code: int = EXIT_OK,
    *,
    source: str = "",
    regions: RegionNamer,
    contents: Contents | None = None,
    written: _Written | None = None,
) -> Report:
    """Show what breaks which rule.

    `source` is whose tables they are, `label` if it is empty; `regions` names the addresses; `contents` is
    what lay before where entries were lost or moved; `written` are the writes that are known.
    """
    from ptinspect.linux.layout.mapped_parts import in_words

    def held(finding: Finding) -> Sequence[Part]:
        moved = contents is not None and finding.rule in MOVED
        return contents.of(finding.va_start, finding.va_end) if contents and moved else ()

    parts = [held(finding) for finding in found.kept]
    left = max(sum(found.totals.values()) - SEARCHED, 0)
    result = filled(
        CheckResult,
        found,
        of=label,
        findings=[
            _finding(f, regions, lay, ABSENT if written is None else written.of(f))
            for f, lay in zip(found.kept, parts, strict=True)
        ],
        rules=list(RULES),
        writers_left_out=left if written and written.who else ABSENT,
    )
    rows = [
        (
            Styled(f.rule, STYLES[f.severity]),
            f"{f.va_start:#x}-{f.va_end:#x}",
            escape(in_words(lay) or f.region),
            str(f.level),
            f"pa:{f.descriptor_pa:#x}" + ("" if f.raw is None else f" = {f.raw:#x}"),
            escape(f.evidence + "".join(map(_other, f.mappings[1:]))) + _by(f),
        )
        for f, lay in list(zip(result.findings, parts, strict=True))[:SHOWN]
    ]
    body: list[Note | Table] = [
        Note(escape(source or label), "dim"),
        *(Note(escape(n), "changed") for n in found.notes),
    ]
    if rows:
        body.append(Table(COLUMNS, rows))
    if written and written.who:
        body += more(left, "findings", "who pa:DESCRIPTOR names the writer of one")
    if found.totals:
        counts = ", ".join(f"{name} {count}" for name, count in found.totals.items())
        body.append(Note(counts, "bad" if found.errors else "changed"))
    body += [Note(f"{rule} was not asked: {escape(why)}", "dim") for rule, why in found.skipped.items()]
    body += [Note(f"not captured: {escape(text)}", "bad") for text in found.unseen]
    if not found.errors:
        body.append(_verdict(found))
    return Report(result, body, exit_code)


def _by(finding: FindingResult) -> str:
    """Say who wrote it, where that was asked or is known."""
    if isinstance(finding.written, Absent):
        return ""
    lines = ["nothing wrote it in this recording"] if finding.written is None else told(finding.written)
    return "; " + "; ".join(line.strip() for line in lines)


def _other(mapping: MappingResult) -> str:
    """Say where another mapping of a finding is."""
    return (
        f"; {mapping.va:#x}: {mapping.region}, level {mapping.level}, "
        f"pa:{mapping.descriptor_pa:#x} = {mapping.raw:#x}"
    )


def _verdict(found: Findings) -> Note:
    """Return what holds where no error was found; `every` only if all was captured and asked."""
    what = "no errors" if found.totals else "no rule is broken"
    if not found.complete:
        return Note(f"{what} in what was captured", "good" if found.partial else "changed")
    return Note(what if found.totals or found.skipped else "every rule holds", "good")


def _finding(
    finding: Finding, regions: RegionNamer, parts: Sequence[Part], written: WriteResult | Absent | None
) -> FindingResult:
    return filled(
        FindingResult,
        finding,
        region=regions(finding.va_start),
        mappings=[
            filled(
                MappingResult,
                m,
                region=regions(m.va),
                path=[EntryResult(level, pa, Hex(raw)) for level, pa, raw in m.path],
            )
            for m in finding.mappings
        ],
        held=held_result(parts),
        held_total=len(parts),
        written=written,
    )
