"""`demo`: the main job on a real kernel, with the commands that a user types; or a fault, explained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.framework.arguments import number_argument, switch, timeout_argument, within
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.kpti.captures import run as kpti_run
from ptinspect.commands.kpti.standing import status as kpti_status
from ptinspect.commands.stack.guard import guard
from ptinspect.commands.stack.oops import oops
from ptinspect.commands.stack.why import why
from ptinspect.commands.tables.check import check
from ptinspect.commands.tables.diff import diff
from ptinspect.commands.tables.poke import PokeResult
from ptinspect.commands.tables.snapshots import save
from ptinspect.commands.tables.summary import summary
from ptinspect.commands.target.attaching import CPU_MODEL, GUEST, MEMORY, launch
from ptinspect.commands.target.losing_demo import KERNEL, RECORDING, LostResult, NotShown, lost_in_recording
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.injection import Fault, inject, run_to_death
from ptinspect.guest.opening import Machine
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import ABSENT, Absent, Hex
from ptinspect.output.model import Note, Report, Style, Styled, Table, headings, hex_address

DIRECTORY = Path("ptinspect-demo")
SNAPSHOTS, DIFFS = ("before", "during", "after"), ("diff.txt", "diff.json")
FILES = (*(f"{name}.npz" for name in SNAPSHOTS), *DIFFS)
"""What is written there."""
SAMPLES = 64
"""Addresses that QEMU's own MMU is asked to translate."""
GUARD_SECONDS, QUIET_SECONDS = 120.0, 12.0
"""How long a fault is waited for: where one is certain to come, and where nothing may come of it."""
EXPECTED: Mapping[Fault, str] = {"lost": "lost-entry", "reverted": "reverted-entry"}
"""What `why` and `oops` have to call a fault."""
REVERTED_CPUS = 8
"""The boot's table maps blocks of 2 MiB: the first CPU's stack may lie in the last of them, mapped to
memory that is not the stack's, and never fault; with more CPUs some stacks lie outside."""
ELSEWHERE = "memory of something else"
"""Part of the evidence of `why` where a stack's addresses lead to other memory (stack/verdict.py)."""


@dataclass(frozen=True)
class CheckResult:
    """One thing that should hold, and whether it did."""

    name: str
    ok: bool
    evidence: str
    """The numbers that show it."""


@dataclass(frozen=True)
class DemoResult:
    """The main job, and whether all holds that should."""

    ok: bool
    algorithm: str
    directory: str
    files: list[str]
    checks: list[CheckResult]


@dataclass(frozen=True)
class CaughtResult:
    """A fault that `stack guard` caught, and its explanation."""

    ok: bool
    fault: str
    injected: PokeResult
    guard: str
    why: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class JudgedResult:
    """A fault that no guard caught, judged by the guest, its tables, and its console."""

    fault: str
    injected: PokeResult
    console: Mapping[str, object]
    check: Mapping[str, object] | Absent = ABSENT
    explained_by: Mapping[str, bool]
    why: Mapping[str, object]
    guard: str | Absent = ABSENT
    end: str | Absent = ABSENT
    ok: bool


