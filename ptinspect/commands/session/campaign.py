"""`campaign`: the same script on many fresh guests, and what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import REPEATED, number_argument, switch, timeout_argument
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError, UserError
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.campaign.results import Record
    from ptinspect.campaign.statistics import Attempts, Merged
    from ptinspect.commands.session.campaign_view import Compared


MOST = 12
"""Failed runs that are compared: the first of each way to fail."""
SNAPSHOTS = 4
"""Snapshots of one run that are compared."""


def compared(merged: Merged, directories: Sequence[Path]) -> list[Compared]:
    """Compare the first run of each way to fail with what passing runs of its cell have in common."""
    firsts = [alike[0] for alike in merged.ways() if alike[0].last.outcome != "error"]
    return [_compare(merged, item, directories) for item in firsts[:MOST]]


def _compare(merged: Merged, item: Attempts, directories: Sequence[Path]) -> Compared:
    from ptinspect.campaign import passing_runs
    from ptinspect.campaign.attempt import read_answers
    from ptinspect.campaign.child import ANSWERS
    from ptinspect.campaign.passing_runs import first_difference
    from ptinspect.campaign.plan import folder
    from ptinspect.campaign.runner import RUNS
    from ptinspect.commands.session.campaign_view import Compared

    cell = merged.plan.cells.index(item.run.cell)
    name, number, outcome = item.run.cell.name, item.run.number, item.last.outcome
    path = item.directory / RUNS / folder(item.run, item.last.attempt)
    if not (path / ANSWERS).is_file():
        return Compared(name, number, outcome, None, "its answers are not here")
    places = [item.directory, *(each for each in directories if each != item.directory)]
    for place in places:
        good = passing_runs.load(place, cell)
        if good is None:
            continue
        found = first_difference(good, passing_runs.steps_of(read_answers(path / ANSWERS)))
        pairs = _snapshots(place / RUNS / good.reference, path)
        why = "" if found else "no value that passing runs share is another one"
        return Compared(name, number, outcome, found, why, tuple(pairs))
    passed = merged.rows[cell].count("pass", "retried")
    why = "what passing runs had in common is not here" if passed else "no run of this cell passed"
    return Compared(name, number, outcome, None, why)


def _snapshots(good: Path, bad: Path) -> list[Mapping[str, Any]]:
    """Compare snapshots that both runs saved under the same name."""
    try:
        names = sorted({file.name for file in good.glob("*.npz")} & {file.name for file in bad.glob("*.npz")})
    except OSError:
        return []
    return [_pair(name, good / name, bad / name) for name in names[:SNAPSHOTS]]


def _pair(name: str, good: Path, bad: Path) -> Mapping[str, Any]:
    from ptinspect.analysis.diff import diff
    from ptinspect.snapshot.store import load

    try:
        found = diff(load(good), load(bad), max_changes=1)
    except PtinspectError as error:
        return {"name": name, "error": escape(error.message)}
    first = ""
    for change in found.changes[:1]:
        before, after = (
            "unreadable" if value is None else f"{value:#x}" for value in (change.before, change.after)
        )
        kinds = ", ".join(change.kinds)
        first = f"{kinds} at {change.va_start:#x}, level {change.level}: {before} -> {after}"
    return {
        "name": name,
        "changes_total": found.changes_total,
        "only_bit11": found.only_bit11,
        "changed": found.changed,
        "first": first,
    }


SECONDS = 300.0
CORES = len(os.sched_getaffinity(0))
"""Processors that this process may use."""
SHOWN = 20
"""Ways to fail that are listed on the screen."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell counts it."""

DETAILS = """\
Each run is a process of its own with a fresh guest: `launch` with the values of the matrix (kernel, cpu, mem,
smp, machine, qemu; append adds words to the kernel's command line; var.NAME is a variable of the script),
then the script, which sees the same values as variables, and ${run}, ${attempt}, ${home}. A script that
launches guests itself is left to do so. It runs in a directory of its own, where what it saves under a
relative name is kept; ${home} is the one that the campaign began in.
A run ends as pass, fail (a check did not hold), crash (the guest died), hang (the time was over), error (it
could not be made) or bug (of ptinspect). What did not pass keeps its answers, snapshots and console, with
`why`, `snap` and the end of the console as the guest stood; of what passed the first of each cell is kept.
--timeline failed records each boot, on one CPU: it takes 1.1 to 1.6 times as long, and some 60 MB, which what
passed gives back at its end. The report names the recordings, which `timeline open` replays.
Results are lines of JSON in DIR/results.jsonl. Ctrl-C stops; --resume goes on, with what is missing only.
--shard 2/4 runs the second quarter: give all shards directories of their own, and the same arguments
besides. Exit code 0: all passed; 1: some did not; 3: nothing could be run."""


