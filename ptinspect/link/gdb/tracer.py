"""Follow SP inside GDB: the other side of gdbscripts/ptinspect_trace.py."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import MiError
from ptinspect.link.gdb.recorder import Recorder
from ptinspect.link.session import Session

SCRIPT = "ptinspect_trace.py"
RECORD = np.dtype([(name, "<u8") for name in ("ms", "thread", "top", "pc", "sp", "pstate", "x29", "x30")])
"""One record: see RECORD in the script."""
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
    """The first address past the end of the stack."""


class Tracer(Recorder):
    """Record steps or new depths in portions; the guest is stopped between them."""

    def __init__(self, session: Session) -> None:
        """Load the script into GDB. Raises TargetError."""
        super().__init__(session, SCRIPT, "ptinspect-trace", RECORD)

    def step(self, cpu: int, count: int, places: Iterable[int]) -> tuple[NDArray[np.void], str]:
        """Step `count` instructions of one CPU, or until one of the places; the others do not run.

        Returns records of type RECORD, the first from before the first step, and how it ended:
        `count`, `place`, `interrupted`, or the stub's own answer. Raises TargetError.
        """
        self.ask("step", cpu + 1, count, *map(hex, places), timeout=30 + count / STEPS_PER_SECOND)
        return self.take()

    def ladder(
        self, milliseconds: int, hits: int, rungs: Sequence[Rung], places: Iterable[int]
    ) -> tuple[NDArray[np.void], str]:
        """Let the guest run and record each store below the lowest SP of a stack, as it moves down.

        Registers are those after the store, `pc` is the instruction that made it. The last record is where
        the guest stopped, with top 0, unless `hits` ended it. Returns as `step` does; `time`, `hits`.
        """
        watched = ",".join(f"{rung.base:x}:{rung.low:x}:{rung.top:x}" for rung in rungs)
        timeout = 30 + milliseconds / 1000
        self.ask("ladder", milliseconds, hits, watched, *map(hex, places), timeout=timeout)
        return self.take()

    def stack(self, top: int) -> tuple[int, bytes]:
        """Return SP and what lay from there upwards at the deepest point of a stack in the last portion."""
        sp, _, text = self.ask("stack", f"{top:x}").partition(" ")
        try:
            return int(sp, 16), binascii.a2b_base64(text)
        except ValueError as error:
            raise MiError(f"GDB's answer about a stack is damaged: {error}") from error

    def take(self) -> tuple[NDArray[np.void], str]:
        """Return what was recorded, and how it ended; before an interruption too."""
        return self.fetch("steps")