@command(
    "demo",
    group="Guest",
    summary="Boot a real kernel, capture its tables around the KPTI rewrite, and diff them",
    example="demo --directory demo",
    arguments=(
        argument(
            "--directory",
            "-o",
            type=Path,
            default=DIRECTORY,
            metavar="DIR",
            help=f"where to write ({DIRECTORY})",
        ),
        switch("--force", "do not ask before files are overwritten"),
        *within(
            "machine",
            Machine,
            GUEST,
            argument("--kernel", type=Path, metavar="FILE", help="an Image or vmlinuz of your own instead"),
            MEMORY,
            CPU_MODEL,
            number_argument("--smp", 1, 8, "number of CPUs (default 1)"),
        ),
        timeout_argument("limit for the boot (180)", 180.0),
        argument(
            "--fault",
            choices=tuple(EXPECTED),
            help="lose the stack's mapping at the end of the rewrite instead",
        ),
        switch("--no-guard", "with --fault: let the guest die its own way"),
        switch(
            "--timeline",
            "record a kernel that loses that mapping by its own code, and walk back to the store",
        ),
    ),
    result=DemoResult | NotShown | CaughtResult | JudgedResult | LostResult,
    details="Writes before.npz, during.npz, after.npz, diff.txt and diff.json. Exit code 0 only if all "
    "that was observed is right: nothing nG before, everything after, nothing but bit 11 changed. --timeline "
    "writes a kernel and its recording (some 130 MB); exit code 0 if why names the lost entry, and "
    "the very store that was put there.",
    not_in_gdb="use ptinspect without GDB: it starts a guest of its own",
)
def demo(
    ctx: Context,
    *,
    directory: Path,
    machine: Machine,
    timeout: float,
    fault: Fault | None,
    no_guard: bool,
    timeline: bool,
    force: bool,
) -> Report:
    """Do the main job and check what it showed."""
    if ctx.guest.session is not None:
        raise UserError("demo starts a guest of its own", "detach first, or use kpti run on this one")
    if timeline and (fault is not None or machine.smp not in (None, 1)):
        raise UserError("--timeline loses an entry without --fault, and records one CPU")
    if fault is None:
        if no_guard:
            raise UserError("--no-guard is for a demo with --fault", "--fault lost, or --fault reverted")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{directory}: {error.strerror}", "--directory DIR names another one") from None
        if ctx.interactive and not force:
            _spare(ctx, [directory / name for name in ((KERNEL, RECORDING) if timeline else FILES)])
    if fault == "reverted" and machine.smp is None:
        machine = replace(machine, smp=REVERTED_CPUS)
    given = {"guest": machine.guest, "memory": machine.memory, "cpu": machine.cpu, "smp": machine.smp}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", f"{value}")]
    try:
        if timeline:
            return lost_in_recording(ctx, directory, machine, timeout)
        kernel = [] if machine.kernel is None else [str(machine.kernel)]
        ctx.step(shlex.join(["launch", *kernel, *words]), launch(ctx, machine=machine))
        return _fault(ctx, fault, timeout, guarded=not no_guard) if fault else _job(ctx, directory, timeout)
    finally:
        ctx.close()


def _spare(ctx: Context, files: Sequence[Path]) -> None:
    """Ask before the first file that is there is overwritten. Raises UserError if it is to stay."""
    there = next((file for file in files if file.exists()), None)
    if there is not None and not ctx.confirm(f"{there} is there already: overwrite it, and the others?"):
        raise UserError(f"{there} stays as it was", "--force overwrites it, --directory DIR goes elsewhere")


def _job(ctx: Context, folder: Path, timeout: float) -> Report:
    guest = ctx.guest
    line = f"kpti run --replace --timeout {timeout}"
    ran = ctx.step(line, kpti_run(guest, timeout=timeout, replace=True))
    if not ran["reached"]:
        return Report(NotShown(False, ran["reason"]), (Note(ran["reason"], "bad"),), 1)
    checks = [_translations(guest)]
    for name in SNAPSHOTS:
        file = folder / f"{name}.npz"
        ctx.step(shlex.join(["save", name, str(file)]), save(guest, name=name, file=file))
    before, after = (
        ctx.step(f"summary --snap {name}", summary(guest, tables=Tables(snap=name)))
        for name in ("before", "after")
    )
    during = ctx.step("kpti status --snap during", kpti_status(guest, snap="during"))
    for file in (folder / name for name in DIFFS):
        line = shlex.join(["diff", "before", "after", "-o", str(file)])
        found = ctx.step(line, diff(ctx, a="before", b="after", output=file))
    checks += _checks(before["levels"], after["levels"], during, found)
    ok = all(one.ok for one in checks)
    rows = [
        (Styled("yes" if c.ok else "NO", "good" if c.ok else "bad"), c.name, Styled(c.evidence, "dim"))
        for c in checks
    ]
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in (".npz", ".txt", ".json"))
    verdict = "All is as it should be." if ok else "Something is not as it should be."
    body = (
        Table(headings("ok", "what should hold", "observed"), rows, "What was observed"),
        Note(f"written to {folder}: {', '.join(Path(f).name for f in files)}", "dim"),
        Note(verdict, "good" if ok else "bad"),
    )
    return Report(DemoResult(ok, ran["algorithm"], str(folder), files, checks), body, 0 if ok else 1)


