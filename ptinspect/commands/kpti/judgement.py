"""`kpti verdict`: which of the known ways the rewrite went."""

from __future__ import annotations

from dataclasses import dataclass

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import argument, command
from ptinspect.errors import EXIT_CHECK, EXIT_OK
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite_state import judgement
from ptinspect.output.model import Note, Report, Style, escape

FINE = ("normal", "not-run")


@dataclass(frozen=True)
class VerdictResult:
    """How the rewrite went, and the evidence."""

    code: str
    meaning: str
    evidence: list[str]
    unknown: list[str]
    before: str | None
    after: str
    recorded_stores: int | None
    algorithm: str | None


@command(
    "kpti verdict",
    group="KPTI",
    summary="Judge how the rewrite went, and show the evidence",
    example="kpti verdict",
    arguments=(
        argument(
            "--before", type=arguments.snapshot, metavar="SNAP", help="the tables before (default: before)"
        ),
        argument(
            "--after",
            type=arguments.snapshot,
            metavar="SNAP",
            help="the tables after (default: after, or live)",
        ),
        argument(
            "--live",
            action="store_true",
            help="the guest as it stands, even if there is a snapshot from after",
        ),
    ),
    result=VerdictResult,
    details="From the tables before and after (the snapshots before and after, unless others are named; "
    "the guest as it stands if there is none from after), the stores that kpti writes recorded, and the "
    "kernel's code. Codes: normal, no-table-marks, toggle-write-back, lost-write, reverted-entry, "
    "not-run, unknown. A capture that is cut is never normal. Exit code 1 unless normal or not-run.",
)
def verdict(
    guest: Guest, *, before: str | None = None, after: str | None = None, live: bool = False
) -> Report:
    """Judge, and say what it rests on."""
    judged = judgement(guest, before, after, live=live)
    found = judged.verdict
    stores = None if judged.recording is None else len(judged.recording)
    algorithm = None if judged.code is None else judged.code.algorithm
    used = (
        f"tables before: {judged.before or 'none'}",
        f"tables after: {judged.after}",
        f"recorded stores: {'none' if stores is None else stores}",
        f"the kernel's code: {algorithm or 'not known'}",
    )
    style: Style = "good" if found.code in FINE else "bad" if found.code != "unknown" else "changed"
    body = [
        Note(f"{found.code}: {found.meaning}", style),
        *(Note(f"- {escape(text)}") for text in found.evidence),
        *(Note(f"? {escape(text)}", "changed") for text in found.unknown),
        Note("; ".join(used), "dim"),
    ]
    result = VerdictResult(
        code=found.code,
        meaning=found.meaning,
        evidence=list(found.evidence),
        unknown=list(found.unknown),
        before=judged.before,
        after=judged.after,
        recorded_stores=stores,
        algorithm=algorithm,
    )
    return Report(result, body, EXIT_OK if found.code in FINE else EXIT_CHECK)
