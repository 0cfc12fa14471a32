"""Run what is to be run, a few at a time, and keep what came of it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ptinspect.campaign import passing_runs
from ptinspect.campaign.attempt import facts_of, read_answers
from ptinspect.campaign.child import ANSWERS, Child, Ended, remove_private
from ptinspect.campaign.plan import RECORDING, Plan, Run, folder
from ptinspect.campaign.results import FAILED, Record, append
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import TargetError, UserError
from ptinspect.processes import lock

RUNS, LOCK = "runs", "lock"
"""In the directory of a campaign: the directories of runs, and the file that is locked while it runs."""
POLL_SECONDS = 0.05
ROOM = 64 << 10
"""Bytes that a failed run must have been able to write: its answers and its console may be cut otherwise."""
HOPELESS = 3
"""Runs that could not be made, and none before them that could, after which it is over."""

Work = tuple[Run, int]
"""A run, and the number of the attempt."""


@dataclass
class Runner:
    """Run a campaign's processes. One thread; results are on the disk as soon as they are known."""

    plan: Plan
    directory: Path
    start: Callable[[Run, int, Path], Child]
    """Start an attempt in a directory."""
    judge: Callable[[Run, int, Ended, Path], Record]
    """Return what came of one."""
    jobs: int = 1
    """Processes at a time."""
    keep_all: bool = False
    """Keep what passed too."""
    progress: Callable[[list[Record], int, int], None] = lambda done, running, total: None
    """Called with the records so far, how many run, and how many runs there are."""
    records: list[Record] = field(default_factory=list)
    """What came of the attempts, in the order of their ends."""

    def go(self, work: Sequence[Work]) -> None:
        """Run everything. Ctrl-C ends the processes and goes to the caller; what has ended is kept.

        Raises TargetError where no run can be made.
        """
        waiting = deque(work)
        total = len(waiting)
        running: list[tuple[Run, int, Child]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    run, attempt = waiting.popleft()
                    running.append((run, attempt, self.start(run, attempt, self._folder(run, attempt))))
                self.progress(self.records, len(running), total)
                time.sleep(POLL_SECONDS)
                for item in list(running):
                    run, attempt, child = item
                    ended = child.poll()
                    if ended is None:
                        continue
                    running.remove(item)
                    if not self._ended(run, attempt, ended, child.directory):
                        waiting.appendleft((run, attempt + 1))
        finally:
            for _, _, child in running:
                child.terminate()
            for _, _, child in running:
                child.end()
                shutil.rmtree(child.directory, ignore_errors=True)

    def _folder(self, run: Run, attempt: int) -> Path:
        path = self.directory / RUNS / folder(run, attempt)
        try:
            if path.exists():  # the campaign was killed in the middle of it
                _clean(path)
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot make {path}: {error.strerror or error}") from error
        return path.absolute()

    def _ended(self, run: Run, attempt: int, ended: Ended, path: Path) -> bool:
        """Keep what came of an attempt; return whether it is the last one."""
        record = self.judge(run, attempt, ended, path)
        if record.outcome not in FAILED and not (self.keep_all and record.outcome == "pass"):
            shutil.rmtree(path / RECORDING, ignore_errors=True)
        if record.outcome != "pass":
            _need_room(record, path)
        final = record.outcome == "pass" or attempt > self.plan.retries
        record = replace(record, final=final)
        append(self.directory, record)  # first: whatever ends this process, no run is taken in twice
        if record.outcome == "pass":
            cell = self.plan.cells.index(run.cell)
            first = passing_runs.add(self.directory, cell, path)
            if not (first or self.keep_all):
                shutil.rmtree(path, ignore_errors=True)
        self.records.append(record)
        made = [each for each in self.records if each.outcome != "error"]
        if not made and len(self.records) >= HOPELESS:
            where = f"{record.where}: " if record.where else ""
            raise TargetError(
                f"no run can be made: {where}{record.message}",
                f"see {path}; campaign --resume {self.directory} tries again",
            )
        return final


def _need_room(record: Record, path: Path) -> None:
    """Raise UserError if a run may have failed because there is no room for its files."""
    why = os.strerror(errno.ENOSPC)
    if why not in record.message:
        try:
            with tempfile.TemporaryFile(dir=path, buffering=0) as file:
                if file.write(bytes(ROOM)) == ROOM:
                    return
        except OSError as error:
            why = error.strerror or str(error)
    shutil.rmtree(path / RECORDING, ignore_errors=True)  # it may be what has taken the room
    raise UserError(
        f"run {record.run} had no room for its files in {path}: {why}",
        "make room; campaign --resume DIR runs what is missing",
    )


def _clean(path: Path) -> None:
    """Remove what a killed run has left, here and where its QEMU was."""
    facts = facts_of(read_answers(path / ANSWERS))
    if facts.stub or facts.console:
        remove_private(Path(facts.stub or facts.console))
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make sure that no other process works in the directory. Raises UserError if one does."""
    try:
        with (directory / LOCK).open("a") as file:
            if not lock(file):
                what = f"another process runs the campaign in {directory}"
                raise UserError(what, "choose another --directory")
            yield
    except OSError as error:
        raise UserError(f"cannot use {directory}: {error.strerror or error}") from error


def left(plan: Plan, shard: tuple[int, int], records: Sequence[Record]) -> list[Work]:
    """Return what is still to be run, with the numbers of the attempts.

    A run that could not be made is made again; so is one whose next attempt had not ended.
    """
    last: dict[int, Record] = {}
    for record in records:
        if record.run not in last or record.attempt >= last[record.run].attempt:
            last[record.run] = record
    work = []
    for run in plan.all_runs(shard):
        if run.number not in last:
            work.append((run, 1))
        elif last[run.number].outcome == "error" or not last[run.number].final:
            work.append((run, last[run.number].attempt + 1))
    return work
