"""`check`: what should hold in the tables of a healthy kernel, of the guest, a snapshot or a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptinspect.analysis.findings import RULES, Finding, Findings
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import TABLES
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.tables.diff import PartResult, held_result
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK
from ptinspect.guest.checkup import checkup
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.regions import names_of
from ptinspect.guest.roots import Tables
from ptinspect.output.encode import Hex
from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape
from ptinspect.output.table_heads import source_of

if TYPE_CHECKING:
    from ptinspect.analysis.map import RegionNamer
    from ptinspect.linux.layout.mapped_parts import Contents, Part

STYLES: dict[str, Style] = {"error": "bad", "warning": "changed", "info": "dim"}
MOVED = ("entry-lost", "entry-reverted", "entry-retargeted")
"""Rules whose findings name what lay in the range before."""
LIMIT = 100
"""Findings kept of each rule, where the user does not choose."""
SHOWN = 40
"""Findings shown to people; JSON has all that are kept."""
COLUMNS = (
    Column("rule"),
    Column("addresses"),
    Column("region"),
    Column("level", "right"),
    Column("descriptor"),
    Column("evidence"),
)


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


@command(
    "check",
    group="Tables",
    summary="Say which rules the tables break, and what shows it",
    example="check --snap after --against before",
    arguments=(
        *TABLES,
        argument(
            "--against", type=arguments.snapshot, metavar="SNAP", help="compare with this earlier snapshot"
        ),
        argument(
            "--rewrite-done",
            action="store_true",
            help="the rewrite has ended: bit 11 must be set where it should",
        ),
        argument("--partial", action="store_true", help="exit code 0 if what was captured is sound"),
        argument("--expect-clean", action="store_true", help="exit code 1 if there is any finding at all"),
        argument(
            "--limit",
            type=arguments.whole(1, 1 << 20),
            default=LIMIT,
            metavar="N",
            help=f"findings listed per rule ({LIMIT})",
        ),
    ),
    result=CheckResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="Exit code 1 if a finding is an error, or if not all was captured (a range, --max-tables, tables "
    "that cannot be read), which --partial allows; with --expect-clean, if there is any finding. "
    "With --against, what was lost, reverted, moved or left unmarked since the earlier snapshot.",
    expectable=True,
)
def check(
    guest: Guest,
    *,
    root: str | Address | None = None,
    regime: str | None = None,
    cpu: int | None = None,
    snap: str | None = None,
    against: str | None = None,
    rewrite_done: bool = False,
    partial: bool = False,
    expect_clean: bool = False,
    limit: int = LIMIT,
) -> Report:
    """Apply the rules."""
    from ptinspect.linux.layout.mapped_parts import Contents

    tables = Tables(root, regime, cpu, snap)
    done = checkup(guest, tables, against=against, rewrite_done=rewrite_done, partial=partial, limit=limit)
    found, snapshot, before = done.findings, done.snapshot, done.before
    failed = not found.ok or (expect_clean and bool(found.totals))
    label, source, held = snapshot.name, source_of(snapshot), None
    if before is not None:
        label, source = f"{before.name} -> {label}", f"{source_of(before)} -> {source}"
        held = Contents(before, ((f.va_start, f.va_end) for f in found.kept if f.rule in MOVED))
    return check_report(
        found,
        label,
        EXIT_CHECK if failed else EXIT_OK,
        source=source,
        regions=names_of(snapshot, before)[0],
        contents=held,
    )


def check_report(
    found: Findings,
    label: str,
    exit_code: int = EXIT_OK,
    *,
    source: str = "",
    regions: RegionNamer,
    contents: Contents | None = None,
) -> Report:
    """Show what breaks which rule.

    `source` is whose tables they are, `label` if it is empty; `regions` names the addresses; `contents` is
    what lay before where entries were lost or moved.
    """
    from ptinspect.linux.layout.mapped_parts import in_words

    def held(finding: Finding) -> Sequence[Part]:
        moved = contents is not None and finding.rule in MOVED
        return contents.of(finding.va_start, finding.va_end) if contents and moved else ()

    parts = [held(finding) for finding in found.kept]
    result = CheckResult(
        ok=found.ok,
        of=label,
        findings=[_finding(f, regions, lay) for f, lay in zip(found.kept, parts, strict=True)],
        totals=found.totals,
        rules=list(RULES),
        notes=found.notes,
        complete=found.complete,
        unseen=found.unseen,
        skipped=found.skipped,
    )
    rows = [
        (
            Styled(f.rule, STYLES[f.severity]),
            f"{f.va_start:#x}-{f.va_end:#x}",
            escape(in_words(lay) or f.region),
            str(f.level),
            f"pa:{f.descriptor_pa:#x}" + ("" if f.raw is None else f" = {f.raw:#x}"),
            escape(f.evidence + "".join(map(_other, f.mappings[1:]))),
        )
        for f, lay in list(zip(result.findings, parts, strict=True))[:SHOWN]
    ]
    body: list[Note | Table] = [
        Note(escape(source or label), "dim"),
        *(Note(escape(n), "changed") for n in found.notes),
    ]
    if rows:
        body.append(Table(COLUMNS, rows))
    if found.totals:
        counts = ", ".join(f"{name} {count}" for name, count in found.totals.items())
        body.append(Note(counts, "bad" if found.errors else "changed"))
    body += [Note(f"{rule} was not asked: {escape(why)}", "dim") for rule, why in found.skipped.items()]
    body += [Note(f"not captured: {escape(text)}", "bad") for text in found.unseen]
    if not found.errors:
        body.append(_verdict(found))
    return Report(result, body, exit_code)


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


def _finding(finding: Finding, regions: RegionNamer, parts: Sequence[Part]) -> FindingResult:
    return FindingResult(
        rule=finding.rule,
        severity=finding.severity,
        va_start=finding.va_start,
        va_end=finding.va_end,
        region=regions(finding.va_start),
        level=finding.level,
        descriptor_pa=finding.descriptor_pa,
        raw=None if finding.raw is None else Hex(finding.raw),
        evidence=finding.evidence,
        mappings=[
            MappingResult(
                va=m.va,
                pa=m.pa,
                region=regions(m.va),
                level=m.level,
                descriptor_pa=m.descriptor_pa,
                raw=Hex(m.raw),
                text=m.text,
                path=[EntryResult(level, pa, Hex(raw)) for level, pa, raw in m.path],
            )
            for m in finding.mappings
        ],
        held=held_result(parts),
        held_total=len(parts),
    )
