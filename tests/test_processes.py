"""Nothing is left over from a run that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ptinspect.processes import PrivateDirectory, lock, poll, running_with, wake_orphans

MAKE = """
import subprocess, sys, time
from ptinspect.processes import PrivateDirectory, running_with, wake_orphans
made = PrivateDirectory(sys.argv[1])
child = None
if sys.argv[2] == "kept":
    child = subprocess.Popen(["sleep", "60"], pass_fds=(made.lock,), stdout=subprocess.DEVNULL)
print(made.path, child.pid if child else 0, flush=True)
time.sleep(60)
"""


def killed(parent: Path, how: str) -> tuple[Path, int]:
    """Make a directory in a process that is killed; return it and the process that inherited its lock."""
    command = [sys.executable, "-c", MAKE, str(parent), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path, child = process.stdout.readline().split()
        process.kill()
    return Path(path), int(child)


def test_a_directory_of_a_run_that_was_killed_goes_with_the_next(tmp_path: Path) -> None:
    left, _ = killed(tmp_path, "alone")
    assert left.is_dir()
    other = PrivateDirectory(str(tmp_path))
    assert not left.exists() and other.path.is_dir()
    again = PrivateDirectory(str(tmp_path))
    assert other.path.is_dir() and again.path.is_dir()
    for made in (other, again):
        made.remove()
        made.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_a_process_has_inherited_stays(tmp_path: Path) -> None:
    left, child = killed(tmp_path, "kept")
    try:
        PrivateDirectory(str(tmp_path)).remove()
        assert left.is_dir()
    finally:
        os.kill(child, 9)


HELD = """
import os, subprocess, sys
file = os.memfd_create(sys.argv[1])
child = subprocess.Popen(["sleep", "60"], pass_fds=(file,), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
input()
"""


def test_only_what_is_stopped_and_has_no_parent_any_more_is_continued() -> None:
    mark = f"ptinspect-test-{os.getpid()}"
    command = [sys.executable, "-c", HELD, mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            os.kill(child, signal.SIGSTOP)
            while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                pass
            assert wake_orphans(mark) == [] and running_with("sleep", "60").count(child) == 1
            process.kill()
            process.wait()
            assert wake_orphans(f"{mark}-other") == []
            assert wake_orphans(mark) == [child]
        finally:
            os.kill(child, signal.SIGKILL)


def test_directories_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "ptinspect-mine").mkdir()
    (tmp_path / "ptinspect-file").touch()
    (tmp_path / "ptinspect-link").symlink_to(tmp_path / "ptinspect-mine")
    PrivateDirectory(str(tmp_path)).remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ptinspect-file",
        "ptinspect-link",
        "ptinspect-mine",
    ]


def test_a_file_is_locked_by_one_at_a_time_and_a_wait_ends(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as other:
        assert lock(first) and not lock(other)
        assert not poll(lambda: lock(other), 0.05, 0.01)
        looks = iter([False, False, True])
        assert poll(lambda: next(looks), 60, 0.01) and not list(looks)
        first.close()
        assert lock(other)
