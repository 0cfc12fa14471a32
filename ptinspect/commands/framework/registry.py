"""The registry of commands: one declaration each, from which parsing, help, completion and docs come."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Generic, Protocol, TypeVar

from ptinspect.commands.framework.parser import Parser, divide, joined
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, escape

Configure = Callable[[argparse.ArgumentParser], None]

RESULTS = "results"
"""Name in Context.memo of the last result of each command and the stop it belongs to, for `expect`."""
EXPECTABLE = ("summary", "stack", "kpti status", "status", "regs", "regime", "cpu", "check", "why")
"""Commands that only look, so `expect` may run them itself."""
CHANGING = frozenset(
    {"poke descriptor", "poke undo", "gdb", "monitor", "cpu", "kernel", "drop", "load", "snap"}
)
"""Commands after which an earlier answer of this stop may be wrong."""


class Needs(Enum):
    """Say what must be there before a command runs; checked in one place (`Context.check`)."""

    NOTHING = "nothing"
    TARGET = "target"
    """An attached gdbstub, running or stopped."""
    STOPPED = "stopped"
    """An attached and stopped guest."""


class State(Protocol):
    """What running a line needs of the state that commands share."""

    @property
    def stop_token(self) -> object:
        """What tells this stop of the guest from others; None without a guest."""
        ...

    @property
    def memo(self) -> dict[str, object]:
        """What commands remember for each other."""
        ...

    def check(self, needs: Needs, name: str) -> None:
        """Raise UserError, TargetRunning or TargetLost unless `needs` of the command `name` is met."""
        ...

    def look(self) -> str:
        """Notice what somebody else did to the guest meanwhile; return what to say about it."""
        ...

    def notices(self) -> Sequence[str]:
        """Return what happened to the lanes to memory since it was asked last."""
        ...


S = TypeVar("S", bound=State)
"""The state that a registry's commands take: `commands.context.Context`."""
Handler = Callable[[S, argparse.Namespace], Report]


@dataclass(frozen=True)
class Command(Generic[S]):
    """Declare a command."""

    words: tuple[str, ...]
    """The words that name it: `("walk",)`, `("kpti", "run")`."""
    handler: Handler[S]
    configure: Configure
    needs: Needs
    summary: str
    """One line for lists."""
    example: str
    """A line that can be typed, shown by `help` and in README.md."""
    details: str = ""
    aliases: tuple[str, ...] = ()
    """Short names, one word each."""
    repeats: bool = False
    """True if Enter on an empty line runs it again."""
    passthrough: bool = False
    """True if everything behind the name is one string, unparsed (`gdb …`): it arrives as `args.line`."""
    extra: bool = False
    """True if the words behind `--` are for another program: they arrive unparsed as `args.extra`."""
    slash: str = ""
    """Option that takes what is typed behind a slash: with `--format`, `x/8gx` is `x --format 8gx`."""
    again: str = ""
    """What Enter on an empty line runs instead of the same line again."""

    @property
    def name(self) -> str:
        """The words, joined by spaces."""
        return " ".join(self.words)

    def parser(self) -> Parser:
        """Build the argument parser."""
        parser = Parser(prog=self.name, description=self.summary, add_help=False, allow_abbrev=False)
        if self.passthrough:
            return parser
        self.configure(parser)
        return parser


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """Configure a command that takes none."""


class Commands(MutableMapping[tuple[str, ...], Command[S]]):
    """Commands by their words. A declared one is loaded when it is looked up, not when it is counted."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, ...], Command[S]] = {}
        self._declared: dict[tuple[str, ...], Callable[[], None]] = {}

    def declare(self, words: tuple[str, ...], load: Callable[[], None]) -> None:
        """Have `load` called, which stores the command, when it is wanted."""
        self._declared[words] = load

    def loaded(self, words: tuple[str, ...]) -> bool:
        """Tell whether the command is here already."""
        return words in self._loaded

    def __getitem__(self, words: tuple[str, ...]) -> Command[S]:
        """Return a command. Raises KeyError if there is none of these words."""
        if words not in self._loaded and words in self._declared:
            self._declared[words]()
        return self._loaded[words]

    def __setitem__(self, words: tuple[str, ...], command: Command[S]) -> None:
        """Store a command."""
        self._loaded[words] = command

    def __delitem__(self, words: tuple[str, ...]) -> None:
        """Remove a command."""
        del self._loaded[words]

    def __contains__(self, words: object) -> bool:
        """Tell whether there is such a command, without loading it."""
        return words in self._loaded or words in self._declared

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Go through the words of all commands, without loading any."""
        return iter({**self._declared, **self._loaded})

    def __len__(self) -> int:
        """Count them."""
        return len({**self._declared, **self._loaded})


