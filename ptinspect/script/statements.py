"""What a script consists of."""

from __future__ import annotations

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError


class ScriptError(UserError):
    """Report what makes no sense at a place of a script."""

    def __init__(self, place: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.place = place

    def __str__(self) -> str:
        """Return the place and the message."""
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass(frozen=True)
class Line:
    """A command line and where it stands."""

    text: str
    """The command as written, its variables not yet replaced."""
    place: str = ""
    """`file:line` in a script, else empty."""


@dataclass(frozen=True)
class Var:
    """Give a variable a value, unless the command line of the process gave it one."""

    name: str
    value: str
    """Its value as written: quotes and other variables are resolved when it is reached."""
    place: str = ""
    """`file:line`."""


@dataclass(frozen=True)
class Source:
    """Run another script at this point."""

    path: str
    """Its file as written: quotes and variables are resolved when it is reached."""
    place: str = ""


@dataclass(frozen=True)
class Repeat:
    """Run statements a number of times."""

    count: str
    """How often, as written: a number, or a variable that holds one."""
    counter: str
    """Variable that counts the rounds from 1; empty where none is wanted."""
    body: tuple[Statement, ...]
    place: str = ""


@dataclass(frozen=True)
class OnStop:
    """Run statements whenever the guest stops at a place."""

    where: str
    """`any`, the number of a breakpoint, or an address, as written."""
    body: tuple[Statement, ...]
    """What to run; empty: nothing any more."""
    place: str = ""


@dataclass(frozen=True)
class OnFailure:
    """Run statements once, when a statement of the script has failed."""

    body: tuple[Statement, ...]
    """What to run; empty: nothing any more."""
    place: str = ""


Statement = Line | Var | Source | Repeat | OnStop | OnFailure
