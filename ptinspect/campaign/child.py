"""One run as a process of its own: started, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError

ANSWERS, STDERR, CONSOLE = "answers.jsonl", "stderr.txt", "console.log"
"""Files in the directory of a run."""
MAX_OUTPUT = 512 << 20
"""Bytes of answers or of messages after which a run is ended."""
MAX_LINE = 16 << 20
"""Bytes of one answer that are read at most."""
CONSOLE_BYTES = 8 << 20
"""How much of the end of a console is kept."""
TERM_SECONDS = 6.0
"""Time between SIGTERM and SIGKILL. In it ptinspect detaches, and ends QEMU and GDB."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    seconds: float
    why: str = ""
    """Why it was ended from outside: `time`, `output`; empty where it ended itself."""


class Child:
    """A process in a session of its own, with a directory of its own as its working directory.

    QEMU and GDB end with it however it ends: each has the kernel kill it with its parent
    (processes.py). Raises TargetError if the program cannot be started.
    """

    def __init__(
        self,
        words: Sequence[str],
        directory: Path,
        limit: float,
        *,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.directory = directory
        self._began = time.monotonic()
        self._limit = limit
        self._why = ""
        self._killed = 0.0
        self._console: BinaryIO | None = None
        self._private: Path | None = None
        try:
            with (directory / ANSWERS).open("wb") as out, (directory / STDERR).open("wb") as err:
                self.process = subprocess.Popen(
                    list(words),
                    cwd=directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=prepare,  # noqa: PLW1509 - one system call
                )
            self._answers = (directory / ANSWERS).open("rb")
        except OSError as error:
            raise TargetError(f"cannot start a run: {error.strerror or error}") from error

    def poll(self) -> Ended | None:
        """Return how it ended, or None while it runs; past its limits it is ended."""
        gone = self._gone()
        self._look_for_console()
        now = time.monotonic()
        if gone:
            self._sweep()
            return Ended(self.process.wait(), now - self._began, self._why)
        if not self._why:
            if now - self._began > self._limit:
                self._stop("time")
            elif max(self._size(ANSWERS), self._size(STDERR)) > MAX_OUTPUT:
                self._stop("output")
        elif now > self._killed:
            self._signal(signal.SIGKILL)
        return None

    def end(self) -> None:
        """End it now, however long it has been running. Safe to call twice."""
        self.terminate()
        until = time.monotonic() + TERM_SECONDS
        while not self._gone():
            if time.monotonic() > until:
                self._signal(signal.SIGKILL)
            time.sleep(0.02)
        self._look_for_console()
        self._sweep()
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if not self._gone():
            self._signal(signal.SIGTERM)

    def _gone(self) -> bool:
        """Tell whether it has ended; its number stays its own until it is waited for."""
        if self.process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def _stop(self, why: str) -> None:
        self._why = why
        self._killed = time.monotonic() + TERM_SECONDS
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        """Signal the process and what it started in its own session; it is not yet waited for."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _size(self, name: str) -> int:
        try:
            return (self.directory / name).stat().st_size
        except OSError:
            return 0

    def _look_for_console(self) -> None:
        """Hold the console that an answer of `launch` names open, so that it outlives its directory."""
        if self._answers.closed:
            return
        while True:
            at = self._answers.tell()
            line = self._answers.readline(MAX_LINE)
            if not line.endswith(b"\n"):
                if len(line) < MAX_LINE:
                    self._answers.seek(at)  # half a line: more may come
                return
            places = places_of(line)
            if places is None:
                continue
            with contextlib.suppress(OSError):
                file = places[0].open("rb")
                if self._console is not None:
                    self._console.close()
                self._console, self._private = file, places[1]

    def _sweep(self) -> None:
        """Keep the console, and remove what a killed ptinspect could not remove."""
        if self._answers.closed:
            return
        self._answers.close()
        self._signal(signal.SIGKILL)  # what is left of its group
        if self._console is not None:
            with self._console as source, contextlib.suppress(OSError):
                size = source.seek(0, os.SEEK_END)
                source.seek(max(size - CONSOLE_BYTES, 0))
                with (self.directory / CONSOLE).open("wb") as kept:
                    shutil.copyfileobj(source, kept)
        remove_private(self._private)


def remove_private(file: Path | None) -> None:
    """Remove the directory that a killed ptinspect made for its QEMU, known by a file in it."""
    if file is None or not file.parent.name.startswith("ptinspect-"):
        return
    if file.parent.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(file.parent, ignore_errors=True)


def places_of(line: bytes) -> tuple[Path, Path] | None:
    """Return the console and the gdbstub's socket that an answer of `launch` names; None for other lines.

    The socket lies in the private directory of QEMU; so does the console, if the boot is not recorded.
    """
    if not line.startswith(b'{"command": "launch"'):
        return None
    try:
        result = json.loads(line)["result"]
        console = Path(result["console"])
        return console, Path(result.get("address") or console)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
