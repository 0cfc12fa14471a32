"""The console of a guest that was launched here, as a log: its last lines, and those that are added."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ptinspect.errors import GuestError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.text import escape

PIECE = 1 << 20
"""Bytes that are read at once: of the end of the file, and of what was added."""
LINE = 2000
"""Bytes after which a line is broken."""
EVERY = 0.1
"""Seconds between two looks at the file."""


def console_file(guest: Guest) -> Path:
    """Return the file that the guest's first serial port is written to. Raises UserError if there is none."""
    if guest.qemu is None:
        raise UserError("console: known only for guests that were launched here", "launch starts one")
    return guest.qemu.console


def last_lines(guest: Guest, count: int) -> list[str]:
    """Return the last lines of the console, escaped. Raises UserError, GuestError if it cannot be read."""
    try:
        with console_file(guest).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - PIECE, 0))
            data = file.read()
    except OSError as error:
        raise GuestError(f"cannot read the console: {error.strerror or error}") from error
    lines = [_escaped(line) for line in data.split(b"\n")]
    if not lines[-1]:
        lines.pop()
    return lines[-count:]


def follow(guest: Guest, seconds: float) -> Iterator[list[str]]:
    """Yield the lines that are added within a time, as they come; an unfinished one at its end."""
    tail = Tail(guest)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield tail.lines()
        time.sleep(EVERY)
    yield tail.lines() + tail.rest()


class Tail:
    """Give the lines that were added to the console's file, whichever guest is there."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._path = self._now()
        self._position = self._size()
        self._rest = b""

    def _now(self) -> Path | None:
        qemu = self._guest.qemu
        return None if qemu is None else qemu.console

    def _size(self) -> int:
        try:
            return 0 if self._path is None else self._path.stat().st_size
        except OSError:
            return 0

    def lines(self) -> list[str]:
        """Return the lines that are complete, escaped; those of a new guest from its first one on."""
        path = self._now()
        if path != self._path:
            self._path, self._position, self._rest = path, 0, b""
        if path is None:
            return []
        try:
            with path.open("rb") as file:
                file.seek(self._position)
                data = file.read(PIECE)
        except OSError:
            return []
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE:
            whole.append(self._rest[:LINE])
            self._rest = self._rest[LINE:]
        return [_escaped(line) for line in whole]

    def rest(self) -> list[str]:
        """Return the last line, which no line break has ended yet."""
        last, self._rest = self._rest, b""
        return [_escaped(last)] if last.strip() else []


def _escaped(line: bytes) -> str:
    return escape(line.decode("utf-8", "replace").rstrip("\r").expandtabs(8))
