"""Records that a script makes inside GDB: of stores, and of the way that SP takes."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.dataclass import dataclass
from ptinspect.errors import MiError
from ptinspect.link.gdb.agent import load_line
from ptinspect.link.session import Session

SCRIPT, TRACE_SCRIPT = "ptinspect_writes.py", "ptinspect_trace.py"
CHUNK = 8192
"""Records that are fetched at once."""
RECORD = np.dtype([(name, "<u8") for name in ("site", "address", "before", "stored", "page", "readable")])
"""One record of a store: see RECORD in the script."""
TRACE_RECORD = np.dtype(
    [(name, "<u8") for name in ("ms", "thread", "top", "pc", "sp", "pstate", "x29", "x30")]
)
"""One record of a step, or of a new depth: see TRACE_RECORD in the script."""
STOP_SECONDS = 60.0
"""Longer than the script waits for a guest to stop."""


class Recorder:
    """A script inside GDB, its command, and the type of its records."""

    def __init__(self, session: Session, script: str, command: str, record: np.dtype[np.void]) -> None:
        """Load the script. Raises TargetError."""
        self._session, self._command, self._record = session, command, record
        session.gdb_command(load_line(script))

    def ask(self, *words: object, timeout: float = 120.0) -> str:
        """Give the script a command and return what it prints. Raises TargetError."""
        return self._session.gdb_command(" ".join(map(str, (self._command, *words))), timeout).strip()

    def fetch(self, what: str) -> tuple[NDArray[np.void], str]:
        """Return all records, and what the script adds to their number; `what` they are.

        Raises MiError if GDB's answer is damaged.
        """
        try:
            number, _, more = self.ask("count").partition(" ")
            total = int(number)
            parts = [binascii.a2b_base64(self.ask("take", first, CHUNK)) for first in range(0, total, CHUNK)]
            found = np.frombuffer(b"".join(parts), self._record)
        except ValueError as error:
            raise MiError(f"GDB's answer about recorded {what} is damaged: {error}") from error
        if len(found) != total:
            raise MiError(f"GDB has {total} recorded {what}, and gave {len(found)}")
        return found, more


@dataclass(frozen=True)
class Store:
    """Name one store instruction for the recorder."""

    pc: int
    """Value of the program counter at the store."""
    value: int
    """Number of the register that is stored."""
    base: int
    """Number of the register with the address."""
    displacement: int
    """Bytes to add to that."""
    window: int | None = None
    """Number of the register with the start of the window that the address lies in; None if physical."""
    page_bits: int = 0
    """log2 of the bytes of one page of the window."""

    def __str__(self) -> str:
        """Write it as the script reads it."""
        word = f"{self.pc:#x}:{self.value}:{self.base}:{self.displacement}"
        return word if self.window is None else f"{word}:{self.window}:{self.page_bits}"


class StoreRecorder(Recorder):
    """Record stores while the guest runs; it stops at each of them, and continues by itself."""

    def __init__(self, session: Session) -> None:
        """Load the script into GDB. Raises TargetError."""
        super().__init__(session, SCRIPT, "ptinspect-writes", RECORD)

    def start(self, stores: Sequence[Store], limit: int = 0) -> None:
        """Start again; with `limit` above 0 the guest stays stopped at that store. Raises TargetError."""
        self.ask("start", limit, *stores)

    def stop(self) -> None:
        """Take the breakpoints away; the records stay. Raises TargetError."""
        self.ask("stop")

    def take(self) -> NDArray[np.void]:
        """Return all records, of type RECORD. Raises MiError if GDB's answer is damaged."""
        return self.fetch("stores")[0]


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
        super().__init__(session, TRACE_SCRIPT, "ptinspect-trace", TRACE_RECORD)

    def step(
        self, cpu: int, count: int, milliseconds: int, places: Iterable[int]
    ) -> tuple[NDArray[np.void], str]:
        """Step `count` instructions of one CPU, until the time or one of the places; the others do not run.

        Returns records of type TRACE_RECORD, the first from before the first step, and how it ended:
        `count`, `time`, `place`, `interrupted`, or the stub's own answer. Raises TargetError.
        """
        timeout = STOP_SECONDS + milliseconds / 1000
        self.ask("step", cpu + 1, count, milliseconds, *map(hex, places), timeout=timeout)
        return self.take()

    def ladder(
        self, milliseconds: int, hits: int, rungs: Sequence[Rung], places: Iterable[int]
    ) -> tuple[NDArray[np.void], str]:
        """Let the guest run and record each store below the lowest SP of a stack, as it moves down.

        Registers are those after the store, `pc` is the instruction that made it. The last record is where
        the guest stopped, with top 0, unless `hits` ended it. Returns as `step` does; `time`, `hits`.
        """
        watched = ",".join(f"{rung.base:x}:{rung.low:x}:{rung.top:x}" for rung in rungs)
        timeout = STOP_SECONDS + milliseconds / 1000
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
