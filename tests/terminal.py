"""A program on a terminal of its own, as a user sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

PROMPT = "ptinspect>\x1b"
SECONDS = 300.0
"""For what is on its way: a busy machine takes its time."""


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, words: list[str], **environment: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
            os.execv(words[0], words)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.seen = ""
        self.code: int | None = None

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str, meanwhile: str = "") -> str:
        """Wait until this is on the screen, and forget what came before it; meanwhile type that at times."""
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.seen!r}"
            if not select.select([self._fd], [], [], 0.5)[0]:
                self.type(meanwhile)
            else:
                try:
                    self.seen += os.read(self._fd, 4096).decode(errors="replace")
                except OSError as error:
                    raise AssertionError(f"it ended: {self.seen!r}") from error
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def wait(self) -> int:
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code
