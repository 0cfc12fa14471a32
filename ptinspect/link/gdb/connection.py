"""What a session needs of a GDB, whoever started it."""

from __future__ import annotations

from typing import Protocol

from ptinspect.link.gdb.mi import Reply


class GdbLink(Protocol):
    """Exchange MI commands with one GDB."""

    @property
    def busy(self) -> bool:
        """Tell whether a command waits for its reply."""
        ...

    def request(self, command: str, timeout: float, *, check: bool = True) -> Reply:
        """Send one MI command and return its reply.

        Raises MiError if GDB answers with an error (unless not `check`), TargetTimeout if there is
        no answer in `timeout` seconds, TargetLost if GDB has gone.
        """
        ...

    def post(self, command: str) -> bool:
        """Send a command whose reply nobody waits for; False if another one is just being sent."""
        ...

    def cancel(self) -> None:
        """Make GDB give up the command it works on."""
        ...

    def expect_end(self) -> None:
        """Take the end of the debugged program for granted: it is about to be left."""
        ...

    def close(self) -> None:
        """Let GDB go."""
        ...
