"""Findings of `check` as a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape, hex_address
from ptinspect.output.views.diff import held_json

if TYPE_CHECKING:
    from ptinspect.analysis.findings import Finding, Findings
    from ptinspect.analysis.map import RegionNamer
    from ptinspect.linux.layout.mapped_parts import Contents, Part

STYLES: dict[str, Style] = {"error": "bad", "warning": "changed", "info": "dim"}
MOVED = ("entry-lost", "entry-reverted", "entry-retargeted")
"""Rules whose findings say what lay in the range before."""
SHOWN = 40
"""Findings shown to people; JSON has all that are kept."""


def check_report(
    found: Findings,
    label: str,
    rules: dict[str, str],
    exit_code: int,
    *,
    source: str = "",
    regions: RegionNamer,
    contents: Contents | None = None,
) -> Report:
    """Show what breaks which rule.

    `source` says whose tables they are, `label` if it is empty; `regions` names the addresses; `contents`
    says what lay before where entries were lost or moved.
    """
    from ptinspect.linux.layout.mapped_parts import in_words

    def held(finding: Finding) -> Sequence[Part]:
        moved = contents is not None and finding.rule in MOVED
        return contents.of(finding.va_start, finding.va_end) if contents and moved else ()

    result = {
        "ok": found.ok,
        "of": label,
        "findings": [{**_json(finding, regions), **held_json(held(finding))} for finding in found.kept],
        "totals": dict(found.totals),
        "rules": list(rules),
        "notes": list(found.notes),
        "complete": found.complete,
        "unseen": list(found.unseen),
        "skipped": dict(found.skipped),
    }
    columns = (
        Column("rule"),
        Column("addresses"),
        Column("region"),
        Column("level", "right"),
        Column("descriptor"),
        Column("evidence"),
    )
    rows = [
        (
            Styled(f.rule, STYLES[f.severity]),
            f"{f.va_start:#x}-{f.va_end:#x}",
            escape(in_words(held(f)) or regions(f.va_start)),
            str(f.level),
            f"pa:{f.descriptor_pa:#x}" + ("" if f.raw is None else f" = {f.raw:#x}"),
            escape(f.evidence + _others(f, regions)),
        )
        for f in found.kept[:SHOWN]
    ]
    body: list[Note | Table] = [
        Note(escape(source or label), "dim"),
        *(Note(escape(n), "changed") for n in found.notes),
    ]
    if rows:
        body.append(Table(columns, rows))
    if found.totals:
        counts = ", ".join(f"{name} {count}" for name, count in found.totals.items())
        body.append(Note(counts, "bad" if found.errors else "changed"))
    body += [Note(f"{rule} was not asked: {escape(why)}", "dim") for rule, why in found.skipped.items()]
    body += [Note(f"not seen: {escape(text)}", "bad") for text in found.unseen]
    if not found.errors:
        body.append(_verdict(found))
    return Report(result, body, exit_code)


def _others(finding: Finding, regions: RegionNamer) -> str:
    """Say where the other mappings of a finding are."""
    return "".join(
        f"; {m.va:#x}: {regions(m.va)}, level {m.level}, pa:{m.descriptor_pa:#x} = {m.raw:#x}"
        for m in finding.mappings[1:]
    )


def _verdict(found: Findings) -> Note:
    """Say what holds where no error was found; `every` only if all was seen and asked."""
    what = "no errors" if found.totals else "no rule is broken"
    if not found.complete:
        return Note(f"{what} in what was seen", "good" if found.partial else "changed")
    return Note(what if found.totals or found.skipped else "every rule holds", "good")


def _json(finding: Finding, regions: RegionNamer) -> dict[str, object]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "va_start": hex_address(finding.va_start),
        "va_end": hex_address(finding.va_end),
        "region": regions(finding.va_start),
        "level": finding.level,
        "descriptor_pa": hex_address(finding.descriptor_pa),
        "raw": None if finding.raw is None else hex_address(finding.raw),
        "evidence": finding.evidence,
        "mappings": [
            {
                "va": hex_address(m.va),
                "pa": hex_address(m.pa),
                "region": regions(m.va),
                "level": m.level,
                "descriptor_pa": hex_address(m.descriptor_pa),
                "raw": hex_address(m.raw),
                "text": m.text,
                "path": [
                    {"level": level, "descriptor_pa": hex_address(pa), "raw": hex_address(raw)}
                    for level, pa, raw in m.path
                ],
            }
            for m in finding.mappings
        ],
    }
