"""What a campaign needs to know before it starts: the plan, and where and how its processes run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptinspect import __version__
from ptinspect.campaign.attempt import judge
from ptinspect.campaign.child import Child, Ended
from ptinspect.campaign.plan import (
    GRACE,
    GUEST_KEYS,
    Cell,
    Plan,
    Run,
    arguments,
    cells_of,
    shard_of,
    variables,
)
from ptinspect.campaign.results import Record, Results
from ptinspect.campaign.statistics import same_campaign
from ptinspect.commands.framework.preflight import Called, Preflight
from ptinspect.commands.framework.registry import Registry
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.linux.oops import logfile
from ptinspect.output.files import write_text
from ptinspect.processes import die_with_parent
from ptinspect.reference import guests
from ptinspect.script.parse import MAX_BYTES
from ptinspect.script.shipped import open_script, path_of
from ptinspect.script.statements import Line, OnFailure, OnStop, Repeat, Statement
from ptinspect.script.variables import definition

FILE = "home.json"
"""In the directory of a campaign: what --resume needs besides the results."""
PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "ptinspect")
"""How ptinspect is started; tests put something else here."""
MOST_CALLERS = 10_000
"""Attempts whose scripts are looked up one by one, where names of scripts depend on the run."""
CONSOLE_DEATHS = frozenset({"bad-stack", "fault", "oops", "bug", "panic", "serror"})
"""Kinds of reports that mean that a kernel has died; a warning or a stall does not."""


@dataclass(frozen=True)
class Home:
    """Where a campaign was begun, and with which options. It stays on this machine."""

    script: str
    """The script's absolute path, or `@NAME`."""
    directory: str
    """The working directory: kernels with relative names are relative to it."""
    gdb: str | None = None
    launches: bool = False
    """True if the script launches its guests itself."""

    def save(self, directory: Path) -> None:
        """Write it into the campaign's directory. Raises UserError."""
        write_text(directory / FILE, json.dumps(asdict(self)) + "\n")

    def starter(self, plan: Plan, scripts: Scripts) -> Callable[[Run, int, Path], Child]:
        """Return what starts an attempt in a directory; it refuses scripts that have changed meanwhile."""
        place = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": paths}

        def start(run: Run, attempt: int, directory: Path) -> Child:
            unchanged(scripts, plan)
            words = [*PROGRAM]
            if self.gdb is not None:
                words += ["--gdb-path", self.gdb]
            words += arguments(
                plan,
                run,
                attempt,
                script=self.script,
                home=Path(self.directory),
                launches=self.launches,
            )
            return Child(
                words, directory, plan.timeout + GRACE, environment=environment, prepare=die_with_parent
            )

        return start

    def judge(self) -> Callable[[Run, int, Ended, Path], Record]:
        """Return what judges an attempt."""

        def record(run: Run, attempt: int, ended: Ended, directory: Path) -> Record:
            return judge(run, attempt, ended, directory, death)

        return record


@dataclass(frozen=True)
class Scripts:
    """A campaign's script, and those that it calls: by itself, through others, in any cell and any run."""

    names: tuple[str, ...]
    """Absolute paths, or `@NAME`, in the order of their first calls; the script itself is the first."""
    launches: bool = False
    """True if one of them launches its guests itself."""
    late: tuple[str, ...] = ()
    """Places that call scripts whose names are known only when they are reached: those are not here."""

    def digest(self) -> str:
        """Return the SHA-256 over the texts. Raises UserError if one cannot be read."""
        total = hashlib.sha256()
        for name in self.names:
            try:
                with open_input(path_of(name).expanduser()) as file:
                    total.update(hashlib.sha256(file.read(MAX_BYTES)).digest())
            except OSError as error:
                raise UserError(f"cannot read the script {name}: {error.strerror or error}") from error
        return total.hexdigest()


@dataclass(frozen=True)
class Begun:
    """A campaign that can run."""

    plan: Plan
    shard: tuple[int, int]
    """Its part of it: number, of how many."""
    home: Home
    scripts: Scripts


def death(console: bytes) -> str:
    """Return how the kernel died by its console, or nothing."""
    for incident in logfile.read((console,)).finish():
        if incident.panic or incident.first.kind in CONSOLE_DEATHS:
            return " ".join(incident.message.split())
    return ""


