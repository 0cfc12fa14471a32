"""`kpti verdict`: which of the known ways the rewrite has gone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ptinspect.commands import argtypes
from ptinspect.commands.context import Context
from ptinspect.commands.registry import Registry
from ptinspect.errors import EXIT_CHECK, EXIT_OK, PtinspectError, UserError
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.linux.kpti import KptiCode
    from ptinspect.linux.kpti.stores import Recording
    from ptinspect.linux.kpti.verdict import Verdict
    from ptinspect.snapshot.model import Snapshot

FINE = ("normal", "not-run")


def register(registry: Registry) -> None:
    """Add `kpti verdict`."""
    registry.command(
        "kpti verdict",
        summary="Say which way the rewrite has gone, and why that is known",
        example="kpti verdict",
        configure=_configure,
        details="From the tables before and after (the snapshots before and after, unless others are named; "
        "the guest as it stands if there is none from after), the stores that kpti writes recorded, and the "
        "kernel's code. Codes: normal, no-table-marks, toggle-write-back, lost-write, reverted-entry, "
        "not-run, unknown. Exit code 1 unless it is normal or not-run.",
    )(verdict)


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


def verdict(ctx: Context, args: argparse.Namespace) -> Report:
    """Judge, and say what it rests on."""
    from ptinspect.linux.kpti.verdict import judge

    before = _snapshot(ctx, args.before, "before")
    after, live = _after(ctx, args)
    recording = _recording(ctx)
    phase = _phase(ctx) if live else _phase_of(after)
    finished = phase == "done" and (not live or recording is None or recording.whole)
    code = _code(ctx)
    found = judge(before, after, recording, code, finished=finished, walking=phase == "walking")
    return report(found, None if before is None else before.name, after.name, recording, code)


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


def _after(ctx: Context, args: argparse.Namespace) -> tuple[Snapshot, bool]:
    """Return the tables after the rewrite, and whether they are the guest's as it stands."""
    stopped = ctx.state == "stopped"
    if args.live and not stopped:
        raise UserError("there is no stopped guest", "--after SNAP")
    if not args.live:
        recorded = args.after is None and _recording(ctx) is not None and stopped
        found = None if recorded else _snapshot(ctx, args.after, "after")
        if found is not None:
            return found, False
    if not stopped:
        raise UserError("there are no tables from after the rewrite", "--after SNAP, or kpti run on a guest")
    from ptinspect.commands.kpti_inside import tables_now
    from ptinspect.commands.kpti_run import Runner

    return tables_now(Runner(ctx, 10.0), "the guest"), True


def _recording(ctx: Context) -> Recording | None:
    from ptinspect.commands.kpti_writes import RECORDINGS

    return None if ctx.session is None else RECORDINGS.get(ctx.session)


def _phase(ctx: Context) -> str:
    """Return where the boot CPU is in the rewrite: before, walking, done; an empty string if nowhere in it.

    Where it is done, nothing was created in the tables since.
    """
    from ptinspect.linux.kpti import boot_cpu, position, running_code

    view = ctx.view()
    code = running_code(view)
    state = None if code is None else boot_cpu(view, code)
    if code is None or state is None:
        return ""
    return position(state, code, view.regime, view.memory).phase


def _phase_of(snapshot: Snapshot) -> str:
    """Return the same of a snapshot: kpti run notes it."""
    return {"during": "walking", "after": "done"}.get(str(snapshot.meta.extra.get("kpti.phase")), "")


def _code(ctx: Context) -> KptiCode | None:
    """Return the rewrite as the kernel has it: in memory, else in its file."""
    from ptinspect.linux.kpti import recognise, running_code

    try:
        if ctx.state == "stopped":
            return running_code(ctx.view())
        return None if ctx.kernel is None else recognise(ctx.kernel)
    except PtinspectError:
        return None
