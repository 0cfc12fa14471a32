"""Programs that ptinspect starts and directories that it makes: a killed run leaves nothing."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Set
from io import IOBase
from pathlib import Path
from types import FrameType

PREFIX = "ptinspect-"
_LOCK = ".lock"
_PROC = Path("/proc")
_MOST = 1 << 16
"""Bytes that are read of such a file: a longer command line is none of ours."""
_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this new process a signal when the thread that started it ends.

    Runs between fork and exec, so it does nothing but one system call.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


@contextlib.contextmanager
def ctrl_c_left_to_child() -> Iterator[None]:
    """Leave Ctrl-C to a program that has the terminal, which tells both; in the main thread only.

    A handler, unlike SIG_IGN, is not inherited.
    """

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def poll(done: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Look at intervals until something is done; tell whether it is, within some seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def lock(file: IOBase) -> bool:
    """Lock an open file (flock(2)) as long as it is open; False if another process has it locked."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def wake_orphans(mark: str) -> list[int]:
    """Continue the processes of this user that a signal has stopped and whose parent has died; return them.

    What `die_with_parent` chose ends them then. They are known by a memory file called `mark`
    (memfd_create(2)), which their parent had open as well.
    """
    woken, file = [], {f"/memfd:{mark} (deleted)"}
    for pid, parent in stopped(_PROC, "T").items():
        with contextlib.suppress(OSError):
            if _holds(_PROC, pid, file) and not _holds(_PROC, parent, file):
                os.kill(pid, signal.SIGCONT)
                woken.append(pid)
    return woken


def stopped(proc: Path = _PROC, states: str = "Tt") -> dict[int, int]:
    """Return the processes that a signal (T) or a debugger (t) has stopped, and the parent of each."""
    found = {}
    for pid in _pids(proc):
        with contextlib.suppress(OSError, ValueError):
            text = _read(pid, "stat", proc)
            if chr(text[text.rindex(b")") + 2]) in states:
                found[pid] = int(_stat(pid, proc)[1])
    return found


def has_ended(pid: int) -> bool:
    """Tell whether there is no such process, or only what its parent has not yet waited for."""
    try:
        return _stat(pid)[0] in "ZX"
    except OSError:
        return True


def running_with(*words: str) -> list[int]:
    """Return the other processes whose command line has all of these words."""
    found, wanted = [], {os.fsencode(word) for word in words}
    for pid in _pids(_PROC):
        with contextlib.suppress(OSError):
            if pid != os.getpid() and wanted <= set(_read(pid, "cmdline").split(b"\0")):
                found.append(pid)
    return found


def holders(files: Set[str], proc: Path = _PROC) -> list[int]:
    """Return the processes that have one of these files open; none that may not be looked at.

    The files are named as proc(5) names them: `socket:[4711]`.
    """
    return [pid for pid in _pids(proc) if _holds(proc, pid, files)] if files else []


def _pids(proc: Path) -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isdecimal()]  # noqa: PTH208 (paths take ten times longer)


def _stat(pid: int, proc: Path = _PROC) -> list[str]:
    """Return what proc(5) tells of a process after its name: its state, its parent, … Raises OSError."""
    return _read(pid, "stat", proc).decode("latin-1").rpartition(")")[2].split()


def _read(pid: int, name: str, proc: Path = _PROC) -> bytes:
    """Return a file of proc(5) about a process; a Path takes three times as long. Raises OSError."""
    number = os.open(f"{proc}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(number, _MOST)
    finally:
        os.close(number)


def _holds(proc: Path, pid: int, files: Set[str]) -> bool:
    """Tell whether a process has one of these files open; False if that cannot be known."""
    folder = f"{proc}/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{number}") in files:  # noqa: PTH115
                    return True
    return False


class PrivateDirectory:
    """A new directory that is removed in the end; after a killed run, by the next one.

    A lock in it (flock(2)) is held as long as a process has `lock` open: this one, and those that inherit it.
    """

    def __init__(self, parent: str | None = None) -> None:
        """Make it, with mode 0700, in `parent` or where temporary files belong. Raises OSError."""
        import tempfile

        where = Path(parent or tempfile.gettempdir())
        _sweep(where)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
        try:
            new = self.path / f"{_LOCK}.new"
            self.lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            new.rename(self.path / _LOCK)
        except BaseException:
            self._delete()
            raise

    def release(self) -> None:
        """Leave the directory to the processes that inherited its lock. Safe to call twice."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def remove(self) -> None:
        """Remove the directory. Safe to call twice."""
        self._delete()
        self.release()

    def _delete(self) -> None:
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)


def _sweep(where: Path) -> None:
    """Remove the directories of ours that no process holds any more."""
    import shutil

    for folder in where.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            number = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(number)