@command(
    "campaign",
    group="Session",
    summary="Run a script on many fresh guests, and say what came of it",
    example="campaign @kpti-diff --runs 2 --matrix cpu=a57,max --directory out",
    arguments=(
        argument("script", nargs="?", metavar="SCRIPT", help="a script, or @NAME: one that came along"),
        number_argument("--runs", 1, 1_000_000, "guests in all, over all shards"),
        number_argument("--jobs", 1, CORES, "guests at a time (1)", default=1),
        argument(
            "--matrix", nargs="+", action="extend", default=[], metavar="KEY=A,B", help="values to combine"
        ),
        argument("--var", metavar="NAME=VALUE", help="a variable of the script", **REPEATED),
        timeout_argument("for one run (300)", SECONDS),
        argument(
            "--retries", type=arguments.whole(0, 100), default=0, metavar="K", help="further attempts (0)"
        ),
        argument("--shard", default="1/1", metavar="I/N", help="run this part only"),
        argument(
            "--directory", type=Path, metavar="DIR", help="where the results go (default: a new one here)"
        ),
        argument(
            "--resume", nargs="?", const="", metavar="DIR", help="run what is missing in DIR, or --directory"
        ),
        switch("--keep-all", "keep the files of what passed too"),
        argument(
            "--timeline", choices=("failed",), help="record each boot, and keep the recordings of what failed"
        ),
    ),
    details=DETAILS,
    not_in_gdb="use ptinspect without GDB: it starts guests of its own",
)
def campaign(
    ctx: Context,
    *,
    script: str | None,
    runs: int | None,
    jobs: int,
    matrix: list[str],
    var: list[str],
    timeout: float,
    retries: int,
    shard: str,
    directory: Path | None,
    resume: str | None,
    keep_all: bool,
    timeline: str | None,
) -> Report:
    """Run a campaign, or what is missing of one."""
    from ptinspect.campaign import results
    from ptinspect.campaign.runner import Runner, left, locked
    from ptinspect.commands.session import campaign_plan as planning

    folder = _directory(script, shard, directory, resume)
    resumed = resume is not None and results.begun(folder)
    if script is None and not resumed:
        what = f"no campaign in {folder}" if resume is not None else "campaign: no SCRIPT"
        raise UserError(what, "campaign SCRIPT --runs 50")
    given = None
    if script is not None:
        wanted = planning.Wanted(script, runs, matrix, var, timeout, retries, shard, timeline or "")
        given = planning.begin(ctx.registry, ctx.guest.gdb, wanted)
    elif runs or matrix or var or timeline:
        raise UserError("what runs is known from the directory", "campaign --resume DIR, without the rest")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}") from error
    with locked(folder):
        records: Sequence[Record] = ()
        if resumed:
            results.mend(folder)
            before = results.load(folder)
            going = planning.resume(ctx.registry, before, given)
            records = before.records
        else:
            assert given is not None
            going = given
            going.home.save(folder)
            results.begin(folder, going.plan, going.shard, planning.host())
        work = left(going.plan, going.shard, records)
        runner = Runner(
            going.plan,
            folder,
            going.home.starter(going.plan, going.scripts),
            going.home.judge(),
            jobs=jobs,
            keep_all=keep_all,
            progress=partial(_progress, ctx),
        )
        interrupted = False
        try:
            runner.go(work)
        except KeyboardInterrupt:
            interrupted = True
        return _report(ctx, folder, len(work), interrupted, going.scripts.late)


def _directory(script: str | None, shard: str, directory: Path | None, resume: str | None) -> Path:
    if resume and directory:
        raise UserError("--resume DIR and --directory name two directories", "campaign --resume DIR")
    if resume or directory:
        return Path(resume or directory or "")
    if resume is not None:
        raise UserError("--resume: of which directory?", "campaign --resume DIR")
    name = Path((script or "").lstrip("@")).stem or "script"
    part = "" if shard == "1/1" else f"-{shard.replace('/', '-of-')}"
    return Path(f"campaign-{name}-{time.strftime('%Y%m%d-%H%M%S')}{part}")


def _progress(ctx: Context, done: list[Record], running: int, total: int) -> None:
    final = [record for record in done if record.final]
    passed = sum(record.outcome == "pass" for record in final)
    text = f"{len(final)} of {total}: {passed} passed, {len(final) - passed} not; {running} running"
    ctx.progress(text, len(final), total)


def _report(
    ctx: Context, directory: Path, wanted: int, interrupted: bool, late: Sequence[str] = ()
) -> Report:
    from ptinspect.campaign import results
    from ptinspect.campaign.statistics import merge
    from ptinspect.commands.session.campaign_view import campaign_report

    merged = merge([results.load(directory)], only_shards=True)
    facts: dict[str, Any] = {"directory": str(directory), "interrupted": interrupted, "started": wanted}
    facts["not_in_digest"] = list(late)
    made = campaign_report(merged, compared(merged, [directory]), rows=ctx.rows(SHOWN), facts=facts)
    name = escape(str(directory))
    notes = [Note(f"results: {name}", "dim")]
    if late:
        places = escape(", ".join(late[:SHOWN]))
        notes.append(Note(f"changes of the scripts that {places} call will not be noticed", "changed"))
    if interrupted:
        notes.append(Note(f"interrupted; campaign --resume {name} runs what is missing", "changed"))
    code = INTERRUPTED if interrupted else made.exit_code
    return Report(made.result, (*made.body, *notes), code)
