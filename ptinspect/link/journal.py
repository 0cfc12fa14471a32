"""What this machine remembers of a gdbstub: who is attaching to it, and what was changed in its guest.

A debugger can be killed. What it wrote into the guest (the probes of the stack guard, a descriptor, paint
on stacks) is written down first, in a file that the next attach to the same stub finds. A word is put back
only while it holds what was written, so that a guest that was started again is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ptinspect.dataclass import dataclass
from ptinspect.errors import ConnectError, UserError
from ptinspect.files import CACHE_VARIABLE, replacing, user_directory
from ptinspect.link.address import StubAddress
from ptinspect.processes import lock, poll

FORMAT = 1
MAX_BYTES = 4 << 20
"""A larger file is not a journal."""
MAX_WORDS = 1 << 24
"""Most words of one change: 128 MiB."""
GUARD, POKE, PAINT = "stack guard", "poke", "paint"
"""Reasons to change the guest. A poke stays until its user takes it back; the others are taken back."""


@dataclass(frozen=True)
class Change:
    """Words of guest memory that hold something else for a while."""

    pa: int
    """Physical address of the first."""
    old: int
    """What each of them held."""
    new: int
    """What was written."""
    width: int = 8
    """Bytes of a word, 4 or 8."""
    count: int = 1
    """Number of words, one after another."""
    what: str = ""
    """Why: `stack guard`, `poke`, `paint`."""


@dataclass(frozen=True)
class Detour:
    """Where a CPU continues that is in code which was written into the guest."""

    pc: int
    """Where it may be."""
    to: int
    """Where it continues."""
    x0: str = ""
    """Register that holds its X0; empty: X0 is unchanged."""


def directory() -> Path:
    """Return the directory of the journals and locks; it may not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen or user_directory("state")).absolute() / "stubs"


def place(address: StubAddress) -> Path:
    """Return the file of the journal of one stub; it may not exist.

    A checksum tells addresses apart whose ends read alike; the journal holds the whole address.
    """
    text = str(address)
    check = zlib.crc32(text.encode("utf-8", "surrogateescape"))
    return directory() / f"{re.sub('[^A-Za-z0-9]+', '-', text)[-60:]}-{check:08x}.json"


def step_place(address: StubAddress) -> Path:
    """Return the file with the step that is under way at a stub; it is missing or empty mostly."""
    return place(address).with_suffix(".step")


def step_is_open(address: StubAddress) -> bool:
    """Tell whether a step at a stub was never finished, as far as that can be read."""
    try:
        return step_place(address).stat().st_size > 0
    except OSError:
        return False


class Journal:
    """The changes in the guest of one stub; each method leaves a whole file or none."""

    def __init__(self, address: str, file: Path) -> None:
        self.address, self.file = address, file
        self.changes: tuple[Change, ...] = ()
        self.detours: tuple[Detour, ...] = ()

    @classmethod
    def of(cls, address: StubAddress) -> Journal:
        """Return what is written down of one stub."""
        return cls(str(address), place(address)).read()

    def read(self) -> Journal:
        """Take what the file holds; nothing of one that is damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            with self.file.open("rb") as source:
                data = source.read(MAX_BYTES + 1)
            import json

            table: dict[str, Any] = json.loads(data) if len(data) <= MAX_BYTES else {}
            if table["format"] == FORMAT and table["address"] == self.address:
                changes = tuple(Change(**entry) for entry in table["changes"])
                detours = tuple(Detour(**entry) for entry in table["detours"])
                if all(map(_sane, changes)) and all(map(_leads, detours)):
                    self.changes, self.detours = changes, detours
        return self

    def add(self, changes: Iterable[Change], detours: Iterable[Detour] = ()) -> None:
        """Write down what is about to be changed."""
        self.changes, self.detours = (*self.changes, *changes), (*self.detours, *detours)
        self._write()

    def remove(self, changes: Iterable[Change]) -> None:
        """Strike out what was put back; the detours go with the guard's last change."""
        gone = set(changes)
        self.changes = tuple(change for change in self.changes if change not in gone)
        self.detours = self.detours if any(change.what == GUARD for change in self.changes) else ()
        self._write()

    def _write(self) -> None:
        """Replace the file; debugging goes on if it cannot be written."""
        with contextlib.suppress(OSError, UserError):
            if not self.changes:
                self.file.unlink(missing_ok=True)
                return
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            table = {"format": FORMAT, "address": self.address, "changes": _rows(self.changes)}
            with replacing(self.file, lasting=False) as file:  # the guest does not outlive it either
                import json

                file.write(json.dumps({**table, "detours": _rows(self.detours)}).encode())


@contextlib.contextmanager
def attaching(address: StubAddress, timeout: float) -> Iterator[None]:
    """Keep other ptinspects from attaching to a stub. Raises ConnectError if one takes too long."""
    file = place(address).with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = file.open("a")
    except OSError:
        yield  # there is no place for a lock
        return
    with held:
        if not poll(lambda: lock(held), timeout):
            raise ConnectError(f"{address}: another ptinspect is attaching to this gdbstub", "try again")
        yield


def _rows(values: Sequence[Change] | Sequence[Detour]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(value) for value in values]


def _sane(change: Change) -> bool:
    return (
        _are_words(change.pa, change.old, change.new)
        and change.width in (4, 8)
        and max(change.old, change.new) < 1 << 8 * change.width
        and 0 < change.count <= MAX_WORDS
        and isinstance(change.what, str)
    )


def _leads(detour: Detour) -> bool:
    named = isinstance(detour.x0, str) and re.fullmatch(r"\w{0,32}", detour.x0) is not None
    return named and _are_words(detour.pc, detour.to)


def _are_words(*numbers: int) -> bool:
    return all(isinstance(number, int) and 0 <= number < 1 << 64 for number in numbers)
