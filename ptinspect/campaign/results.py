"""Results of a campaign in a directory: `results.jsonl`, a line for the plan and one for each attempt.

A file begins with a header, `{"format": "ptinspect-campaign", "version": 1, "plan": {…}, "shard": [1, 1],
"host": {…}}`; every further line is an attempt. Fields are added, never renamed. A last line without its
end is what a machine that stopped in the middle leaves: it is left out, and reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ptinspect.campaign.plan import Plan
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError
from ptinspect.files import replacing

FORMAT = "ptinspect-campaign"
VERSION = 1
FILE = "results.jsonl"
MAX_LINE = 1 << 20
MAX_RECORDS = 2_000_000
OUTCOMES = ("pass", "fail", "crash", "hang", "error", "bug")
"""An expectation did not hold: fail. The guest died: crash. The time was over: hang. The run could not be
made: error."""

FAILED = ("fail", "crash", "hang", "bug")
"""Outcomes of runs that were made, and whose recordings are kept."""
MAX_SECONDS = 1e9
"""No run takes as long."""


@dataclass(frozen=True)
class Record:
    """What came of one attempt at a run."""

    run: int
    cell: Mapping[str, str]
    """What was booted."""
    attempt: int
    """From 1 on."""
    outcome: str
    """One of OUTCOMES."""
    final: bool = True
    """No further attempt follows."""
    code: int | None = None
    """Exit code of the process; negative: the signal that ended it."""
    where: str = ""
    """`file:line` of what went wrong."""
    message: str = ""
    seconds: float = 0.0
    deepest: int | None = None
    """Most bytes of a kernel stack that an answer of the script shows as used."""
    least_free: int | None = None
    """Fewest bytes of a kernel stack that an answer shows as free."""
    lost: int | None = None
    """Entries lost, by the diffs among the answers; None without one."""
    verdict: str = ""
    """The last verdict of `kpti verdict` or `why`."""
    panic: str = ""
    """How the guest died, by its console."""
    answers: int = 0
    """Answers of the script."""
    version: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of later versions."""

    def to_line(self) -> str:
        """Return the record as a line of JSON."""
        value = asdict(self)
        extra = value.pop("extra")
        return json.dumps({**value, **extra}) + "\n"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Read a record. Raises UserError if it is none."""
        names = {f.name for f in fields(cls)} - {"extra"}
        known = {key: item for key, item in value.items() if key in names}
        extra = {key: item for key, item in value.items() if key not in names}
        try:
            record = cls(**known, extra=extra)
            whole = isinstance(record.run, int) and isinstance(record.attempt, int)
            cell = {str(k): str(v) for k, v in record.cell.items()}
            numbers = [record.deepest, record.least_free, record.lost]
            if not whole or record.outcome not in OUTCOMES or not 0 <= record.seconds < MAX_SECONDS:
                raise ValueError("a field has a value that it cannot have")
            if not all(n is None or isinstance(n, int) for n in numbers):
                raise ValueError("a count is not a number")
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"no result of a campaign: {error}") from error
        text = {name: str(getattr(record, name)) for name in ("where", "message", "verdict", "panic")}
        return cls(**{**known, **text, "cell": cell}, extra=extra)


@dataclass(frozen=True)
class Results:
    """What a directory holds."""

    directory: Path
    plan: Plan
    shard: tuple[int, int]
    """Which part of it, of how many."""
    records: tuple[Record, ...]
    """The attempts in the order of their ends."""
    cut: bool = False
    """True if the last line lacked its end."""
    host: Mapping[str, Any] = field(default_factory=dict)
    """What it ran on."""


def begin(directory: Path, plan: Plan, shard: tuple[int, int], host: Mapping[str, Any]) -> None:
    """Write the header of a new file of results; `host` is what it runs on. It is there whole or not at all.

    Raises UserError if there is one already, or it cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan.to_json(),
        "shard": list(shard),
        "host": dict(host),
    }
    if begun(directory):
        raise UserError(
            f"{directory} holds a campaign already", f"campaign --resume {directory}, or another --directory"
        )
    with replacing(directory / FILE) as file:
        file.write(json.dumps(header).encode() + b"\n")


def begun(directory: Path) -> bool:
    """Tell whether there are results; an empty file is what a machine that stopped may leave of a header."""
    try:
        return (directory / FILE).stat().st_size > 0
    except OSError:
        return False


def append(directory: Path, record: Record) -> None:
    """Add a record, on the disk when this returns. Raises UserError if it cannot be written."""
    try:
        with (directory / FILE).open("a", encoding="utf-8") as file:
            file.write(record.to_line())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {directory / FILE}: {error.strerror or error}") from error


def mend(directory: Path) -> None:
    """Cut a last line that lacks its end off, so that what is added stands in lines of its own."""
    path = directory / FILE
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)


def load(directory: Path) -> Results:
    """Read a directory's results. Raises UserError, with the line, for what they cannot hold."""
    path = directory / FILE
    records: list[Record] = []
    cut = False
    header: Mapping[str, Any] | None = None
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_RECORDS + 2):
                line = file.readline(MAX_LINE + 1)
                if not line:
                    break
                if len(line) > MAX_LINE:
                    raise UserError(f"{path}:{number}: a line of more than {MAX_LINE} bytes")
                if not line.endswith(b"\n"):
                    cut = True
                    break
                value = _object(path, number, line)
                if header is None:
                    header = value
                    _check(path, header)
                else:
                    try:
                        records.append(Record.from_json(value))
                    except UserError as error:
                        raise UserError(f"{path}:{number}: {error.message}") from error
            else:
                raise UserError(f"{path}: more than {MAX_RECORDS} results")
    except OSError as error:
        raise UserError(
            f"no campaign in {directory}: {error.strerror or error}",
            "campaign SCRIPT --directory DIR makes one",
        ) from error
    if header is None:
        raise UserError(f"{path}: no header", "the campaign did not begin")
    plan = Plan.from_json(header["plan"])
    shard = header.get("shard", [1, 1])
    if not (isinstance(shard, list) and len(shard) == 2 and all(isinstance(n, int) for n in shard)):
        raise UserError(f"{path}:1: {shard!r} is not a shard")
    return Results(directory, plan, (shard[0], shard[1]), tuple(records), cut, _host(header))


def _host(header: Mapping[str, Any]) -> Mapping[str, Any]:
    host = header.get("host")
    return dict(host) if isinstance(host, dict) else {}


def _object(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number}: no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}:{number}: no JSON object")
    return value


def _check(path: Path, header: Mapping[str, Any]) -> None:
    if header.get("format") != FORMAT:
        raise UserError(f"{path} holds no results of a campaign")
    if header.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {header.get('version')!r}", f"this ptinspect reads version {VERSION}"
        )
    if "plan" not in header:
        raise UserError(f"{path}:1: no plan")
