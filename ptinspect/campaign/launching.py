"""From a cell to the words of `launch` and to the variables of the script."""

from __future__ import annotations

import shlex
from pathlib import Path

from ptinspect.campaign.plan import Cell, Plan, Run

OPTIONS = {
    "cpu": "--cpu",
    "mem": "--memory",
    "smp": "--smp",
    "machine": "--machine",
    "qemu": "--qemu",
    "append": "--append-more",
}
"""Keys of a matrix -> options of `launch`."""
ON_FAILURE = ("why", "stack --cpu all", "snap failed", "save failed failed.npz", "console -n 400")
"""What a run that has failed does while its guest is still there."""
GRACE = 45.0
"""Seconds that a run gets beyond its time limit, to say how its guest stood."""


def launch_line(cell: Cell, home: Path) -> str:
    """Return the line that launches a cell's guest. A kernel that is a file, seen from `home`, is booted
    as it is; any other is the name of a reference guest.
    """
    words = ["launch"]
    for key, value in cell.values:
        if key == "kernel" and value:
            file = home / value
            words += [str(file.absolute())] if file.is_file() else ["--guest", value]
        elif key in OPTIONS and value:
            words += [OPTIONS[key], value]
    return " ".join(word if word.startswith("--") else shlex.quote(word) for word in words)


def variables(plan: Plan, run: Run, attempt: int, home: Path) -> dict[str, str]:
    """Return the variables of a run by name: the campaign's, the cell's, which run it is, and `home`."""
    values = dict(plan.variables)
    for key, value in run.cell.values:
        values[key.removeprefix("var.")] = value
        if key == "kernel":
            values["guest"] = value
    return {**values, "run": str(run.number), "attempt": str(attempt), "home": str(home)}


def folder(run: Run, attempt: int) -> str:
    """Return the name of the directory of an attempt."""
    return run.name if attempt == 1 else f"{run.name}-{attempt}"


def arguments(
    plan: Plan, run: Run, attempt: int, *, script: str, home: Path, launches: bool
) -> tuple[str, ...]:
    """Return the arguments of ptinspect for an attempt; `launches` says that the script launches itself."""
    given = variables(plan, run, attempt, home)
    words = ["--json", "--timeout", f"{plan.timeout:g}"]
    for name, value in given.items():
        words += ["--var", f"{name}={value}"]
    for command in ON_FAILURE:
        words += ["--on-failure", command]
    if not launches:
        words += ["-c", launch_line(run.cell, home)]
    return (*words, "-x", script)
