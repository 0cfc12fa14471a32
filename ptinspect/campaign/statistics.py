"""Counts, depths and times of a campaign, cell by cell, from one directory or from several."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ptinspect.campaign.plan import RECORDING, Cell, Plan, Run, folder
from ptinspect.campaign.results import OUTCOMES, Record, Results
from ptinspect.campaign.runner import RUNS
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError


@dataclass(frozen=True)
class Attempts:
    """A run and what came of it."""

    run: Run
    records: tuple[Record, ...]
    """Its attempts, in order; at least one."""
    directory: Path
    """Where they were made."""

    @property
    def last(self) -> Record:
        """The attempt that counts."""
        return self.records[-1]

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The recordings of its attempts that were kept, and are here."""
        folders = (self.directory / RUNS / folder(self.run, record.attempt) for record in self.records)
        return tuple(path / RECORDING for path in folders if (path / RECORDING).is_dir())

    @property
    def passed(self) -> bool:
        """Tell whether it passed in the end."""
        return self.last.outcome == "pass"

    @property
    def way(self) -> tuple[str, str, str, str]:
        """How it ended: cell, outcome, place, and the message of the console or the script."""
        last = self.last
        return self.run.cell.name, last.outcome, last.where, last.panic or last.message

    @property
    def retried(self) -> bool:
        """Tell whether it took more than one attempt to pass."""
        return self.passed and len(self.records) > 1


@dataclass(frozen=True)
class CellRow:
    """What came of a cell."""

    cell: Cell
    planned: int
    """Runs that it should have."""
    outcomes: dict[str, int]
    """Runs by outcome; those that passed only at a later attempt are `retried`, those not there `missing`."""
    deepest: int | None
    """Most bytes of a kernel stack in use, in any attempt."""
    least_free: int | None
    """Fewest bytes of a kernel stack free, in any attempt."""
    lost: int | None
    """Entries lost, over all attempts; None where no script compared."""
    seconds: tuple[float, float, float] | None
    """Shortest, median and longest attempt."""

    def count(self, *names: str) -> int:
        """Return how many runs had one of these outcomes."""
        return sum(self.outcomes.get(name, 0) for name in names)


@dataclass(frozen=True)
class Merged:
    """Several directories as one campaign."""

    plan: Plan
    """What all of them ran parts of."""
    runs: tuple[Attempts, ...]
    """What was run, by number."""
    missing: tuple[Run, ...]
    shards: tuple[tuple[int, int], ...]
    duplicates: tuple[int, ...] = ()
    """Runs that stand in more than one place; the first counts."""
    cut: tuple[Path, ...] = ()
    """Directories whose last line was half written."""
    unknown: int = 0
    """Records of runs that the plan does not have."""
    rows: tuple[CellRow, ...] = field(default=())
    """The cells in the plan's order."""

    def count(self, *names: str) -> int:
        """Return how many runs had one of these outcomes."""
        return sum(row.count(*names) for row in self.rows)

    @property
    def failed(self) -> int:
        """How many runs did not pass."""
        return self.count(*(name for name in OUTCOMES if name != "pass"))

    def ways(self) -> list[list[Attempts]]:
        """Return the runs that did not pass, those that ended alike together."""
        alike: dict[tuple[str, ...], list[Attempts]] = {}
        for item in self.runs:
            if not item.passed:
                alike.setdefault(item.way, []).append(item)
        return list(alike.values())


def same_campaign(a: Plan, b: Plan) -> str:
    """Return what two plans differ in, or nothing; how the script's file is called does not count."""
    one, other = a.to_json(), b.to_json()
    for key in sorted(one.keys() | other.keys()):
        if key != "script" and one.get(key) != other.get(key):
            return {"digest": "the script's text"}.get(key, key)
    return ""


def merge(parts: Sequence[Results], *, only_shards: bool = False) -> Merged:
    """Join the results of several directories.

    With `only_shards`, runs of shards that are not there are not missing. Raises UserError if one
    directory ran something else.
    """
    plan = parts[0].plan
    for part in parts[1:]:
        differs = same_campaign(plan, part.plan)
        if differs:
            raise UserError(
                f"{part.directory} is another campaign than {parts[0].directory}: other {differs}",
                "report them one by one",
            )
    runs = {run.number: run for run in plan.all_runs()}
    wanted = {run.number for part in parts for run in plan.all_runs(part.shard)} if only_shards else set(runs)
    found: dict[int, Attempts] = {}
    twice: set[int] = set()
    unknown = 0
    for part in parts:
        mine: dict[int, dict[int, Record]] = {}
        for record in part.records:
            if record.run not in runs or dict(runs[record.run].cell.values) != dict(record.cell):
                unknown += 1
                continue
            attempts = mine.setdefault(record.run, {})
            if record.attempt in attempts:
                twice.add(record.run)
            attempts.setdefault(record.attempt, record)
        for number, attempts in mine.items():
            if number in found:
                twice.add(number)
                continue
            records = tuple(attempts[n] for n in sorted(attempts))
            found[number] = Attempts(runs[number], records, part.directory)
    done = tuple(found[number] for number in sorted(found))
    missing = tuple(runs[number] for number in sorted(wanted - found.keys()))
    return Merged(
        plan=plan,
        runs=done,
        missing=missing,
        shards=tuple(sorted({part.shard for part in parts})),
        duplicates=tuple(sorted(twice)),
        cut=tuple(part.directory for part in parts if part.cut),
        unknown=unknown,
        rows=_rows(plan, done, missing),
    )


def _rows(plan: Plan, done: Sequence[Attempts], missing: Sequence[Run]) -> tuple[CellRow, ...]:
    mine: dict[Cell, list[Attempts]] = {cell: [] for cell in plan.cells}
    for item in done:
        mine[item.run.cell].append(item)
    absent = Counter(run.cell for run in missing)
    return tuple(_row(cell, items, absent[cell]) for cell, items in mine.items())


def _row(cell: Cell, mine: Sequence[Attempts], absent: int) -> CellRow:
    outcomes: dict[str, int] = {}
    for item in mine:
        name = "retried" if item.retried else item.last.outcome
        outcomes[name] = outcomes.get(name, 0) + 1
    if absent:
        outcomes["missing"] = absent
    records = [record for item in mine for record in item.records]
    depths = [r.deepest for r in records if r.deepest is not None]
    frees = [r.least_free for r in records if r.least_free is not None]
    losses = [r.lost for r in records if r.lost is not None]
    seconds = [r.seconds for r in records if r.outcome != "error"]
    return CellRow(
        cell,
        len(mine) + absent,
        outcomes,
        max(depths, default=None),
        min(frees, default=None),
        sum(losses) if losses else None,
        (min(seconds), statistics.median(seconds), max(seconds)) if seconds else None,
    )
