"""How a command is declared: all that is known of it stands above its function, and nowhere else."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from enum import Enum

from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import UserError
from ptinspect.output.model import Report
from ptinspect.text import Pattern, similar
from ptinspect.typed import Any, Literal, NoReturn, TypeVar

PROGRAM = "ptinspect"
"""The program's own parser: its name stands in front of every error anyway."""

_CLAUSE = Pattern(r"(?:^|\s)if(?=[\s(])\s*((?:[^\s#]|\s(?!#))+)", "if")
_CHARACTER = r"'(?:[^\\]|\\.{1,4})'"


class OneLine(argparse.HelpFormatter):
    """Write usage in one line; argparse's own asks for the terminal's width at each argument."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=1 << 16)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError instead of leaving the process."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, formatter_class=OneLine, add_help=False, allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the usage as hint; for a misspelt option, with those that are meant."""
        named = "" if self.prog == PROGRAM else f"{self.prog}: "
        raise UserError(f"{named}{message}", self._meant(message) or " ".join(self.format_usage().split()))

    def _meant(self, message: str) -> str:
        wrong = message.removeprefix("unrecognized arguments: ").split()
        if wrong and wrong[0] in ("|", ">", ">>", ";"):
            return f"{wrong[0]} is the prompt's; inside GDB: pipe pt COMMAND | SHELL; in scripts: the shell's"
        if wrong and wrong[0].startswith("--") and not message.startswith(wrong[0]):
            options = [name for action in self._actions for name in action.option_strings]
            close = similar(wrong[0], options, 2)
            lists = "ptinspect --help" if self.prog == PROGRAM else f"'help {self.prog}'"
            return f"did you mean {' or '.join(close)}? {lists} lists the options" if close else ""
        return ""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise UserError: no argument ends the process."""
        raise UserError((message or f"{self.prog}: exit {status}").strip())

    def actions(self) -> list[argparse.Action]:
        """Return the arguments in the order of their declaration, for help and completion."""
        return list(self._actions)


class AmbiguousError(UserError):
    """Report that what was typed is the beginning of several names."""


def ambiguous(typed: str, names: Iterable[str]) -> AmbiguousError:
    """Return the error that what was typed is the beginning of several names."""
    return AmbiguousError(f"{typed!r} is ambiguous: {', '.join(names)}", "type more of it")


def joined(arguments: list[str]) -> list[str]:
    """Join what is one expression: around a + or - of its own, `$sp - 16`, and before a module, `f [m]`."""
    found: list[str] = []
    for word in arguments:
        after_sign = len(found) > 1 and found[-1] in ("+", "-") and not found[-2].startswith("-")
        if after_sign and not word.startswith("-"):
            found[-2:] = [f"{found[-2]}{found[-1]}{word}"]
        elif found and not found[-1].startswith("-") and word[:1] == "[" and word[-1:] == "]":
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def as_typed(text: str) -> list[str]:
    """Split as a shell does, but leave the quotes of a character: 'a'."""
    lexer = shlex.shlex(text, posix=False, punctuation_chars=False)
    lexer.whitespace_split = True
    return [word if re.fullmatch(_CHARACTER, word) else _unquoted(word) for word in lexer]


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word


def _options_first(parser: Parser, words: list[str]) -> list[str]:
    """Return the words with the options in front: what else begins with a sign is part of an expression."""
    options = {name: action for action in parser.actions() for name in action.option_strings}
    first: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        option = options.get(word.partition("=")[0] if word.startswith("--") else word)
        if option is None and not re.match("--[a-z]", word):
            others.append(word)
            continue
        first.append(word)
        if option is not None and option.nargs != 0 and "=" not in word:
            first += [value for _, value in zip(range(1), rest, strict=False)]
    return [*first, "--", *(others[1:] if others[:1] == ["--"] else others)]


def divide(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after the first `--`."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


Handler = TypeVar("Handler", bound=Callable[..., Report])


class Needs(Enum):
    """Say what must be there before a command runs; checked in one place (`registry.Registry.run`)."""

    NOTHING = "nothing"
    TARGET = "target"
    """An attached gdbstub, running or stopped."""
    STOPPED = "stopped"
    """An attached and stopped guest."""
    STOPPED_UNLESS_SNAP = "stopped, or a snapshot"
    """The same, unless `--snap` names a snapshot."""


@dataclass(frozen=True)
class Argument:
    """Declare an argument of a command, as argparse takes it."""

    flags: tuple[str, ...]
    """Its name, or its options: `("--cpu",)`."""
    options: Mapping[str, Any]
    """What `argparse.ArgumentParser.add_argument` takes besides."""
    one_of: str = ""
    """Name of a set of arguments of which only one may be given."""
    written: Literal["", "file", "snapshot"] = ""
    """It names what the command writes."""
    within: tuple[str, Callable[..., Any]] | None = None
    """The keyword and the type of what the handler takes instead of it, of which it is a field."""

    @property
    def name(self) -> str:
        """The keyword by which the handler takes it."""
        long = next((flag for flag in self.flags if not flag.startswith("-") or flag[:2] == "--"), "")
        return str(self.options.get("dest") or long.removeprefix("--").replace("-", "_"))


FORCED = "_force"
"""Argument of all commands that write files; the framework's own, their handlers do not get it."""
_LEAVE = (FORCED, "force", "replace")
"""Arguments that give leave to overwrite."""
_FORCE = Argument(
    ("--force",),
    {"dest": FORCED, "action": "store_true", "help": "do not ask before a file is overwritten"},
)


