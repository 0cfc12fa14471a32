"""What came of an attempt: exit code, answers and console, weighed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ptinspect import __version__
from ptinspect.campaign.answers import Told, read, tell
from ptinspect.campaign.child import ANSWERS, CONSOLE, STDERR, Ended
from ptinspect.campaign.plan import Run
from ptinspect.campaign.results import Record
from ptinspect.errors import EXIT_BUG, EXIT_CHECK, EXIT_OK

Panics = Callable[[bytes], str]
"""From a console's bytes to how it says that the kernel died, or nothing."""
_PLAIN = {EXIT_OK: "pass", EXIT_CHECK: "fail", EXIT_BUG: "bug"}
TEXT = 500
"""Longest message that is kept, characters."""


def judge(run: Run, attempt: int, ended: Ended, directory: Path, panics: Panics) -> Record:
    """Return the record of an attempt that has ended."""
    told = tell(read(directory / ANSWERS))
    panic = panics(_bytes(directory / CONSOLE)) if ended.code != EXIT_OK else ""
    outcome = outcome_of(ended, told, panic)
    return Record(
        run=run.number,
        cell=dict(run.cell.values),
        attempt=attempt,
        outcome=outcome,
        code=ended.code,
        where=told.where[:TEXT],
        message="" if outcome == "pass" else _message(ended, told, directory),
        seconds=round(ended.seconds, 3),
        deepest=told.deepest,
        least_free=told.least_free,
        lost=told.lost,
        verdict=told.verdict[:TEXT],
        panic=panic[:TEXT],
        answers=told.answers,
        version=__version__,
    )


def outcome_of(ended: Ended, told: Told, panic: str) -> str:
    """Return one of results.OUTCOMES.

    A guest whose console shows a death has crashed, whatever the script said about the time that it
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
    if ended.code < 0 or not told.console:
        return "error"  # a signal that nobody here has sent, or no guest that was launched
    return {"lost": "crash", "timeout": "hang"}.get(told.kind, "fail")


def _message(ended: Ended, told: Told, directory: Path) -> str:
    if ended.why == "time":
        more = f": {told.message}" if told.message else f"; its last answer was to: {told.last or 'nothing'}"
        return f"it did not end within its time limit{more}"[:TEXT]
    if ended.why == "output":
        return "it wrote more than a run may write"
    if told.message:
        return told.message[:TEXT]
    if ended.code < 0:
        return f"the process was ended by signal {-ended.code}"
    words = _bytes(directory / STDERR)[-4096:].decode("utf-8", "replace").strip().splitlines()
    return (words[-1] if words else f"exit code {ended.code}")[:TEXT]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
