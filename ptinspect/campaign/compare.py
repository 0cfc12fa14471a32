"""The first difference between a run that failed and those that passed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ptinspect.campaign.constants import Good, Step, Value


@dataclass(frozen=True)
class Difference:
    """Where a run first answered otherwise than all passing runs did."""

    line: str
    """The command line."""
    place: str
    """Its `file:line`, or empty."""
    path: str
    """The value's path in the answer; empty if the command failed, or was not reached."""
    good: Value
    """What all passing runs have."""
    bad: Value
    """What this one has."""
    runs: int
    """How many passing runs there were."""


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
    def said(path: str, good: Value, bad: Value) -> Difference:
        return Difference(got.line, got.place, path, good, bad, runs)

    if got.error:
        return said("", "answered", got.error)
    if wanted.command and wanted.command != got.command:
        return said("command", wanted.command, got.command)
    flags: Difference | None = None
    for path, value in wanted.values.items():
        other = got.values.get(path, "(absent)")
        if other == value and type(other) is type(value):
            continue
        found = said(path, value, other)
        if path == "ok" or path.endswith(".ok"):
            flags = flags or found  # what it was about says more
        else:
            return found
    if flags is None and wanted.ok and not got.ok:
        return said("ok", True, False)
    return flags
