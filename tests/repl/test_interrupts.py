"""Ctrl-C on a real terminal: it stops the guest or the work, clears the line, and never ends the tool."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import PROMPT, Terminal

SCRIPT = Path(__file__).with_name("interrupted_loop.py")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal([sys.executable, str(SCRIPT)])
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
    assert "no command" not in terminal.seen


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
