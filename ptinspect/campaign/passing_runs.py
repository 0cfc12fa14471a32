"""What all passing runs of a cell answered alike, and where a run that failed first differs from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ptinspect.campaign.attempt import read_answers
from ptinspect.campaign.child import ANSWERS
from ptinspect.dataclass import dataclass
from ptinspect.files import replacing
from ptinspect.script.outcome import AFTERWARDS

FOLDER = "good"
"""In the directory of a campaign: a file for each cell."""
VERSION = 1
MAX_BYTES = 64 << 20
MAX_STEPS = 2_000
MAX_VALUES = 4_000
"""Values of one answer that are compared; the rest of a long list is not."""
MAX_TEXT = 300
MAX_DEPTH = 12
NOT_COMPARED = frozenset(
    {
        "pid",
        "console",
        "created",
        "command_line",
        "file",
        "written",
        "bytes",
        "source",
        "memory",
        "qemu",
        "timeline",
    }
)
"""Fields that differ from process to process, or name files."""

_FOLDER = re.compile(r"\d{1,8}(-\d{1,6})?")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Step:
    """An answer in a form that can be compared."""

    command: str
    line: str
    place: str
    """`file:line`, or empty."""
    ok: bool
    values: Mapping[str, Value]
    """Values by path, in the order of the answer."""
    error: str = ""
    """The error if it could not be done."""


@dataclass(frozen=True)
class Good:
    """What passing runs of a cell have in common."""

    reference: str
    """Directory of the run whose files were kept, within `runs`."""
    runs: int
    steps: tuple[Step, ...]
    """Their common answers, with the values that were the same in all."""


def steps_of(answers: Iterable[Mapping[str, Any]]) -> Iterator[Step]:
    """Go through answers up to what ran after a failure."""
    for number, answer in enumerate(answers):
        if answer.get("place") == AFTERWARDS or number >= MAX_STEPS:
            return
        error = answer.get("error")
        message = str(error.get("message", "")) if isinstance(error, Mapping) else ""
        message = message.removeprefix(f"{answer.get('place')}: ")
        values: dict[str, Value] = {}
        if answer.get("command") != "launch":
            _flatten(answer.get("result"), "", values, 0)
        line, place = str(answer.get("line", ""))[:MAX_TEXT], str(answer.get("place", ""))[:MAX_TEXT]
        name = str(answer.get("command", ""))[:MAX_TEXT]
        yield Step(name, line, place, bool(answer.get("ok", True)), values, message[:MAX_TEXT])


def _flatten(value: object, path: str, into: dict[str, Value], level: int) -> None:
    if len(into) >= MAX_VALUES or level > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in NOT_COMPARED:
                _flatten(item, f"{path}.{key}" if path else str(key), into, level + 1)
    elif isinstance(value, list):
        into[f"{path}.length"] = len(value)
        for number, item in enumerate(value):
            if len(into) >= MAX_VALUES:
                return
            _flatten(item, f"{path}.{number}", into, level + 1)
    elif isinstance(value, str):
        into[path] = value[:MAX_TEXT]
    elif value is None or isinstance(value, (bool, int, float)):
        into[path] = value


def common(good: Good, steps: Iterable[Step]) -> Good:
    """Return what a further passing run leaves of it."""
    kept = []
    for old, new in zip(good.steps, steps, strict=False):
        values = {path: value for path, value in old.values.items() if _same(new.values, path, value)}
        name = old.command if old.command == new.command else ""
        kept.append(Step(name, old.line, old.place, old.ok and new.ok, values))
    return Good(good.reference, good.runs + 1, tuple(kept))


def _same(values: Mapping[str, Value], path: str, value: Value) -> bool:
    return path in values and values[path] == value and type(values[path]) is type(value)


def file_of(directory: Path, cell: int) -> Path:
    """Return the file of a cell, by its number in the plan."""
    return directory / FOLDER / f"{cell:05}.json"


def add(directory: Path, cell: int, folder: Path) -> bool:
    """Take a passing run in; tell whether it is the first of its cell, whose files are kept.

    Raises UserError if there is no room for what they have in common.
    """
    steps = tuple(steps_of(read_answers(folder / ANSWERS)))
    before = load(directory, cell)
    good = Good(folder.name, 1, steps) if before is None else common(before, steps)
    path = file_of(directory, cell)
    path.parent.mkdir(exist_ok=True)
    value = {
        "version": VERSION,
        "reference": good.reference,
        "runs": good.runs,
        "steps": [[s.command, s.line, s.place, s.ok, dict(s.values)] for s in good.steps],
    }
    with replacing(path) as file:
        file.write(json.dumps(value).encode())
    return before is None


def load(directory: Path, cell: int) -> Good | None:
    """Read what was kept of a cell; None if nothing was, or it cannot be read."""
    try:
        with file_of(directory, cell).open("rb") as file:
            value = json.loads(file.read(MAX_BYTES))
        if value["version"] != VERSION:
            return None
        steps = tuple(
            Step(
                str(command),
                str(line),
                str(place),
                bool(ok),
                {str(k): v for k, v in values.items() if _plain(v)},
            )
            for command, line, place, ok, values in value["steps"][:MAX_STEPS]
        )
        reference = str(value["reference"])
        if not _FOLDER.fullmatch(reference):
            return None
        return Good(reference, int(value["runs"]), steps)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))


@dataclass(frozen=True)
class Difference:
    """Where a run first answered otherwise than all passing runs did."""

    line: str
    place: str
    """Its `file:line`, or empty."""
    path: str
    """The value's path in the answer; empty if the command failed, or was not reached."""
    good: Value
    """What all passing runs have."""
    bad: Value
    """What this one has."""
    runs: int


def first_difference(good: Good, steps: Iterable[Step]) -> Difference | None:
    """Return the first value that differs from one that all passing runs share; None without one.

    With one passing run every value of it is taken as shared.
    """
    bad = list(steps)
    for number, wanted in enumerate(good.steps):
        if number >= len(bad):
            return Difference(wanted.line, wanted.place, "", "answered", "not reached", good.runs)
        found = _differs(wanted, bad[number], good.runs)
        if found is not None:
            return found
    return None


def _differs(wanted: Step, got: Step, runs: int) -> Difference | None:
    def differs(path: str, good: Value, bad: Value) -> Difference:
        return Difference(got.line, got.place, path, good, bad, runs)

    if got.error:
        return differs("", "answered", got.error)
    if wanted.command and wanted.command != got.command:
        return differs("command", wanted.command, got.command)
    flags: Difference | None = None
    for path, value in wanted.values.items():
        other = got.values.get(path, "(absent)")
        if other == value and type(other) is type(value):
            continue
        found = differs(path, value, other)
        if path == "ok" or path.endswith(".ok"):
            flags = flags or found  # the value that it was about shows more
        else:
            return found
    if flags is None and wanted.ok and not got.ok:
        return differs("ok", True, False)
    return flags
