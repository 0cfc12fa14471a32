"""What commands share: the guest, the registry, the user's settings, and who is talked to."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.commands.framework.options import Options
from ptinspect.commands.framework.registry import Registry
from ptinspect.dataclass import dataclass, field
from ptinspect.guest.guest import Guest, Watcher
from ptinspect.output.model import Report
from ptinspect.script.record import Record
from ptinspect.typed import Any, Protocol


class Interaction(Watcher, Protocol):
    """Talk with the user while a command runs."""

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question; False where nobody can answer."""
        ...

    def aside(self, line: str) -> None:
        """Show a line of the guest's console, from any thread."""
        ...

    def step(self, line: str, report: Report) -> None:
        """Show a command that runs as part of another one, and its answer."""
        ...


class Silent:
    """An interaction with nobody: no progress is shown, every question is answered with no."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Show nothing."""

    def confirm(self, question: str) -> bool:
        """Answer no."""
        return False

    def aside(self, line: str) -> None:
        """Show nothing."""

    def step(self, line: str, report: Report) -> None:
        """Show nothing."""


class Follower(Protocol):
    """Show the guest's console as it comes, beside the prompt."""

    def stop(self) -> None:
        """End it."""
        ...


SCRIPT_SECONDS = 300.0
"""Limit of commands that wait for a stop where nobody can press Ctrl-C, unless --timeout is given."""
FOREVER = 10 * 365 * 86400.0
"""The same in the REPL: until Ctrl-C."""


@dataclass
class Context:
    """Hold the state that commands share; closed at the end of the process."""

    registry: Registry
    """The commands, for `help` and for commands that run others."""
    guest: Guest = field(default_factory=Guest)
    interaction: Interaction = field(default_factory=Silent)
    """Progress and questions."""
    interactive: bool = False
    json: bool = False
    """True where answers are printed as JSON."""
    debug: bool = False
    """Show the traceback of a bug in ptinspect."""
    options: Options = field(default_factory=Options)
    """What the user chose with `set` and in the configuration file."""
    follower: Follower | None = field(default=None, repr=False)
    """What shows the guest's console beside the prompt, or None."""
    history: list[str] = field(default_factory=list)
    """The lines typed at the prompt so far, oldest first; those of earlier runs too."""
    record: Record = field(default_factory=Record)
    """What was run, and the script that `record` makes of it."""
    leave: bool = False
    """Set by `quit`: no further command is read."""

    def __post_init__(self) -> None:
        """Have the guest tell the user how far long pieces of work have come."""
        self.guest.watcher = self

    def rows(self, own: int) -> int:
        """Return how many rows a list shows where the user does not choose: `own`, or the option `rows`."""
        return int(self.options.number("rows")) or own

    def time_limit(self, timeout: float | None, own: float = 0.0) -> float:
        """Return how many seconds a command waits for a stop: `timeout`, if one was given.

        Else, for a command without a limit of its own, what the option `timeout` has. Else until Ctrl-C at
        the prompt, and in scripts `own` or SCRIPT_SECONDS.
        """
        if timeout is not None:
            return timeout
        chosen = 0.0 if own else self.options.number("timeout")
        return chosen or (FOREVER if self.interactive else own or SCRIPT_SECONDS)

    def progress(self, text: str, done: int = 0, total: int = 0) -> None:
        """Pass progress of a long piece of work on to whoever watches."""
        self.interaction.progress(text, done, total)

    def confirm(self, question: str) -> bool:
        """Ask the user a yes-or-no question; False where nobody can answer."""
        return self.interaction.confirm(question)

    def step(self, line: str, report: Report) -> Mapping[str, Any]:
        """Show a command that runs as part of this one as if `line` had been typed; return its result."""
        self.interaction.step(line, report)
        return report.result

    def close(self) -> None:
        """End the recording and the console's follower, and close the guest. Safe to call twice.

        Raises TargetError if a guest that lives on could not be left as it was found.
        """
        self.record.end()
        follower, self.follower = self.follower, None
        if follower is not None:
            follower.stop()
        self.guest.close()
