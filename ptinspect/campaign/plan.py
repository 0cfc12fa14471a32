"""What a campaign is to run: cells of a matrix, guests dealt to cells and shards, and how each is started."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError
from ptinspect.script.variables import NAME

MAX_CELLS = 10_000
MAX_RUNS = 1_000_000
CORES = {"a53", "a55", "a57", "a72", "a76", "a710"}
"""Names of cores that QEMU knows as cortex-…."""
GUEST_KEYS = ("kernel", "cpu", "mem", "smp", "machine", "append", "qemu")
"""Keys of a matrix that decide what is booted; all others are variables of the script only."""
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
RECORDING = "boot"
"""In the directory of a run: the recording of its boot."""
GRACE = 45.0
"""Seconds that a run gets beyond its time limit, to report how its guest stood."""


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix's values."""

    values: tuple[tuple[str, str], ...]
    """Keys and values in the matrix's order; empty where there is no matrix."""

    @property
    def name(self) -> str:
        """The combination in a line: `cpu=max mem=512`."""
        return " ".join(f"{key}={value}" for key, value in self.values) or "-"

    def get(self, key: str) -> str:
        """Return the value of a key, or nothing."""
        return dict(self.values).get(key, "")


@dataclass(frozen=True)
class Run:
    """One guest of a campaign."""

    number: int
    """From 1 on, over the whole campaign."""
    cell: Cell

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.number:05}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a campaign runs. Shards of one campaign have equal plans."""

    script: str
    """The script's file as given, or `@NAME`."""
    digest: str
    """SHA-256 of the script's text and of the texts of the scripts that it calls."""
    runs: int
    """Guests in all."""
    cells: tuple[Cell, ...]
    """At least one."""
    variables: tuple[tuple[str, str], ...] = ()
    """Variables that all runs have."""
    timeout: float = 300.0
    """Seconds that one run may take."""
    retries: int = 0
    """How often a run is tried again after it did not pass."""
    timeline: str = ""
    """`failed`: each boot is recorded, and the recordings of runs that failed are kept; empty: none is."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Room for later versions; kept as it is."""

    def all_runs(self, shard: tuple[int, int] = (1, 1)) -> list[Run]:
        """Return the runs of a shard (number, of how many), in order; cells are dealt in turn.

        Shards are dealt cell by cell: two of them differ by at most one run, in all and in each cell.
        """
        index, count = shard
        cells = len(self.cells)
        runs = [Run(n + 1, self.cells[n % cells]) for n in range(self.runs)]
        by_cell = [run for first in range(cells) for run in runs[first::cells]]
        return sorted(by_cell[index - 1 :: count], key=lambda run: run.number)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON holds it."""
        return {
            "script": self.script,
            "digest": self.digest,
            "runs": self.runs,
            "cells": [dict(cell.values) for cell in self.cells],
            "variables": dict(self.variables),
            "timeout": self.timeout,
            "retries": self.retries,
            "timeline": self.timeline,
            **self.extra,
        }

    @classmethod
    def from_json(cls, value: object) -> Plan:
        """Read a plan. Raises UserError if it is none, or is out of bounds."""
        if not isinstance(value, Mapping):
            raise UserError("the plan is not an object")
        known = {"script", "digest", "runs", "cells", "variables", "timeout", "retries", "timeline"}
        try:
            cells = tuple(Cell(_pairs(cell)) for cell in value["cells"])
            plan = cls(
                str(value["script"]),
                str(value["digest"]),
                int(value["runs"]),
                cells,
                _pairs(value.get("variables", {})),
                float(value.get("timeout", 300.0)),
                int(value.get("retries", 0)),
                str(value.get("timeline", "")),
                {k: v for k, v in value.items() if k not in known},
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(f"the plan makes no sense: {type(error).__name__} {error}") from error
        if not 1 <= plan.runs <= MAX_RUNS or not 1 <= len(cells) <= MAX_CELLS:
            raise UserError(f"the plan has {plan.runs} runs of {len(cells)} cells")
        return plan


def _pairs(value: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((str(key), str(item)) for key, item in value.items())


def cells_of(matrix: Sequence[str]) -> tuple[Cell, ...]:
    """Return the combinations of `KEY=VALUE,VALUE,…`; one empty cell if there are none.

    Short names of cores become QEMU's. Raises UserError.
    """
    axes: dict[str, list[str]] = {}
    for text in matrix:
        key, equals, values = text.partition("=")
        if not equals or not re.fullmatch(NAME, key):
            raise UserError(f"{text!r} is not part of a matrix", "--matrix cpu=a57,max mem=512,1024")
        if key in axes:
            raise UserError(f"{key} stands twice in the matrix", f"{key}=VALUE,VALUE")
        items = [item.strip() for item in values.split(",")]
        if key == "cpu":
            items = [f"cortex-{item}" if item in CORES else item for item in items]
        if len(set(items)) < len(items):
            raise UserError(f"{key} has a value twice: {values}")
        axes[key] = items
    cells = tuple(
        Cell(tuple(zip(axes, combination, strict=True))) for combination in itertools.product(*axes.values())
    )
    if len(cells) > MAX_CELLS:
        raise UserError(f"a matrix of {len(cells)} cells", f"at most {MAX_CELLS}")
    return cells


def shard_of(text: str) -> tuple[int, int]:
    """Read `I/N`, with I from 1 to N. Raises UserError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"{text!r} is not a shard", "I/N, with I from 1 to N: 2/4")
    return int(found[1]), int(found[2])


def launch_line(cell: Cell, home: Path, *, recorded: bool = False) -> str:
    """Return the line that launches a cell's guest, and has it `recorded` in the directory of the run.

    A kernel that is a file, relative to `home`, is booted as it is; any other is the name of a reference
    guest.
    """
    words = ["launch", *(["--timeline", RECORDING] if recorded else [])]
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
    """Return the arguments of ptinspect for an attempt; `launches`: the script launches a guest itself."""
    given = variables(plan, run, attempt, home)
    words = ["--json", "--timeout", f"{plan.timeout:g}"]
    for name, value in given.items():
        words += ["--var", f"{name}={value}"]
    for command in ON_FAILURE:
        words += ["--on-failure", command]
    if not launches:
        words += ["-c", launch_line(run.cell, home, recorded=bool(plan.timeline))]
    return (*words, "-x", script)
