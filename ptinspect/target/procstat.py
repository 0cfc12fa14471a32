"""The state of a process, by one small read of an open file."""

from __future__ import annotations

import os

from ptinspect.target.laneerror import GONE, LaneError


class ProcessState:
    """Follow one process; a later one of the same number is not taken for it.

    The open file of proc(5) stands for the process, not for its number: it cannot be read any more
    when that one has ended (ESRCH), whoever has the number then.
    """

    def __init__(self, pid: int) -> None:
        """Open its file. Raises LaneError if there is no such process."""
        self.pid = pid
        try:
            self._file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._gone() from error

    def read(self) -> str:
        """Return the letter of the state (proc(5), stat). Raises LaneError if the process has gone."""
        try:
            words = os.pread(self._file, 1024, 0)
        except OSError as error:
            raise self._gone() from error
        state = words[words.rfind(b")") + 2 :][:1].decode("ascii", "replace")
        if state in "ZX":
            raise self._gone()
        return state

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _gone(self) -> LaneError:
        return LaneError(f"QEMU (pid {self.pid}) {GONE}")
