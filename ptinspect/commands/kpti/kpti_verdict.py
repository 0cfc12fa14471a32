"""`kpti verdict`: which of the known ways the rewrite has gone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import EXIT_CHECK, EXIT_OK, UserError
from ptinspect.guest.rewrite_state import snapshot_state, standing
from ptinspect.output.model import Note, Report, escape
from ptinspect.snapshot.fact_names import PHASE

if TYPE_CHECKING:
    from ptinspect.linux.kpti.code import KptiCode
    from ptinspect.linux.kpti.state import KptiState
    from ptinspect.linux.kpti.stores import Recording
    from ptinspect.linux.kpti.verdict import Verdict
    from ptinspect.snapshot.model import Snapshot

FINE = ("normal", "not-run")
LIVE = "the guest"
"""What the tables of the guest as it stands are called."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--before", type=argtypes.snapshot, metavar="SNAP", help="the tables before (default: before)")
    add(
        "--after",
        type=argtypes.snapshot,
        metavar="SNAP",
        help="the tables after (default: after, or live)",
    )
    add("--live", action="store_true", help="the guest as it stands, even if there is a snapshot from after")


@command(
    "kpti verdict",
    group="KPTI",
    summary="Say which way the rewrite has gone, and why that is known",
    example="kpti verdict",
    configure=_configure,
    details="From the tables before and after (the snapshots before and after, unless others are named; "
    "the guest as it stands if there is none from after), the stores that kpti writes recorded, and the "
    "kernel's code. Codes: normal, no-table-marks, toggle-write-back, lost-write, reverted-entry, "
    "not-run, unknown. A capture that is cut is never normal. Exit code 1 unless normal or not-run.",
)
def verdict(ctx: Context, args: argparse.Namespace) -> Report:
    """Judge, and say what it rests on."""
    from ptinspect.linux.kpti.verdict import Verdict, judge

    before = _snapshot(ctx, args.before, "before")
    recording = _recording(ctx)
    after, state, finished = _after(ctx, args, recording)
    if after is None:
        found = Verdict("not-run", (state.reason,))
    else:
        found = judge(before, after, state, recording, finished=finished)
    named = None if before is None else before.name
    return report(found, named, LIVE if after is None else after.name, recording, state.code)


def report(
    found: Verdict, before: str | None, after: str, recording: Recording | None, code: KptiCode | None
) -> Report:
    """Show a verdict."""
    used = [f"tables before: {before or 'none'}", f"tables after: {after}"]
    used.append(f"recorded stores: {'none' if recording is None else len(recording)}")
    used.append(f"the kernel's code: {'not known' if code is None else code.algorithm}")
    style = "good" if found.code in FINE else "bad" if found.code != "unknown" else "changed"
    body = [
        Note(f"{found.code}: {found.meaning}", style),  # type: ignore[arg-type]
        *(Note(f"- {escape(text)}") for text in found.evidence),
        *(Note(f"? {escape(text)}", "changed") for text in found.unknown),
        Note("; ".join(used), "dim"),
    ]
    result = {
        "code": found.code,
        "meaning": found.meaning,
        "evidence": list(found.evidence),
        "unknown": list(found.unknown),
        "before": before,
        "after": after,
        "recorded_stores": None if recording is None else len(recording),
        "algorithm": None if code is None else code.algorithm,
    }
    return Report(result, body, EXIT_OK if found.code in FINE else EXIT_CHECK)


def _snapshot(ctx: Context, name: str | None, default: str) -> Snapshot | None:
    if name is not None:
        return ctx.snapshot_or_file(name)
    return ctx.snapshots.get(default)


def _after(
    ctx: Context, args: argparse.Namespace, recording: Recording | None
) -> tuple[Snapshot | None, KptiState, bool]:
    """Return the tables after the rewrite, where it stood then, and if it had just ended.

    No tables if the guest's kernel has none yet.
    """
    stopped = ctx.state == "stopped"
    if args.live and not stopped:
        raise UserError("there is no stopped guest", "--after SNAP")
    if not args.live:
        recorded = args.after is None and recording is not None and stopped
        found = None if recorded else _snapshot(ctx, args.after, "after")
        if found is not None:
            return found, snapshot_state(ctx.guest, found), found.meta.extra.get(PHASE) == "after"
    if not stopped:
        raise UserError("there are no tables from after the rewrite", "--after SNAP, or kpti run on a guest")
    wrong = ctx.guest.kernel_refused
    if wrong is not None:
        raise wrong
    now = standing(ctx.guest, LIVE)
    where = now.state.position
    return now.snapshot, now.state, where is not None and where.phase == "done"


def _recording(ctx: Context) -> Recording | None:
    from ptinspect.commands.kpti.kpti_writes import RECORDINGS

    return None if ctx.session is None else RECORDINGS.get(ctx.session)
