"""What came of an attempt: exit code, answers and console, weighed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptinspect import __version__
from ptinspect.campaign.child import ANSWERS, CONSOLE, MAX_LINE, STDERR, Ended
from ptinspect.campaign.plan import Run
from ptinspect.campaign.results import Record
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_BUG, EXIT_CHECK, EXIT_OK

MAX_ANSWERS = 100_000
MAX_SHOWN = 1000
_MAX_DEPTH = 12
Panics = Callable[[bytes], str]
"""From a console's bytes to the line in which the kernel died, or nothing."""
_PLAIN = {EXIT_OK: "pass", EXIT_CHECK: "fail", EXIT_BUG: "bug"}
TEXT = 500
"""Longest message that is kept, characters."""


@dataclass(frozen=True)
class RunFacts:
    """Hold what the answers of a run show."""

    deepest: int | None = None
    """Most bytes of a kernel stack in use."""
    least_free: int | None = None
    """Fewest bytes of a kernel stack free."""
    lost: int | None = None
    """Entries that diffs call lost."""
    verdict: str = ""
    """Code of the last `kpti verdict` or `why`."""
    where: str = ""
    message: str = ""
    kind: str = ""
    """Kind of the error, empty where a check did not hold."""
    console: str = ""
    """File of the guest's console, from `launch`."""
    stub: str = ""
    """Its gdbstub, from `launch`: the path of a socket."""
    answers: int = 0
    last: str = ""
    """The command line of the last answer."""


def read_answers(path: Path) -> Iterator[dict[str, Any]]:
    """Go through the answers in a file of JSON lines; lines that hold none are left out."""
    try:
        with path.open("rb") as file:
            for _ in range(MAX_ANSWERS):
                line = file.readline(MAX_LINE)
                if not line:
                    return
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict) and "command" in value:
                    yield value
    except OSError:
        return


def facts_of(answers: Iterable[Mapping[str, Any]]) -> RunFacts:
    """Return what the answers of a run show."""
    depths: list[int] = []
    frees: list[int] = []
    lost: int | None = None
    verdict = where = message = kind = console = stub = last = ""
    count, failed = 0, False
    for answer in answers:
        count += 1
        result = answer.get("result")
        result = result if isinstance(result, Mapping) else {}
        name = str(answer.get("command", ""))
        last = str(answer.get("line", ""))[:MAX_SHOWN]
        if name == "launch":
            console, stub = str(result.get("console") or console), str(result.get("address") or stub)
        if name.startswith("stack"):
            _depths(result, depths, frees, 0)
        if name == "diff":
            lost = (lost or 0) + sum(_count(level, "lost") for level in _list(result.get("levels")))
        if name in ("kpti verdict", "why"):
            verdict = str(result.get("code") or result.get("verdict") or verdict)
        if not answer.get("ok", True) and not failed:
            failed = True
            error = answer.get("error")
            error = error if isinstance(error, Mapping) else {}
            kind, where = str(error.get("kind", "")), str(answer.get("place", ""))
            message = str(error.get("message", "")) or _unmet(name, result)
            message = message.removeprefix(f"{where}: ")
    return RunFacts(
        deepest=max(depths, default=None),
        least_free=min(frees, default=None),
        lost=lost,
        verdict=verdict,
        where=where,
        message=message[:MAX_SHOWN],
        kind=kind,
        console=console,
        stub=stub,
        answers=count,
        last=last,
    )


def _unmet(name: str, result: Mapping[str, Any]) -> str:
    """Return what did not hold, where the answer is not an error."""
    for key in ("message", "expectation", "reason", "way"):
        if isinstance(result.get(key), str) and result[key]:
            values = f": {result['left']!r}" if "left" in result else ""
            return f"{name}: {result[key]}{values}"
    findings = _list(result.get("findings"))
    if findings:
        rules = sorted({str(item.get("rule", "")) for item in findings if isinstance(item, Mapping)})
        return f"{name}: {', '.join(rules)}"
    return f"{name}: it did not hold"


def _count(value: object, key: str) -> int:
    number = value.get(key, 0) if isinstance(value, Mapping) else 0
    return number if isinstance(number, int) else 0


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _depths(value: object, depths: list[int], frees: list[int], level: int) -> None:
    """Collect every depth and every room that an answer of a `stack` command names."""
    if level > _MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for key, into in (("used", depths), ("deepest", depths), ("after", depths), ("free", frees)):
            number = value.get(key)
            if isinstance(number, int) and not isinstance(number, bool):
                into.append(number)
        number = value.get("least_free")
        if isinstance(number, int):
            frees.append(number)
        for item in value.values():
            _depths(item, depths, frees, level + 1)
    elif isinstance(value, list):
        for item in value:
            _depths(item, depths, frees, level + 1)


def judge(run: Run, attempt: int, ended: Ended, directory: Path, panics: Panics) -> Record:
    """Return the record of an attempt that has ended."""
    facts = facts_of(read_answers(directory / ANSWERS))
    panic = panics(_bytes(directory / CONSOLE)) if ended.code != EXIT_OK else ""
    outcome = outcome_of(ended, facts, panic)
    return Record(
        run=run.number,
        cell=dict(run.cell.values),
        attempt=attempt,
        outcome=outcome,
        code=ended.code,
        where=facts.where[:TEXT],
        message="" if outcome == "pass" else _message(ended, facts, directory),
        seconds=round(ended.seconds, 3),
        deepest=facts.deepest,
        least_free=facts.least_free,
        lost=facts.lost,
        verdict=facts.verdict[:TEXT],
        panic=panic[:TEXT],
        answers=facts.answers,
        version=__version__,
    )


def outcome_of(ended: Ended, facts: RunFacts, panic: str) -> str:
    """Return one of results.OUTCOMES.

    A guest whose console shows a death has crashed, whatever the script reported about the time that it
    waited; a check that did not hold is the script's own word, and stands. A command that could not be
    done on a guest that was there is a failure like a check; without a guest nothing was run.
    """
    if ended.why == "output":
        return "error"
    if not ended.why and ended.code in _PLAIN:
        return _PLAIN[ended.code]
    if panic:
        return "crash"
    if ended.why == "time":
        return "hang"
    if signal_of(ended) or not facts.console:
        return "error"  # a signal that was not sent from here, or no guest that was launched
    return {"lost": "crash", "timeout": "hang"}.get(facts.kind, "fail")


def signal_of(ended: Ended) -> int:
    """Return the signal that ended a process, 0 if none did; one that it caught is in its exit code."""
    return -ended.code if ended.code < 0 else max(ended.code - 128, 0)


def _message(ended: Ended, facts: RunFacts, directory: Path) -> str:
    if ended.why == "time":
        last = f"; its last answer was to: {facts.last or 'nothing'}"
        more = f": {facts.message}" if facts.message else last
        return f"it did not end within its time limit{more}"[:TEXT]
    if ended.why == "output":
        return "it wrote more than a run may write"
    if facts.message:
        return facts.message[:TEXT]
    if signal_of(ended):
        return f"the process was ended by signal {signal_of(ended)}"
    words = _bytes(directory / STDERR)[-4096:].decode("utf-8", "replace").strip().splitlines()
    return (words[-1] if words else f"exit code {ended.code}")[:TEXT]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
