"""Helper programs: bounded, ended, and quoted when they fail."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from ptinspect.errors import TargetError, TargetTimeout
from ptinspect.processes import has_ended, poll
from ptinspect.reference.helper_program import Result, run


def test_output_comes_back_in_the_c_locale() -> None:
    result = run(
        ["sh", "-c", "echo out $LC_ALL $X; echo err >&2; exit 3"], timeout=10, environment={"X": "1"}
    )
    assert result == Result(3, "out C 1\n", "err\n")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(TargetError, match="cannot run no-such-program"):
        run(["no-such-program"], timeout=10)


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $! $$ > {pids}; wait"
    steps = itertools.count(1)
    with pytest.raises(TargetTimeout, match="sh did not get on"):  # a second after it has begun
        run(["sh", "-c", script], timeout=1, watch=lambda: 0 if pids.exists() else next(steps))
    children = [int(p) for p in pids.read_text().split()]
    assert len(children) == 2
    assert poll(lambda: all(map(has_ended, children)), 30)


def test_progress_puts_the_deadline_off(tmp_path: Path) -> None:
    steps = itertools.count()
    result = run(["sleep", "1"], timeout=0.5, watch=lambda: next(steps))
    assert result.code == 0


def test_progress_that_stalls_does_not() -> None:
    with pytest.raises(TargetTimeout):
        run(["sleep", "600"], timeout=0.3, watch=lambda: 7)


def test_an_interruption_ends_the_program(tmp_path: Path) -> None:
    pid, steps = tmp_path / "pid", itertools.count()

    def interrupt() -> int:
        if not pid.exists():
            return next(steps)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            ["sh", "-c", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"],
            timeout=60,
            watch=interrupt,
        )
    with pytest.raises(ChildProcessError):  # nobody has to wait for it any more
        os.waitpid(int(pid.read_text()), os.WNOHANG)


@pytest.mark.parametrize(
    ("output", "errors", "words"),
    [
        ("", "", "exit code 100"),
        ("some\nthing\n", "", "some; thing"),
        ("noise", "Reading\nW: careful\nE: gone\n", "W: careful; E: gone"),
        ("", "E: gone\nE: Some index files failed to download. They have been ignored.", "E: gone"),
    ],
)
def test_last_words(output: str, errors: str, words: str) -> None:
    assert Result(100, output, errors).last_words() == words