def argument(
    *flags: str, one_of: str = "", written: Literal["", "file", "snapshot"] = "", **options: Any
) -> Argument:
    """Declare an argument: `argument("--limit", type=whole(0, 99), metavar="N", help="…")`."""
    return Argument(flags, options, one_of, written)


@dataclass(frozen=True)
class Command:
    """Hold what is known of a command."""

    words: tuple[str, ...]
    handler: Callable[..., Report]
    """Takes the guest (its first parameter is `guest`) or the shared state (`ctx`), and the arguments by
    keyword."""
    group: str
    """Title under which `help` lists it."""
    summary: str
    """One line for lists."""
    example: str
    """A line that can be typed, shown by `help` and in README.md."""
    arguments: tuple[Argument, ...] = ()
    result: Any = None
    """The dataclass that its report holds, or a union of such; `output.encode.schema_of` makes its schema."""
    needs: Needs = Needs.NOTHING
    details: str = ""
    aliases: tuple[str, ...] = ()
    """Short names, one word each."""
    expectable: bool = False
    """It only looks, so that `expect` may run it by itself."""
    changes: bool = False
    """After it an earlier answer of this stop may be wrong."""
    runs: bool = False
    """It lets the guest run: after it `on stop` looks where the guest stands."""
    recorded: bool = True
    """`record` takes note of it."""
    not_in_gdb: str = ""
    """Why it makes no sense inside a GDB, and what to do instead; empty where it does."""
    repeats: bool = False
    """Enter on an empty line runs it again."""
    again: str = ""
    """What Enter on an empty line runs instead of the same line again."""
    passthrough: bool = False
    """All that follows the name is one string, unparsed (`gdb …`): it arrives as `line`."""
    extra: bool = False
    """The words after `--` are for another program: they arrive unparsed as `extra`."""
    raw: bool = False
    """Its arguments are expressions: quotes and signs in them belong to it, as in 'a' and -1."""
    clause: str = ""
    """Option that takes all that follows the word `if`."""
    slash: str = ""
    """Option that takes what is typed after a slash: with `--format`, `x/8gx` is `x --format 8gx`."""

    @property
    def name(self) -> str:
        """The words, joined by spaces."""
        return " ".join(self.words)

    def parser(self) -> Parser:
        """Build the argument parser."""
        parser = Parser(self.name, description=self.summary)
        groups: dict[str, Any] = {}
        writes = any(item.written == "file" for item in self.arguments)
        forces = any("--force" in item.flags for item in self.arguments)
        for item in (*self.arguments, *((_FORCE,) if writes and not forces else ())):
            if item.one_of and item.one_of not in groups:
                groups[item.one_of] = parser.add_mutually_exclusive_group()
            groups.get(item.one_of, parser).add_argument(*item.flags, **item.options)
        return parser

    def parse(self, words: Sequence[str], rest: str) -> dict[str, Any]:
        """Return the arguments by keyword; `rest` is what follows the name, unsplit. Raises UserError."""
        if self.passthrough:
            return {"line": rest}
        own, extra = divide(list(words)) if self.extra else (list(words), [])
        parser = self.parser()
        if self.raw or self.clause:
            own = self._own_words(parser, own, rest)
        found = vars(parser.parse_args(own if self.raw else joined(own)))
        return {**found, "extra": extra} if self.extra else found

    def _own_words(self, parser: Parser, words: list[str], rest: str) -> list[str]:
        """Return the words with what follows `if` as one, and expressions as they were typed."""
        after = _CLAUSE.search(rest) if self.clause else None
        if after is None and not self.raw:
            return words
        said = words[: len(words) - len(shlex.split(rest, comments=True))]
        text = rest if after is None else rest[: after.start()]
        try:
            split = _options_first(parser, as_typed(text)) if self.raw else shlex.split(text)
        except ValueError as error:  # quotes that `if` stands between, a backslash before it
            raise UserError(f"{self.name} {text}: {error}", "close the quotes") from error
        return [*said, *([] if after is None else [f"{self.clause}={after[1].strip()}"]), *split]