def _translations(guest: Guest) -> CheckResult:
    """Ask QEMU's own MMU about addresses spread over all leaves of `after`."""
    from ptinspect.analysis.descriptor_batches import sample_leaves

    wrong = []
    asked = 0
    for va, pa in sample_leaves(guest.snapshots["after"], SAMPLES):
        asked += 1
        answer = guest.stopped.gva2gpa(va)
        if answer != pa:
            wrong.append(f"{va:#x}: QEMU {'nothing' if answer is None else hex(answer)}, tables {pa:#x}")
    evidence = wrong[0] if wrong else f"{asked} addresses asked (gva2gpa)"
    return CheckResult(
        "QEMU's own MMU translates as the captured tables say", asked > 0 and not wrong, evidence
    )


def _sum(levels: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(level[key] for level in levels)


def _checks(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    during: Mapping[str, Any],
    found: Mapping[str, Any],
) -> list[CheckResult]:
    leaves, tables = _sum(before, "leaves"), _sum(before, "table_descriptors")
    ng, marked = _sum(before, "leaves_ng"), _sum(before, "table_descriptors_marked")
    all_ng = _sum(after, "leaves_ng") == _sum(after, "leaves") == leaves
    all_marked = _sum(after, "table_descriptors_marked") == _sum(after, "table_descriptors") == tables
    changed = _sum(found["levels"], "changed")
    gone = _sum(found["levels"], "lost")
    frontier = during["frontier"]
    where = "no frontier" if frontier is None else f"frontier {frontier['va']} at level {frontier['level']}"
    part = f"{during['leaves_ng']} of {during['leaves']} leaves nG, {where}"
    marks = f"{_sum(after, 'table_descriptors_marked')} of {tables}"
    return [
        CheckResult(
            "before: no leaf is nG, no table is marked",
            ng == marked == 0,
            f"{leaves} leaves, {tables} tables",
        ),
        CheckResult("during: caught in the middle", during["state"] == "in-progress", part),
        CheckResult("after: every leaf is nG", all_ng, f"{_sum(after, 'leaves_ng')} of {leaves}"),
        CheckResult("after: every table is marked", all_marked, marks),
        CheckResult(
            "nothing but bit 11 changed", bool(found["only_bit11"]), f"{changed} descriptors changed"
        ),
        CheckResult(
            "every descriptor changed", changed == leaves + tables, f"{changed} of {leaves + tables}"
        ),
        CheckResult("no descriptor was lost", gone == 0, f"{gone} lost"),
    ]


def _fault(ctx: Context, fault: Fault, timeout: float, *, guarded: bool) -> Report:
    """Inject the fault where the report had it, and explain what happens."""
    change = inject(ctx.guest, fault, timeout)
    text = f"pa:{change.pa:#x}: {change.old:#x} -> {change.new:#x}"
    line = f"poke descriptor pa:{change.pa:#x} {change.new:#x} --yes"
    ctx.step(line, Report({}, (Note(text, "changed"),)))
    injected = PokeResult(PhysAddr(change.pa), Hex(change.old), Hex(change.new))
    if not guarded:
        return _death(ctx, fault, injected)
    certain = fault == "lost" or ctx.guest.stopped.cpu_count >= REVERTED_CPUS
    seconds = GUARD_SECONDS if certain else QUIET_SECONDS
    caught = ctx.step(f"stack guard --timeout {seconds:g}", guard(ctx, timeout=seconds))
    if caught["way"] == "time":
        return _quiet(ctx, fault, injected)
    verdict = caught.get("why") or {}
    ok = _is_explained(fault, injected, verdict)  # the net catches it too, further down: bad-stack
    note = (
        "The guard caught it, and why names the descriptor."
        if ok
        else "It was not explained as it should be."
    )
    result = CaughtResult(ok, fault, injected, caught["way"], verdict)
    return Report(result, (Note(note, "good" if ok else "bad"),), 0 if ok else 1)


def _is_explained(fault: Fault, injected: PokeResult, verdict: Mapping[str, Any]) -> bool:
    """Tell whether `why` names the fault and the descriptor."""
    named = (verdict.get("descriptor") or {}).get("descriptor_pa") == hex_address(injected.descriptor_pa)
    return bool(named and verdict.get("code") == EXPECTED[fault])


def _quiet(ctx: Context, fault: Fault, injected: PokeResult) -> Report:
    """Say why the guard saw nothing: the stack's addresses still lead to memory, but not to the stack's."""
    judged, note = _judged(ctx, fault, injected)
    verdict: Mapping[str, Any] = judged["why"]
    ok = judged["explained_by"]["why"] and any(ELSEWHERE in line for line in verdict["evidence"])
    text = (
        "The guard was quiet because nothing faulted: a block of the boot's table maps the stack's "
        "addresses, to memory of something else. why and check name the reverted entry. With --smp "
        f"{REVERTED_CPUS} some stacks lie outside of such blocks."
        if ok
        else "The guard was quiet, and nothing shows why."
    )
    style: Style = "changed" if ok else "bad"
    return Report(JudgedResult(**judged, guard="time", ok=ok), (note, Note(text, style)), 0 if ok else 1)


def _judged(ctx: Context, fault: Fault, injected: PokeResult) -> tuple[dict[str, Any], Note]:
    """Ask the stopped guest, its tables, and its console."""
    console, live = _oops(ctx), dict[str, Any]()
    judged: dict[str, Any] = {"fault": fault, "injected": injected, "console": console}
    if ctx.guest.state == "stopped":
        live = dict(ctx.step("why", why(ctx.guest)))
        checked = ctx.step(
            "check --against after --limit 4", check(ctx.guest, tables=Tables(), against="after", limit=4)
        )
        judged["check"] = {"ok": checked["ok"], "findings": checked["findings"]}
    codes = [panic["verdict"]["code"] for panic in console["panics"]]
    by_live = _is_explained(fault, injected, live)
    judged |= {"explained_by": {"why": by_live, "oops": EXPECTED[fault] in codes}, "why": live}
    how = f"the console shows: {', '.join(codes)}" if codes else "the console shows nothing of it"
    return judged, Note(how, "dim")


def _death(ctx: Context, fault: Fault, injected: PokeResult) -> Report:
    """Let the guest die its own way, and explain it from the console's log and from the guest itself."""
    end = run_to_death(ctx.guest)
    judged, note = _judged(ctx, fault, injected)
    ways = {"why": "why, on the guest itself", "oops": "oops, from its console"}
    explained = [ways[name] for name, ok in judged["explained_by"].items() if ok]
    ok = bool(explained)
    text = f"Explained by {' and by '.join(explained)}." if ok else "It was not explained as it should be."
    body = (Note(end, "dim"), note, Note(text, "good" if ok else "bad"))
    return Report(JudgedResult(**judged, end=end, ok=ok), body, 0 if ok else 1)


def _oops(ctx: Context) -> Mapping[str, Any]:
    """Have the console's log explained, if there is a death in it."""
    if ctx.guest.qemu is None:
        return {"panics": []}
    file = str(ctx.guest.qemu.console)
    report = oops(ctx, file=file)
    if report.result["panics"]:
        ctx.step(shlex.join(["oops", file]), report)
    return report.result
