"""What the user may choose, for a session or for good: declared once for `set`, `show` and completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import ambiguous
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError
from ptinspect.output.model import escape
from ptinspect.text import similar

Value = str | int | float | bool

ON = ("on", "yes", "true", "1")
OFF = ("off", "no", "false", "0")


@dataclass(frozen=True)
class Option:
    """Declare an option."""

    name: str
    """As it is typed and as it stands in the file."""
    default: Value
    """What holds where nobody chose."""
    read: Callable[[str], Value]
    """Makes a value of what is typed; raises UserError."""
    meaning: str
    """One line."""
    choices: tuple[str, ...] = ()
    """For completion."""


def _one_of(*words: str) -> Callable[[str], Value]:
    def read(text: str) -> Value:
        """Take on and off in all their spellings too, where they are among the words."""
        low = text.lower()
        for spellings in (ON, OFF):
            if low in spellings:
                low = next((word for word in words if word in spellings), "auto" if spellings is ON else low)
        if low not in words:
            raise UserError(f"{text!r} is none of {', '.join(words)}")
        return low

    return read


def _switch(text: str) -> Value:
    if text.lower() not in ON + OFF:
        raise UserError(f"{text!r} is neither on nor off")
    return text.lower() in ON


def _prompt(text: str) -> Value:
    if not text or len(text) > 60 or escape(text) != text:
        raise UserError("a prompt is 1 to 60 characters that can be printed")
    return text


_DECLARED = (
    Option(
        "colour",
        "auto",
        _one_of("auto", "on", "off"),
        "auto: on a terminal, unless NO_COLOR is set; on: into pipes too",
        ("auto", "on", "off"),
    ),
    Option(
        "confirm",
        True,
        _switch,
        "at the prompt, ask before a file is overwritten and before what cannot be undone; off: do it",
        ("on", "off"),
    ),
    Option(
        "fold", True, _switch, "count the stops that an on stop answers alike; off: show all", ("on", "off")
    ),
    Option("history", 5000, arguments.whole(0, 1_000_000), "lines that are kept between runs"),
    Option(
        "pager", "auto", _one_of("auto", "off"), "auto: what is longer than the screen in $PAGER, or less"
    ),
    Option("prompt", "ptinspect> ", _prompt, "what stands before the line that is typed"),
    Option(
        "rows", 0, arguments.whole(0, 1 << 24), "rows of a list without --limit; 0: what each command has"
    ),
    Option(
        "timeout",
        0.0,
        arguments.seconds,
        "seconds that continue, until and finish wait; 0: at the prompt until Ctrl-C, in scripts 300",
    ),
    Option("timeout-attach", 10.0, arguments.seconds, "seconds that attaching may take"),
)
OPTIONS: Mapping[str, Option] = {option.name: option for option in _DECLARED}
"""By name."""
SPELLINGS: Mapping[str, str] = {"color": "colour", "pagination": "pager", "style": "colour"}
"""Other names, as in GDB."""


@dataclass
class Options:
    """Hold what was chosen, and by whom."""

    chosen: dict[str, tuple[Value, str]] = field(default_factory=dict)
    """Name -> value and its origin: `session`, or the file."""

    def __getitem__(self, name: str) -> Value:
        """Return a value."""
        return self.chosen[name][0] if name in self.chosen else OPTIONS[name].default

    def text(self, name: str) -> str:
        """Return the value of an option that is a text."""
        return str(self[name])

    def number(self, name: str) -> float:
        """Return the value of an option that is a number."""
        return float(self[name])

    def flag(self, name: str) -> bool:
        """Return the value of an option that is on or off."""
        return bool(self[name])

    def origin(self, name: str) -> str:
        """Say who chose a value; `default` for nobody."""
        return self.chosen[name][1] if name in self.chosen else "default"

    def set(self, name: str, text: str, origin: str) -> None:
        """Choose a value as typed. Raises UserError."""
        option = find(name)
        try:
            self.chosen[option.name] = (option.read(text), origin)
        except UserError as error:
            raise UserError(f"{option.name}: {error.message}", error.hint or f"{option.meaning}") from error

    def take(self, found: Mapping[str, object], origin: str) -> list[str]:
        """Choose what a file holds; return what is wrong with the rest of it, one line each."""
        wrong = []
        for name, value in found.items():
            if name not in OPTIONS:
                wrong.append(f"{name}: no such option")
            elif not isinstance(value, str | int | float):
                wrong.append(f"{name}: a value is a text, a number, true or false")
            else:
                try:
                    self.set(name, written(value), origin)
                except UserError as error:
                    wrong.append(error.message)
        return wrong


def written(value: Value) -> str:
    """Return a value as it is typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def find(name: str) -> Option:
    """Return the option of this name, or the only one that begins so. Raises UserError."""
    name = SPELLINGS.get(name, name)
    if name in OPTIONS:
        return OPTIONS[name]
    begins = [option for option in OPTIONS.values() if option.name.startswith(name)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise ambiguous(name, (option.name for option in begins))
    if name.startswith("$") or name in ("var", "variable"):
        raise UserError(f"no option {name!r}", "registers and variables are GDB's to set: gdb set …")
    close = similar(name, (*OPTIONS, *SPELLINGS), 1)
    raise UserError(f"no option {name!r}", f"did you mean {close[0]}?" if close else "show lists them")


def option_name(text: str) -> str:
    """Read the name of an option."""
    return text


def option_value(text: str) -> str:
    """Read a word of an option's value."""
    return text


arguments.completes("option", option_name)
arguments.completes("option-value", option_value)
