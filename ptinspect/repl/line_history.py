"""The lines typed so far: kept in a file between runs, and called back by `!N`, `!!`, `!-N`, `!prefix`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from ptinspect.errors import UserError
from ptinspect.files import user_directory

SPARE = 2
"""The file is cut to its size when it holds this many times as many lines."""

_EVENT = re.compile(r"!(!|-?\d{1,9}|[^\s!=(][^\s]*)(.*)", re.DOTALL)


class LineHistory(History):
    """Hold the lines that were run, oldest first; what is only typed does not get in by itself."""

    def __init__(self, store: History, size: int | None = None) -> None:
        super().__init__()
        self._store = store
        self.lines: list[str] = list(store.load_history_strings())[:size][::-1]

    def append_string(self, string: str) -> None:
        """Ignore what the prompt accepted: `keep` takes the line as it is run."""

    def keep(self, line: str) -> None:
        """Add a line, unless it is the one before."""
        if not self.lines or self.lines[-1] != line:
            super().append_string(line)

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines, newest first."""
        return reversed(self.lines)

    def store_string(self, string: str) -> None:
        """Keep a line in the list and in the file; a file that cannot be written any more is given up."""
        self.lines.append(string)
        try:
            self._store.store_string(string)
        except OSError:
            self._store = InMemoryHistory()


def history_file() -> Path:
    """Return the file that keeps the history between runs."""
    return Path(user_directory("state")) / "history"


def open_history(path: Path, size: int | None = None) -> History:
    """Return the history in `path`, cut to `size` lines, or one in memory if the file cannot be used."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.open("a").close()
        if size is not None:
            _cut(path, size)
        if size == 0:
            return InMemoryHistory()
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _cut(path: Path, size: int) -> None:
    """Drop the oldest lines of a file that has grown far beyond `size` lines."""
    lines = list(FileHistory(path).load_history_strings())
    if len(lines) <= SPARE * size:
        return
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch(0o600)
    fresh = FileHistory(part)
    for line in reversed(lines[:size]):
        fresh.store_string(line)
    part.replace(path)


def expand(line: str, past: Sequence[str]) -> str:
    """Return the line that `!N`, `!!`, `!-N` or `!prefix` calls back, with what follows it added.

    Other lines come back as they are. Raises UserError if there is no such line.
    """
    match = _EVENT.fullmatch(line)
    if match is None:
        if line.startswith("!"):
            raise UserError(
                f"{line!r} calls no line back", "!N, !!, !-N or !PREFIX; 'history' lists the lines"
            )
        return line
    event, rest = match[1], match[2]
    return _called(event, past) + rest


def _called(event: str, past: Sequence[str]) -> str:
    if event == "!" or re.fullmatch(r"-?\d{1,9}", event):
        number = -1 if event == "!" else int(event)
        index = len(past) + number if number < 0 else number - 1
        if 0 <= index < len(past):
            return past[index]
    else:
        for line in reversed(past):
            if line.startswith(event):
                return line
    raise UserError(f"no line !{event} in the history", "'history' lists the lines")
