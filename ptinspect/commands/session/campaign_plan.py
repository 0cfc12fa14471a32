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
from ptinspect.commands.framework.preflight import Preflight
from ptinspect.commands.framework.registry import Registry
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.linux.oops import logfile
from ptinspect.output.files import write_text
from ptinspect.processes import die_with_parent
from ptinspect.reference import guests
from ptinspect.script.shipped import open_script, path_of
from ptinspect.script.statements import Line, OnStop, Repeat, Source, Statement
from ptinspect.script.variables import definition

FILE = "home.json"
"""In the directory of a campaign: what --resume needs besides the results."""
PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "ptinspect")
"""How ptinspect is started; tests put something else here."""
MAX_BYTES = 1 << 20
CHECKED = 64
"""Cells for which the script is checked beforehand."""
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
    """GDB that was asked for."""
    launches: bool = False
    """True if the script launches its guests itself."""

    def save(self, directory: Path) -> None:
        """Write it into the campaign's directory. Raises UserError."""
        write_text(directory / FILE, json.dumps(asdict(self)) + "\n")

    def starter(self, plan: Plan) -> Callable[[Run, int, Path], Child]:
        """Return what starts an attempt in a directory; it refuses a script that has changed meanwhile."""
        place = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": paths}

        def start(run: Run, attempt: int, directory: Path) -> Child:
            if digest_of(self.script) != plan.digest:
                raise UserError(f"{self.script} has changed since the campaign began", "begin another one")
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


Begun = tuple[Plan, tuple[int, int], Home]
"""A campaign that can run: its plan, its shard (number, of how many), and its home."""


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
    digest = digest_of(script)
    plan = Plan(wanted.script, digest, wanted.runs, cells, given, wanted.timeout, wanted.retries)
    home = Home(script, str(Path.cwd()), gdb, _check(registry, script, plan))
    if not home.launches:
        _check_kernels(cells)
    return plan, shard_of(wanted.shard), home


def resume(before: Results, given: Begun | None) -> Home:
    """Return the home of a campaign that goes on. Raises UserError if it cannot go on as it began."""
    if given is not None:
        differs = same_campaign(before.plan, given[0])
        if differs or given[1] != before.shard:
            raise UserError(
                f"{before.directory} holds another campaign: other {differs or 'shard'}",
                "campaign --resume DIR, without the rest, or another --directory",
            )
        return given[2]
    try:
        value = json.loads((before.directory / FILE).read_text("utf-8"))
        home = Home(str(value["script"]), str(value["directory"]), value["gdb"], bool(value["launches"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{before.directory / FILE} cannot be used: {type(error).__name__}",
            "campaign SCRIPT … --directory DIR --resume names again what runs",
        ) from error
    if digest_of(home.script) != before.plan.digest:
        raise UserError(f"{home.script} has changed since the campaign began", "begin another one")
    return home


def digest_of(script: str) -> str:
    """Return the SHA-256 of a script and of the scripts that it names. Raises UserError."""
    seen: dict[str, bytes] = {}
    waiting = [script]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        try:
            with path_of(name).open("rb") as file:
                seen[name] = file.read(MAX_BYTES)
        except OSError as error:
            if name == script:
                raise UserError(f"cannot read the script {name}: {error.strerror or error}") from error
            continue
        waiting += [s.path for s in _flat(open_script(name)) if isinstance(s, Source) and "$" not in s.path]
    total = hashlib.sha256()
    for data in sorted(seen.values()):
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()


def _flat(statements: Iterable[Statement]) -> Iterator[Statement]:
    for statement in statements:
        yield statement
        if isinstance(statement, (Repeat, OnStop)):
            yield from _flat(statement.body)


def _check(registry: Registry, script: str, plan: Plan) -> bool:
    """Look at the script as the runs will; tell whether it launches its guests. Raises UserError."""
    statements = open_script(script)
    for cell in plan.cells[:CHECKED]:
        known: dict[str, str | None] = {**variables(plan, Run(1, cell), 1, Path.cwd()), "run": None}
        Preflight(registry, {**known, "attempt": None}).check(statements)
    launches = False
    for line in _flat(statements):
        if isinstance(line, Source) and not line.path.startswith(("@", "/", "${")):
            raise UserError(
                f"{line.place}: each run has a directory of its own, where {line.path} is not",
                f"source ${{home}}/{line.path}: ${{home}} is the directory in which the campaign began",
            )
        if isinstance(line, Line) and not line.text.startswith("${"):
            found = registry.split(line.text)
            command, words = found.command, found.words
            launches |= command.name == "launch" and "--unless-attached" not in words
            launches |= command.name == "attach"
    return launches


def _check_kernels(cells: tuple[Cell, ...]) -> None:
    """Raise TargetError if a kernel is neither a file nor a reference guest that is installed."""
    names = {cell.get("kernel") for cell in cells}
    for name in sorted(names):
        if name and not Path(name).is_file():
            guests.guest(name)
