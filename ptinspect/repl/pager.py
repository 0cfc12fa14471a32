"""What is longer than the screen, through the user's pager."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from types import FrameType

from ptinspect.output.text import plain

LESS = "-RFXK"
"""Colours as they are; leave at once what fits; leave it on the screen; Ctrl-C leaves."""


def command(environment: Mapping[str, str]) -> list[str]:
    """Return the pager and its arguments: $PAGER, else less; none if neither is there or wanted."""
    chosen = environment.get("PAGER")
    if chosen is not None:
        try:
            words = shlex.split(chosen)
        except ValueError:
            return []
        return words if words and words[0] != "cat" and shutil.which(words[0]) else []
    return ["less", LESS] if shutil.which("less") else []


def too_long(text: str, size: os.terminal_size) -> bool:
    """Tell whether a text and the prompt below it need more lines than the screen has."""
    lines = (plain(line) for line in text.splitlines())
    return sum(max(1, -(-len(line) // max(size.columns, 1))) for line in lines) > size.lines - 2


def view(text: str, environment: Mapping[str, str]) -> bool:
    """Show a text in the pager, until the user leaves it; False if there is none."""
    words = command(environment)
    if not words:
        return False
    try:
        with _left_to_the_pager():
            child = subprocess.Popen(
                words, stdin=subprocess.PIPE, env={"LESS": LESS.removeprefix("-"), **environment}
            )
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(text.encode("utf-8", "replace"))
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            child.wait()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _left_to_the_pager() -> Iterator[None]:
    """Leave Ctrl-C to the pager: the terminal tells both. A handler, unlike SIG_IGN, is not inherited."""

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    before = signal.signal(signal.SIGINT, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