def command(
    name: str,
    *,
    aliases: tuple[str, ...] = (),
    group: str,
    summary: str,
    example: str,
    arguments: Sequence[Argument] = (),
    **more: Any,
) -> Callable[[Handler], Handler]:
    """Declare the decorated function as the command `name` (words separated by spaces).

    `more` are further fields of Command. Name, aliases, group and summary are literals in this order: the
    catalogue reads them from the source to know which module holds which command without importing it.
    """

    def declare(handler: Handler) -> Handler:
        made = Command(
            tuple(name.split()), handler, group, summary, example, tuple(arguments), aliases=aliases, **more
        )
        handler.__command__ = made  # type: ignore[attr-defined]
        return handler

    return declare


@dataclass(frozen=True)
class Call:
    """Hold a line that was split and parsed: the command and its arguments."""

    command: Command
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """By keyword, as the handler takes them."""

    @property
    def name(self) -> str:
        """The command's name."""
        return self.command.name

    def on(self, ctx: object, guest: object) -> Report:
        """Call the handler, with the guest or the shared state as its first parameter asks for it."""
        first = self.command.handler.__code__.co_varnames[0]
        own = {name: value for name, value in self.arguments.items() if name != FORCED}
        parts = {item.name: item.within for item in self.command.arguments if item.within is not None}
        for whole in dict.fromkeys(parts.values()):
            keyword, made = whole
            own[keyword] = made(**{name: own.pop(name) for name, of in parts.items() if of == whole})
        return self.command.handler(guest if first == "guest" else ctx, **own)

    def overwrites(self, snapshots: Container[str]) -> list[str]:
        """Return the files and snapshots that it would overwrite, unless that was said to be right."""
        if any(self.arguments.get(name) for name in _LEAVE):
            return []
        named = [(self.arguments.get(item.name), item.written) for item in self.command.arguments]
        files = [value for value, kind in named if kind == "file" and value and not isinstance(value, str)]
        kept = [value for value, kind in named if kind == "snapshot" and value in snapshots]
        there = [f"{path}" for path in files if os.path.isfile(path)]  # noqa: PTH113 (it raises nothing)
        return [*there, *(f"the snapshot {name}" for name in kept)]

    @property
    def leave(self) -> str:
        """The argument that gives leave to overwrite."""
        return next(name for name in _LEAVE if name in self.arguments)

    def using(self, **changed: Any) -> Call:
        """Return the call with some of its arguments replaced."""
        return replace(self, arguments={**self.arguments, **changed})
