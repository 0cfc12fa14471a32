"""A loop on this terminal with a command that takes long, and one that will not be interrupted at once."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fakes import Stop, context, declare, kernel_tree
from prompt_toolkit.history import InMemoryHistory

from ptinspect.output.model import Note, Report
from ptinspect.repl.loop import Loop
from ptinspect.repl.printer import Printer


def say(text: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def work(ctx: Any) -> Report:
    """Take long."""
    say("at work")
    time.sleep(60)
    return Report({}, (Note("not cancelled"),))


def tidy(ctx: Any) -> Report:
    """Take long, and tidy up for a while when interrupted."""
    try:
        say("at work")
        time.sleep(60)
    finally:
        say("tidying")
        time.sleep(0.5)
        say("tidy")
    return Report({}, (Note("not cancelled"),))


def wait() -> Stop:
    say("guest runs")
    time.sleep(60)
    raise AssertionError("nobody pressed Ctrl-C")


def main() -> int:
    ctx = context(kernel_tree())
    ctx.interactive = True
    session: Any = ctx.guest.session
    session.on_wait = wait
    for handler in (work, tidy):
        declare(
            ctx.registry,
            handler.__name__,
            handler,
        )
    code = Loop(ctx, Printer(), history=InMemoryHistory()).run()
    say(f"left {session.calls.count(('interrupt',))}")
    return code


if __name__ == "__main__":
    sys.exit(main())
