"""What the answers of a script say about a run: how it ended, stack depth, lost entries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LINE = 16 << 20
MAX_ANSWERS = 100_000
MAX_SHOWN = 1000
_MAX_DEPTH = 12


@dataclass(frozen=True)
class Told:
    """Say what a run's answers tell."""

    deepest: int | None = None
    """Most bytes of a kernel stack in use."""
    least_free: int | None = None
    """Fewest bytes of a kernel stack free."""
    lost: int | None = None
    """Entries that diffs call lost."""
    verdict: str = ""
    """Code of the last `kpti verdict` or `why`."""
    where: str = ""
    """Place of the first failure."""
    message: str = ""
    """What the first failure said."""
    kind: str = ""
    """Kind of the error, empty where a check did not hold."""
    console: str = ""
    """File of the guest's console, from `launch`."""
    answers: int = 0
    """Number of answers."""
    last: str = ""
    """The command line of the last answer."""


def read(path: Path) -> Iterator[dict[str, Any]]:
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


def tell(answers: Iterable[Mapping[str, Any]]) -> Told:
    """Return what the answers of a run tell."""
    depths: list[int] = []
    frees: list[int] = []
    lost: int | None = None
    verdict = where = message = kind = console = ""
    last = ""
    count = 0
    failed = False
    for answer in answers:
        count += 1
        result = answer.get("result")
        result = result if isinstance(result, Mapping) else {}
        name = str(answer.get("command", ""))
        last = str(answer.get("line", ""))[:MAX_SHOWN]
        if name == "launch":
            console = str(result.get("console") or console)
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
    return Told(
        max(depths, default=None),
        min(frees, default=None),
        lost,
        verdict,
        where,
        message[:MAX_SHOWN],
        kind,
        console,
        count,
        last,
    )


def _unmet(name: str, result: Mapping[str, Any]) -> str:
    """Say what did not hold, where the answer is no error."""
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
