"""Ctrl-C on a real terminal: it stops the guest or the work, clears the line, and never ends the tool."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interrupted_loop.py")
PROMPT = "ptinspect>\x1b"
SECONDS = 60.0


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.execv(sys.executable, [sys.executable, str(SCRIPT)])
        self._seen = ""
        self.code: int | None = None

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> str:
        """Wait until this is on the screen, and forget what came before it."""
        deadline = time.monotonic() + SECONDS
        while text not in self._seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self._seen!r}"
            if select.select([self._fd], [], [], left)[0]:
                try:
                    self._seen += os.read(self._fd, 4096).decode(errors="replace")
                except OSError as error:
                    raise AssertionError(f"it ended: {self._seen!r}") from error
        before, _, self._seen = self._seen.partition(text)
        return before

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def wait(self) -> int:
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    try:
        found.expect(PROMPT)
        yield found
    finally:
        found.close()


def leave(terminal: Terminal, interrupts: int) -> None:
    terminal.type("version\r")
    terminal.expect("ptinspect 0")
    terminal.expect(PROMPT)
    terminal.type("\x04")
    terminal.expect(f"left {interrupts}")
    assert terminal.wait() == 0


def test_at_the_prompt_it_clears_the_line(terminal: Terminal) -> None:
    terminal.type("nonsense\x03")
    terminal.expect(PROMPT)
    leave(terminal, 0)
    assert "no command" not in terminal._seen


def test_it_stops_the_running_guest(terminal: Terminal) -> None:
    terminal.type("continue\r")
    terminal.expect("guest runs")
    terminal.type("\x03")
    terminal.expect("stopped: cpu 0")
    leave(terminal, 1)


def test_it_cancels_work(terminal: Terminal) -> None:
    terminal.type("work\r")
    terminal.expect("at work")
    terminal.type("\x03")
    assert "not cancelled" not in terminal.expect("cancelled")
    leave(terminal, 0)


def test_many_of_them_do_not_end_the_tool_nor_the_tidying_up(terminal: Terminal) -> None:
    terminal.type("tidy\r")
    terminal.expect("at work")
    terminal.type("\x03")
    terminal.expect("tidying")
    terminal.type("\x03" * 5)
    assert "cancelled" not in terminal.expect("tidy\r\n")
    terminal.type("\x03" * 5)
    terminal.expect(PROMPT)
    terminal.type("\x03" * 20)
    for _ in range(5):
        terminal.type("continue\r")
        terminal.expect("guest runs")
        terminal.type("\x03\x03\x03")  # what is printed between two of them the terminal may drop
        terminal.expect(PROMPT)
    leave(terminal, 5)
