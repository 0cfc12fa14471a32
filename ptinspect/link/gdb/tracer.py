"""Follow SP inside GDB: the other side of gdbscripts/ptinspect_trace.py."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MiError
from ptinspect.link.gdb.agent import script_path
from ptinspect.link.session import Session

SCRIPT = "ptinspect_trace.py"
RECORD = np.dtype([(name, "<u8") for name in ("ms", "thread", "top", "pc", "sp", "pstate", "x29", "x30")])
"""One record: see RECORD in the script."""
CHUNK = 16_384
"""Records that one answer of GDB's holds."""
STEPS_PER_SECOND = 200
"""The slowest that stepping is given time for; a quiet machine does thousands."""


@dataclass(frozen=True)
class Rung:
    """A stack that a ladder watches."""

    base: int
    """First byte that is watched."""
    low: int
    """The lowest SP so far."""
    top: int
    """The first address behind the stack."""


class Tracer:
    """Record steps or new depths in portions; the guest stands between them."""

    def __init__(self, session: Session) -> None:
        """Load the script into GDB. Raises TargetError."""
        self._session = session
        session.gdb_command(f"source {script_path().with_name(SCRIPT)}")

    def step(self, cpu: int, count: int, places: Iterable[int]) -> tuple[NDArray[np.void], str]:
        """Step `count` instructions of one CPU, or until one of the places; the others stand still.

        Returns records of type RECORD, the first from before the first step, and how it ended:
        `count`, `place`, `interrupted`, or what the stub said. Raises TargetError.
        """
        words = " ".join(
            ["ptinspect-trace step", str(cpu + 1), str(count), *(f"{place:#x}" for place in places)]
        )
        self._session.gdb_command(words, 30 + count / STEPS_PER_SECOND)
        return self._take()

    def ladder(
        self, milliseconds: int, hits: int, rungs: Sequence[Rung], places: Iterable[int]
    ) -> tuple[NDArray[np.void], str]:
        """Let the guest run and record each store below the lowest SP of a stack, as it moves down.

        Registers are those behind the store, `pc` is the instruction that made it. The last record is where
        the guest stands, with top 0, unless `hits` ended it. Returns as `step` does; `time`, `hits`.
        """
        watched = ",".join(f"{rung.base:x}:{rung.low:x}:{rung.top:x}" for rung in rungs)
        words = ["ptinspect-trace ladder", str(milliseconds), str(hits), watched]
        words += [f"{place:#x}" for place in places]
        self._session.gdb_command(" ".join(words), 30 + milliseconds / 1000)
        return self._take()

    def stack(self, top: int) -> tuple[int, bytes]:
        """Return SP and what lay from there upwards at the deepest point of a stack in the last portion."""
        sp, _, text = self._session.gdb_command(f"ptinspect-trace stack {top:x}").strip().partition(" ")
        try:
            return int(sp, 16), binascii.a2b_base64(text)
        except ValueError as error:
            raise MiError(f"GDB's answer about a stack is damaged: {error}") from error

    def take(self) -> tuple[NDArray[np.void], str]:
        """Return what was recorded before an interruption."""
        return self._take()

    def _take(self) -> tuple[NDArray[np.void], str]:
        try:
            number, _, ended = self._session.gdb_command("ptinspect-trace count").strip().partition(" ")
            parts = [
                binascii.a2b_base64(self._session.gdb_command(f"ptinspect-trace take {first} {CHUNK}"))
                for first in range(0, int(number), CHUNK)
            ]
            found = np.frombuffer(b"".join(parts), RECORD)
        except ValueError as error:
            raise MiError(f"GDB's answer about recorded steps is damaged: {error}") from error
        if len(found) != int(number):
            raise MiError(f"GDB has {number} recorded steps, and gave {len(found)}")
        return found, ended
