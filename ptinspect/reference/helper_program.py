"""Run helper programs with a deadline: their output comes back as text, and none outlives its caller."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError, TargetTimeout

Watch = Callable[[], int]
"""Called a few times a second while a program runs; returns a number that grows while it gets on."""

_NOISE = re.compile("E: Some index files failed to download")

POLL = 0.1
"""Seconds between two looks at a program that runs."""


@dataclass(frozen=True)
class Result:
    """Hold how a program ended and what it printed."""

    code: int
    """Exit code; negative: the signal that ended it."""
    output: str
    errors: str

    def last_words(self, lines: int = 4) -> str:
        """Return the last lines of complaint, joined; apt's `E:` and `W:` lines if there are any."""
        text = [line.strip() for line in (self.errors or self.output).splitlines() if line.strip()]
        marked = [line for line in text if line.startswith(("E:", "W:")) and not _NOISE.match(line)]
        return "; ".join((marked or text)[-lines:]) or f"exit code {self.code}"


def run(
    command: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
    terminal: bool = False,
) -> Result:
    """Run a program to its end in the C locale and return what it printed.

    `timeout` is in seconds; with `watch` it counts from the last time that the number grew. Ctrl-C
    ends the program too. `terminal` lets it ask the user something. Raises TargetError if there is
    no such program, TargetTimeout if it was ended because it took too long.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **(environment or {})},
                stdin=None if terminal else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=not terminal,
            )
        except OSError as error:
            raise TargetError(f"cannot run {command[0]}: {error.strerror or error}") from error
        try:
            _wait(process, timeout, watch, command)
        finally:
            _end(process, group=not terminal)
        out.seek(0)
        err.seek(0)
        return Result(process.returncode, _text(out.read()), _text(err.read()))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _wait(
    process: subprocess.Popen[bytes], timeout: float, watch: Watch | None, command: Sequence[str]
) -> None:
    last = watch() if watch else 0
    deadline = time.monotonic() + timeout
    while True:
        try:
            process.wait(POLL)
            return
        except subprocess.TimeoutExpired:
            pass
        now = watch() if watch else 0
        if now > last:
            last, deadline = now, time.monotonic() + timeout
        if time.monotonic() > deadline:
            raise TargetTimeout(f"{Path(command[0]).name} did not get on for {timeout:.0f} s; it was ended")


def _end(process: subprocess.Popen[bytes], *, group: bool) -> None:
    """End the program and, if it leads a group, what it started; harmless if it ended by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
