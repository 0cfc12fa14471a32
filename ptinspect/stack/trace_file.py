"""Traces in files: one JSON document, versioned, read within stated bounds.

    {"format": "ptinspect-stack-trace", "version": 1, "method": …, "kernel": …, "began": …, "ended": …,
     "steps": n, "seconds": s, "thinned": bool,
     "stacks": [{"kind", "owner", "base", "top"}], "points": [[at, stack, sp, pc], …],
     "deepest": [{"stack", "used", "at", "pc", "place", "chain": [[function, bytes], …]}],
     "functions": [[function, bytes], …]}

Addresses are hex strings; fields are added, never renamed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ptinspect.errors import SnapshotError
from ptinspect.files import open_input
from ptinspect.stack.trace import UNITS, Deepest, Part, Point, Trace, TracedStack

FORMAT, VERSION = "ptinspect-stack-trace", 1
MAX_BYTES = 64 << 20
MAX_ITEMS = 1 << 20
MAX_TEXT = 4096
_T = TypeVar("_T")


def to_json(trace: Trace) -> dict[str, Any]:
    """Return the document of a trace."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "method": trace.method,
        "unit": UNITS[trace.method],
        "kernel": trace.kernel,
        "began": trace.began,
        "ended": trace.ended,
        "steps": trace.steps,
        "seconds": trace.seconds,
        "thinned": trace.thinned,
        "stacks": [
            {"kind": s.kind, "owner": s.owner, "base": f"{s.base:#x}", "top": f"{s.top:#x}"}
            for s in trace.stacks
        ],
        "points": [[p.at, p.stack, f"{p.sp:#x}", f"{p.pc:#x}"] for p in trace.points],
        "deepest": [
            {
                "stack": d.stack,
                "used": d.used,
                "at": d.at,
                "pc": f"{d.pc:#x}",
                "place": d.place,
                "chain": [[part.function, part.size] for part in d.chain],
            }
            for d in trace.deepest
        ],
        "functions": [[part.function, part.size] for part in trace.functions],
    }


def dumps(trace: Trace) -> str:
    """Return the text of a trace's file."""
    return json.dumps(to_json(trace), separators=(",", ":")) + "\n"


def load(path: Path) -> Trace:
    """Read a trace. Raises SnapshotError with what is wrong with the file."""
    try:
        with open_input(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SnapshotError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise SnapshotError(f"{path} is larger than {MAX_BYTES >> 20} MiB: no trace of ptinspect's")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path} is not a stack trace: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SnapshotError(f"{path} is not a stack trace", "stack trace -o FILE writes one")
    if document.get("version") != VERSION:
        raise SnapshotError(f"{path}: version {document.get('version')!r} is not known", "a newer ptinspect?")
    try:
        return _trace(document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SnapshotError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _trace(d: dict[str, Any]) -> Trace:
    stacks = tuple(
        _list(
            d["stacks"],
            lambda s: TracedStack(_text(s["kind"]), _text(s["owner"]), _hex(s["base"]), _hex(s["top"])),
        )
    )

    def stack(value: Any) -> int:
        number = _whole(value)
        if not -1 <= number < len(stacks):
            raise ValueError(f"there is no stack {number}")
        return number

    points = _list(d["points"], lambda p: Point(_whole(p[0]), stack(p[1]), _hex(p[2]), _hex(p[3])))
    deepest = _list(
        d["deepest"],
        lambda e: Deepest(
            max(stack(e["stack"]), 0),
            _whole(e["used"]),
            _whole(e["at"]),
            _hex(e["pc"]),
            _text(e["place"]),
            _parts(e["chain"]),
        ),
    )
    if d["method"] not in UNITS:
        raise ValueError(f"method {d['method']!r}")
    if deepest and not stacks:
        raise ValueError("a deepest point without a stack")
    return Trace(
        d["method"],
        _text(d["kernel"]),
        _text(d["began"]),
        _text(d["ended"]),
        _whole(d["steps"]),
        float(d["seconds"]),
        stacks,
        tuple(points),
        tuple(deepest),
        _parts(d["functions"]),
        bool(d["thinned"]),
    )


def _parts(items: Any) -> tuple[Part, ...]:
    return tuple(_list(items, lambda p: Part(_text(p[0]), _whole(p[1]))))


def _list(items: Any, make: Callable[[Any], _T]) -> list[_T]:
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise ValueError("a list is missing or too long")
    return [make(item) for item in items]


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 64:
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return value


def _hex(value: Any) -> int:
    number = int(str(value)[:20], 16)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{value!r} is not an address")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError("a text is missing or too long")
    return value