def host() -> dict[str, Any]:
    """Return what the campaign runs on; no names and no paths."""
    return {
        "ptinspect": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


@dataclass(frozen=True)
class Wanted:
    """What a campaign is asked to run."""

    script: str
    """A script, or `@NAME`."""
    runs: int | None
    """Guests in all."""
    matrix: Sequence[str]
    """`KEY=A,B`: values to combine."""
    variables: Sequence[str]
    """`NAME=VALUE`."""
    timeout: float
    """Seconds for one run."""
    retries: int
    shard: str
    """`I/N`."""
    timeline: str = ""
    """Whose recordings are kept; empty: nothing is recorded."""


def begin(registry: Registry, gdb: str | None, wanted: Wanted) -> Begun:
    """Return plan, shard and home of what is wanted. Raises UserError or TargetError."""
    if wanted.runs is None:
        raise UserError("how many runs?", "campaign SCRIPT --runs 50")
    if not wanted.timeout > 0:
        raise UserError("--timeout: more than no time, please")
    cells = cells_of(list(wanted.matrix))
    for key, _ in cells[0].values:
        if key not in GUEST_KEYS and not key.startswith("var."):
            known = ", ".join(GUEST_KEYS)
            raise UserError(f"--matrix {key}: no such key", f"{known}, or var.NAME for a variable")
    script = wanted.script if wanted.script.startswith("@") else str(Path(wanted.script).absolute())
    given = tuple(definition(text) for text in wanted.variables)
    plan = Plan(wanted.script, "", wanted.runs, cells, given, wanted.timeout, wanted.retries, wanted.timeline)
    scripts = scripts_of(registry, script, plan, Path.cwd())
    home = Home(script, str(Path.cwd()), gdb, scripts.launches)
    if not home.launches:
        _check_kernels(cells)
    if wanted.timeline:
        _check_recordable(cells, home)
    return Begun(replace(plan, digest=scripts.digest()), shard_of(wanted.shard), home, scripts)


def resume(registry: Registry, before: Results, given: Begun | None) -> Begun:
    """Return a campaign that goes on. Raises UserError if it cannot go on as it began."""
    if given is not None:
        differs = same_campaign(before.plan, given.plan)
        if differs or given.shard != before.shard:
            raise UserError(
                f"{before.directory} holds another campaign: other {differs or 'shard'}",
                "campaign --resume DIR, without the rest, or another --directory",
            )
        return given
    try:
        value = json.loads((before.directory / FILE).read_text("utf-8"))
        home = Home(str(value["script"]), str(value["directory"]), value["gdb"], bool(value["launches"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{before.directory / FILE} cannot be used: {type(error).__name__}",
            "campaign SCRIPT … --directory DIR --resume names again what runs",
        ) from error
    scripts = scripts_of(registry, home.script, before.plan, Path(home.directory))
    unchanged(scripts, before.plan)
    return Begun(before.plan, before.shard, home, scripts)


def unchanged(scripts: Scripts, plan: Plan) -> None:
    """Raise UserError if the scripts are others than those with which the campaign began."""
    if scripts.digest() != plan.digest:
        others = len(scripts.names) - 1
        called = f", or one of the {others} scripts that it calls," if others > 1 else ""
        called = f", or {scripts.names[1]}, which it calls," if others == 1 else called
        raise UserError(
            f"{scripts.names[0]}{called} has changed since the campaign began", "begin another one"
        )


def scripts_of(registry: Registry, script: str, plan: Plan, home: Path) -> Scripts:
    """Look at a script as the runs will, and at those that it calls. Raises UserError.

    Where names of scripts depend on the run, every attempt is looked at, up to MOST_CALLERS of them.
    """
    statements = open_script(script)
    called: dict[str, Called] = {}

    def look(run: Run, attempt: int, *unknown: str) -> set[str]:
        known: dict[str, str | None] = {**variables(plan, run, attempt, home), **dict.fromkeys(unknown)}
        preflight = Preflight(registry, known, called=called)
        preflight.check(statements)
        return preflight.late

    late = set().union(*(look(Run(1, cell), 1, "run", "attempt") for cell in plan.cells))
    attempts = range(1, plan.retries + 2)
    if late and plan.runs * len(attempts) <= MOST_CALLERS:
        late = set().union(*(look(run, attempt) for run in plan.all_runs() for attempt in attempts))
    for name, call in called.items():
        if not name.startswith(("@", "/", "~")):
            raise UserError(
                f"{call.place}: each run has a directory of its own, where {name} is not",
                f"source ${{home}}/{name}: ${{home}} is the directory in which the campaign began",
            )
    launches = any(
        _launches(registry, body) for body in (statements, *(call.statements for call in called.values()))
    )
    return Scripts(tuple(dict.fromkeys((script, *called))), launches, tuple(sorted(late)))


def _launches(registry: Registry, statements: Iterable[Statement]) -> bool:
    """Tell whether a script launches its guests, or attaches to them."""
    for line in _flat(statements):
        if isinstance(line, Line) and not line.text.startswith("${"):
            found = registry.split(line.text)
            if found.command.name == "attach":
                return True
            if found.command.name == "launch" and "--unless-attached" not in found.words:
                return True
    return False


def _flat(statements: Iterable[Statement]) -> Iterator[Statement]:
    for statement in statements:
        yield statement
        if isinstance(statement, (Repeat, OnStop, OnFailure)):
            yield from _flat(statement.body)


def _check_recordable(cells: tuple[Cell, ...], home: Home) -> None:
    """Raise UserError if the campaign does not launch its guests itself, or they cannot be recorded."""
    if home.launches:
        raise UserError(
            "--timeline: the script launches its guests itself",
            "launch --unless-attached leaves that to the campaign, and its choice of guest to the matrix",
        )
    several = next((cell.name for cell in cells if cell.get("smp") not in ("", "1")), None)
    if several is not None:
        raise UserError(f"--timeline: QEMU records machines with one CPU only, not {several}")


def _check_kernels(cells: tuple[Cell, ...]) -> None:
    """Raise TargetError if a kernel is neither a file nor a reference guest that is installed."""
    names = {cell.get("kernel") for cell in cells}
    for name in sorted(names):
        if name and not Path(name).is_file():
            guests.guest(name)
