"""JUnit reports of runs, however these end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptinspect.errors import UserError
from ptinspect.repl.player import Player
from ptinspect.script.outcome import Outcome, junit


@contextmanager
def reported(player: Player, path: Path | None, name: str) -> Iterator[None]:
    """Write the report at the end, however that comes; None: no report.

    Raises UserError before the work begins if it cannot be written.
    """
    if path is None:
        yield
        return
    from ptinspect.output.files import write_text

    write_text(path, junit(name, ()))
    player.outcomes = []
    try:
        yield
    finally:
        write_text(path, junit(name, player.outcomes or ()))


def refused(path: Path | None, name: str, error: UserError) -> None:
    """Write the report of a script that was not run: the one that is there may be an older one."""
    if path is not None:
        from ptinspect.output.files import write_text

        place = str(getattr(error, "place", ""))
        write_text(path, junit(name, [Outcome("", "", place, error.exit_code, error.message)]))