@dataclass
class Registry(Generic[S]):
    """Hold the commands by name."""

    commands: Commands[S] = field(default_factory=Commands)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def declare(self, names: str, load: Callable[[], None]) -> None:
        """Announce commands and their aliases, `quit=q=exit, kpti run`: `load` registers them when needed."""
        for item in names.split(", "):
            name, *aliases = item.split("=")
            words = tuple(name.split())
            if words in self.commands or self.aliases.keys() & set(aliases):
                raise ValueError(f"command {item!r} is declared twice")
            self.commands.declare(words, load)
            self.aliases.update(dict.fromkeys(aliases, words))

    def command(
        self,
        name: str,
        *,
        summary: str,
        example: str,
        needs: Needs = Needs.NOTHING,
        configure: Configure = no_arguments,
        details: str = "",
        aliases: Sequence[str] = (),
        repeats: bool = False,
        passthrough: bool = False,
        extra: bool = False,
        slash: str = "",
        again: str = "",
    ) -> Callable[[Handler[S]], Handler[S]]:
        """Register the decorated handler under `name` (words separated by spaces)."""

        def register(handler: Handler[S]) -> Handler[S]:
            words = tuple(name.split())
            if self.commands.loaded(words):
                raise ValueError(f"command {name!r} is registered twice")
            self.commands[words] = Command(
                words,
                handler,
                configure,
                needs,
                summary,
                example,
                details,
                tuple(aliases),
                repeats,
                passthrough,
                extra,
                slash,
                again,
            )
            for alias in aliases:
                if self.aliases.get(alias, words) != words:
                    raise ValueError(f"alias {alias!r} is registered twice")
                self.aliases[alias] = words
            return handler

        return register

    def __iter__(self) -> Iterator[Command[S]]:
        """Go through the commands by name."""
        return iter(sorted(self.commands.values(), key=lambda c: c.words))

    def split(self, line: str) -> tuple[Command[S], list[str], str]:
        """Find the command that `line` names.

        Returns the command, its arguments split as a shell splits words, and the unsplit rest of
        the line. Raises UserError if there is no such command, or the quotes do not match.
        """
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{line.strip()}: {error}", "close the quotes") from error
        words = self.open_slash(words)
        command, used = self.resolve(words)
        rest = line.strip()
        for _ in range(used):
            rest = rest.partition(" ")[2].lstrip()
        return command, words[used:], rest

    def open_slash(self, words: list[str]) -> list[str]:
        """Make an option of what stands behind a slash in the first word, for commands that have one."""
        name, slash, form = words[0].partition("/") if words else ("", "", "")
        command = self.commands.get((name,)) or self.commands.get(self.aliases.get(name, ()))
        if not slash or command is None or not command.slash:
            return words
        return [name, command.slash, form, *words[1:]]

    def resolve(self, words: Sequence[str]) -> tuple[Command[S], int]:
        """Return the command that the first words name, and how many of them do.

        An exact name wins over an alias, an alias over an unambiguous abbreviation.
        """
        if not words:
            raise UserError("no command given", "type 'help' for the list")
        if words[0] in self.aliases and (words[0],) not in self.commands:
            return self.commands[self.aliases[words[0]]], 1
        from ptinspect.commands.framework.fingers import INSTEAD

        instead = INSTEAD.get(words[0], "")
        candidates = list(self.commands)
        used = 0
        while used < len(words):
            step = [c for c in candidates if len(c) > used and c[used] == words[used]]
            if not step:
                step = [c for c in candidates if len(c) > used and c[used].startswith(words[used])]
                if len({c[used] for c in step}) > 1:
                    if tuple(c for c in candidates if len(c) == used):
                        break
                    names = ", ".join(sorted({" ".join(c[: used + 1]) for c in step}))
                    said = instead if instead and not used else f"one of: {names}"
                    raise UserError(f"{' '.join(words[: used + 1])!r} is ambiguous", said)
            if not step:
                break
            candidates = step
            used += 1
        exact = [c for c in candidates if len(c) == used]
        if used and exact:
            return self.commands[exact[0]], used
        if used:
            names = ", ".join(sorted(" ".join(c) for c in candidates))
            raise UserError(f"{' '.join(words[:used])!r} needs a further word", f"one of: {names}")
        import difflib

        close = difflib.get_close_matches(words[0], {w[0] for w in self.commands} | set(self.aliases), 3)
        hint = instead or (f"did you mean {' or '.join(close)}?" if close else "type 'help' for the list")
        raise UserError(f"no command {words[0]!r}", hint)

    def run(self, ctx: S, line: str) -> Report:
        """Parse and run one line. Raises PtinspectError; nothing else unless ptinspect has a bug."""
        command, arguments, rest = self.split(line)
        if command.passthrough:
            args = argparse.Namespace(line=rest)
        else:
            own, extra = divide(arguments) if command.extra else (arguments, [])
            with _system_errors():
                args = command.parser().parse_args(joined(own))
            if command.extra:
                args.extra = extra
        ctx.check(command.needs, command.name)
        changed = ctx.look()
        with _system_errors():
            report = _with_notices(ctx, command.handler(ctx, args), changed)
        _remember(ctx, command.name, report)
        return report


@contextmanager
def _system_errors() -> Iterator[None]:
    """Make what the operating system refuses, or what can be no path, an error in one line."""
    try:
        yield
    except OSError as error:
        named = f"{error.filename}: " if error.filename is not None else ""
        raise UserError(f"{named}{error.strerror or error}") from error
    except UnicodeError as error:
        raise UserError(f"no text (UTF-8): {error}") from error
    except RuntimeError as error:
        if "home directory" not in str(error):  # pathlib, of ~nobody
            raise
        raise UserError(str(error)) from error
    except ValueError as error:
        if "null" not in str(error):  # of a path; anything else is a bug
            raise
        raise UserError("a path cannot hold a NUL character") from error


def _remember(ctx: State, name: str, report: Report) -> None:
    """Keep the result of a command for `expect`; forget those that it may have made wrong."""
    kept = ctx.memo.setdefault(RESULTS, {})
    if not isinstance(kept, dict):
        return
    if name in CHANGING:
        for old in [key for key in kept if key != "diff"]:
            del kept[old]
    if name != "expect":
        kept[name] = (ctx.stop_token, report.result)


def _with_notices(ctx: State, report: Report, changed: str) -> Report:
    """Add what somebody else did to the guest, and what happened to the lanes while the command ran."""
    notices = [*([changed] if changed else []), *ctx.notices()]
    if not notices:
        return report
    return replace(report, body=(*report.body, *(Note(escape(text), "changed") for text in notices)))
