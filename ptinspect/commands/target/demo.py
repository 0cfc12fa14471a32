"""`demo`: the main job on a real kernel, with the same commands that a user types."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.target import demo_fault
from ptinspect.errors import UserError
from ptinspect.output.model import Column, Note, Report, Styled, Table

DIRECTORY = Path("ptinspect-demo")
SAMPLES = 64
"""Addresses that QEMU's own MMU is asked to translate."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--directory", "-o", type=Path, default=DIRECTORY, metavar="DIR", help=f"where to write ({DIRECTORY})"
    )
    add(
        "--guest",
        type=argtypes.guest_name,
        metavar="NAME",
        help="a reference guest that setup installed (default: the first)",
    )
    add("--kernel", type=Path, metavar="FILE", help="an Image or vmlinuz of your own instead")
    add("--memory", "-m", metavar="MB", help="RAM in MB, or 2G (default 1024)")
    add("--cpu", metavar="MODEL", help="CPU model (default cortex-a72)")
    add("--smp", type=argtypes.whole(1, 8), metavar="N", help="number of CPUs (default 1)")
    add("--timeout", type=argtypes.seconds, default=180.0, metavar="SECONDS", help="limit for the boot (180)")
    demo_fault.configure(parser)


@dataclass(frozen=True)
class Check:
    """State one thing that has to be so, and whether it was."""

    name: str
    """What has to be so."""
    ok: bool
    """Whether it is."""
    evidence: str
    """The numbers behind it."""


@command(
    "demo",
    group="Guest",
    summary="Boot a real kernel, capture its tables around the KPTI rewrite, and diff them",
    example="demo --directory demo",
    configure=_configure,
    details="Writes before.npz, during.npz, after.npz, diff.txt and diff.json. Exit code 0 only if all "
    "that was seen is right: nothing nG before, everything after, nothing but bit 11 changed.",
    not_in_gdb="use ptinspect without GDB: it starts a guest of its own",
)
def demo(ctx: Context, args: argparse.Namespace) -> Report:
    """Do the main job and check what it showed."""
    if ctx.session is not None:
        raise UserError("demo starts a guest of its own", "detach first, or use kpti run on this one")
    if args.fault:
        try:
            return demo_fault.demo_fault(ctx, args, _launch_words(args))
        finally:
            ctx.close()
    if args.no_guard:
        raise UserError("--no-guard is for a demo with --fault", "--fault lost, or --fault reverted")
    folder: Path = args.directory
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", "--directory DIR names another one") from None
    try:
        return _demo(ctx, args, folder)
    finally:
        ctx.close()


def _demo(ctx: Context, args: argparse.Namespace, folder: Path) -> Report:
    def run(*words: str) -> dict[str, Any]:
        line = shlex.join(words)
        report = ctx.registry.run(ctx, line)
        ctx.step(line, report)
        return dict(report.result)

    run("launch", *_launch_words(args))
    ran = run("kpti", "run", "--replace", "--timeout", str(args.timeout))
    if not ran["reached"]:
        return Report({"ok": False, "reason": ran["reason"]}, (Note(ran["reason"], "bad"),), 1)
    checks = [_translations(ctx)]
    for name in ("before", "during", "after"):
        run("save", name, str(folder / f"{name}.npz"))
    before, after = run("summary", "--snap", "before"), run("summary", "--snap", "after")
    during = run("kpti", "status", "--snap", "during")
    diff = run("diff", "before", "after", "-o", str(folder / "diff.txt"))
    run("diff", "before", "after", "-o", str(folder / "diff.json"))
    checks += _checks(before["levels"], after["levels"], during, diff)
    ok = all(check.ok for check in checks)
    rows = [
        (Styled("yes" if c.ok else "NO", "good" if c.ok else "bad"), c.name, Styled(c.evidence, "dim"))
        for c in checks
    ]
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in (".npz", ".txt", ".json"))
    result = {
        "ok": ok,
        "algorithm": ran["algorithm"],
        "directory": str(folder),
        "files": files,
        "checks": [{"name": c.name, "ok": c.ok, "evidence": c.evidence} for c in checks],
    }
    verdict = "All as it has to be." if ok else "Something is not as it has to be."
    body = (
        Table((Column("ok"), Column("what has to be so"), Column("seen")), rows, "What was seen"),
        Note(f"written to {folder}: {', '.join(Path(f).name for f in files)}", "dim"),
        Note(verdict, "good" if ok else "bad"),
    )
    return Report(result, body, 0 if ok else 1)


def _launch_words(args: argparse.Namespace) -> list[str]:
    words = [str(args.kernel)] if args.kernel else []
    for option, value in (
        ("--guest", args.guest),
        ("--memory", args.memory),
        ("--cpu", args.cpu),
        ("--smp", args.smp),
    ):
        if value is not None:
            words += [option, str(value)]
    return words


def _translations(ctx: Context) -> Check:
    """Ask QEMU's own MMU about addresses spread over all leaves of `after`."""
    from ptinspect.analysis.descriptor_batches import sample_leaves

    session = ctx.stopped
    wrong = []
    asked = 0
    for va, pa in sample_leaves(ctx.snapshots["after"], SAMPLES):
        asked += 1
        answer = session.gva2gpa(va)
        if answer != pa:
            wrong.append(f"{va:#x}: QEMU {'nothing' if answer is None else hex(answer)}, tables {pa:#x}")
    evidence = wrong[0] if wrong else f"{asked} addresses asked (gva2gpa)"
    return Check("QEMU's own MMU translates as the captured tables say", asked > 0 and not wrong, evidence)


def _sum(levels: list[dict[str, Any]], key: str) -> int:
    return sum(level[key] for level in levels)


def _checks(
    before: list[dict[str, Any]], after: list[dict[str, Any]], during: dict[str, Any], diff: dict[str, Any]
) -> list[Check]:
    leaves, tables = _sum(before, "leaves"), _sum(before, "table_descriptors")
    ng, marked = _sum(before, "leaves_ng"), _sum(before, "table_descriptors_marked")
    all_ng = _sum(after, "leaves_ng") == _sum(after, "leaves") == leaves
    all_marked = _sum(after, "table_descriptors_marked") == _sum(after, "table_descriptors") == tables
    changed = _sum(diff["levels"], "changed")
    lost = _sum(diff["levels"], "lost")
    frontier = during["frontier"]
    where = "no frontier" if frontier is None else f"frontier {frontier['va']} at level {frontier['level']}"
    part = f"{during['leaves_ng']} of {during['leaves']} leaves nG, {where}"
    return [
        Check(
            "before: no leaf is nG, no table is marked",
            ng == marked == 0,
            f"{leaves} leaves, {tables} tables",
        ),
        Check("during: caught in the middle", during["state"] == "in-progress", part),
        Check("after: every leaf is nG", all_ng, f"{_sum(after, 'leaves_ng')} of {leaves}"),
        Check(
            "after: every table is marked",
            all_marked,
            f"{_sum(after, 'table_descriptors_marked')} of {tables}",
        ),
        Check("nothing but bit 11 changed", bool(diff["only_bit11"]), f"{changed} descriptors changed"),
        Check("every descriptor changed", changed == leaves + tables, f"{changed} of {leaves + tables}"),
        Check("no descriptor was lost", lost == 0, f"{lost} lost"),
    ]
