"""The registry of commands: finds the one that a line names, parses the line, and runs it."""

from __future__ import annotations

import importlib
import os
import shlex
from _thread import RLock
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from types import ModuleType

from ptinspect.commands.framework.catalogue import catalogue
from ptinspect.commands.framework.command import Call, Command, Needs, ambiguous
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.output.model import Note, Report, escape
from ptinspect.text import similar
from ptinspect.typed import Protocol

INSTEAD: Mapping[str, str] = {
    "add-symbol-file": "gdb add-symbol-file …",
    "bp": "break ADDR",
    "call": "the guest's functions cannot be called",
    "clear": "delete N; break lists them",
    "commands": "in a script: on stop NAME: …",
    "context": "status, regs, bt, x/8i $pc",
    "disconnect": "detach",
    "display": "on stop any: x/i $pc",
    "dmesg": "console -n 50",
    "down": "bt lists the frames; regs and $fp are those of the innermost",
    "echo": "lines that begin with # are comments",
    "f": "bt lists the frames, stack shows their sizes",
    "file": "kernel FILE",
    "frame": "bt lists the frames, stack shows their sizes",
    "gva2gpa": "walk ADDR; monitor gva2gpa ADDR",
    "hbreak": "break ADDR: it is a hardware breakpoint unless --software",
    "hexdump": "x/64bx ADDR",
    "j": "gdb jump …",
    "jump": "gdb jump …",
    "kbase": "kernel",
    "kill": "quit ends the guest that was launched here; detach leaves it",
    "kstack": "stack task:NAME, stack PID",
    "ktask": "stack tasks",
    "kvmmap": "map",
    "l": "there are no source lines; disassemble, or x/8i $pc",
    "layout": "on stop any: x/4i $pc",
    "list": "there are no source lines; disassemble, or x/8i $pc",
    "log": "console -n 50",
    "lx-dmesg": "console -n 50",
    "lsmod": "modules",
    "lx-lsmod": "modules",
    "lx-ps": "stack tasks",
    "make": "!make",
    "nearpc": "disassemble",
    "p2v": "find pa:…",
    "pagewalk": "walk ADDR",
    "physread": "x/8gx pa:…",
    "physwrite": "poke descriptor pa:… VALUE",
    "pipe": "COMMAND | SHELL, as in regs | grep TTBR",
    "pmap": "map",
    "printf": "print EXPR; gdb printf …",
    "ps": "stack tasks",
    "pt": "map, walk ADDR, find pa:…",
    "ptdump": "map; export --format ptdump",
    "pte": "decode VALUE --level pte, or walk ADDR",
    "ptov": "find pa:…",
    "pw": "walk ADDR, map",
    "qreg": "regime, regs",
    "r": "launch starts a guest, continue lets it run",
    "rd": "x/8gx ADDR",
    "reboot": "monitor system_reset",
    "reset": "monitor system_reset",
    "restart": "quit and start again, or: monitor system_reset",
    "return": "finish runs until the function returns",
    "run": "launch starts a guest, continue lets it run",
    "search": "find PA lists the addresses that map it",
    "starti": "launch stops the guest at reset",
    "struct": "ptype struct NAME; print *(struct NAME *) ADDR",
    "symbol-file": "kernel FILE",
    "sysreg": "regime, regs",
    "target": "attach :1234",
    "task": "stack task:NAME; print *$current",
    "telescope": "x/8a $sp",
    "thread": "cpu N",
    "tui": "on stop any: x/4i $pc",
    "up": "bt lists the frames; regs and $fp are those of the innermost",
    "v2p": "walk ADDR",
    "virt2phys": "walk ADDR",
    "vmmap": "map",
    "vtop": "walk ADDR",
    "xinfo": "print ADDR, walk ADDR",
    "xp": "x/8gx pa:…",
}
"""A word of GDB's, pwndbg's, gef's, crash's or QEMU's -> what answers it here."""


RESULTS = "results"
"""Name in Guest.kept of the last report of each command and the stop it belongs to, for `expect`."""


class State(Protocol):
    """What running a command needs of the state that commands share."""

    @property
    def guest(self) -> Guest:
        """The guest that commands work on."""
        ...


@dataclass(frozen=True)
class Words:
    """Hold a line that was split: the command that it names, and what follows the name."""

    command: Command
    words: tuple[str, ...]
    """What follows the name, split as a shell splits words."""
    rest: str
    """The same, unsplit."""


class Commands(MutableMapping[tuple[str, ...], Command]):
    """Commands by their words. A declared one is loaded when it is looked up, not when it is counted."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, ...], Command] = {}
        self._declared: dict[tuple[str, ...], Callable[[], None]] = {}

    def declare(self, words: tuple[str, ...], load: Callable[[], None]) -> None:
        """Have `load` called, which stores the command, when it is wanted."""
        self._declared[words] = load

    def loaded(self, words: tuple[str, ...]) -> bool:
        """Tell whether the command is here already."""
        return words in self._loaded

    def __getitem__(self, words: tuple[str, ...]) -> Command:
        """Return a command. Raises KeyError if there is none of these words."""
        if words not in self._loaded and words in self._declared:
            self._declared[words]()
        return self._loaded[words]

    def __setitem__(self, words: tuple[str, ...], command: Command) -> None:
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


def _at_home(word: str) -> str:
    """Return a word with the home directory that its `~` stands for, as a shell does."""
    if not word.startswith("~") or "\0" in word:
        return word
    return os.path.expanduser(word)  # noqa: PTH111 (~nobody stays)


@dataclass
class Registry:
    """Hold the commands by name."""

    commands: Commands = field(default_factory=Commands)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def declare(self, words: tuple[str, ...], aliases: Sequence[str], load: Callable[[], None]) -> None:
        """Announce a command: `load` registers it when it is needed."""
        if words in self.commands or self.aliases.keys() & set(aliases):
            raise ValueError(f"command {' '.join(words)!r}, or an alias of it, is declared twice")
        self.commands.declare(words, load)
        self.aliases.update(dict.fromkeys(aliases, words))

    def add(self, command: Command) -> None:
        """Store a command. Raises ValueError if its name or an alias is another one's."""
        if self.commands.loaded(command.words):
            raise ValueError(f"command {command.name!r} is registered twice")
        self.commands[command.words] = command
        for alias in command.aliases:
            if self.aliases.get(alias, command.words) != command.words:
                raise ValueError(f"alias {alias!r} is registered twice")
            self.aliases[alias] = command.words

    def add_all(self, module: ModuleType) -> None:
        """Store the commands that a module declares."""
        for value in vars(module).values():
            declared = getattr(value, "__command__", None)
            if isinstance(declared, Command) and value.__module__ == module.__name__:
                self.add(declared)

    def __iter__(self) -> Iterator[Command]:
        """Go through the commands by name."""
        return iter(sorted(self.commands.values(), key=lambda c: c.words))

    def beginning(self, words: tuple[str, ...]) -> list[Command]:
        """Return the commands whose names begin with these words, by name."""
        return [self.commands[name] for name in sorted(self.commands) if name[: len(words)] == words]

    def split(self, line: str) -> Words:
        """Find the command that `line` names, and split what follows; `~` is the user's directory.

        Raises UserError if there is no such command, or the quotes do not match.
        """
        line = line.strip()
        name, _, after = line.partition(" ")
        if after.lstrip().startswith("/") and self._slash(name):  # as GDB reads it: x /4i $pc
            line = name + after.lstrip()
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{line}: {error}", "close the quotes") from error
        words = self.open_slash([_at_home(word) for word in words])
        command, used = self.resolve(words)
        rest = line
        for _ in range(used):
            rest = rest.partition(" ")[2].lstrip()
        return Words(command, tuple(words[used:]), rest)

    def bind(self, found: Words) -> Call:
        """Parse what follows a command's name; `--help` at its end calls `help`. Raises UserError."""
        if not found.command.passthrough and found.words[-1:] in (("--help",), ("-h",)):
            return Call(self.commands[("help",)], {"words": list(found.command.words)})
        with _system_errors():
            return Call(found.command, found.command.parse(found.words, found.rest))

    def parse(self, line: str) -> Call:
        """Split and parse a line. Raises UserError."""
        return self.bind(self.split(line))

    def open_slash(self, words: list[str]) -> list[str]:
        """Make an option of what follows a slash in the first word, for commands that have one."""
        name, slash, form = words[0].partition("/") if words else ("", "", "")
        option = self._slash(name) if slash else ""
        return [name, option, form, *words[1:]] if option else words

    def _slash(self, name: str) -> str:
        """Return the option that a slash after a command's name stands for, if it has one."""
        command = self.commands.get((name,)) or self.commands.get(self.aliases.get(name, ()))
        return "" if command is None else command.slash

    def resolve(self, words: Sequence[str]) -> tuple[Command, int]:
        """Return the command that the first words name, and how many of them do.

        An exact name wins over an alias, an alias over an unambiguous abbreviation.
        """
        if not words:
            raise UserError("no command given", "type 'help' for the list")
        if words[0] in self.aliases and (words[0],) not in self.commands:
            return self.commands[self.aliases[words[0]]], 1
        instead = INSTEAD.get(words[0], "")
        candidates = list(self.commands)
        used = 0
        if instead and not any(words[0] == name[0] for name in candidates):
            raise UserError(f"no command {words[0]!r}", instead)
        while used < len(words):
            step = [c for c in candidates if len(c) > used and c[used] == words[used]]
            if not step:
                step = [c for c in candidates if len(c) > used and c[used].startswith(words[used])]
                whole = next((c for c in candidates if len(c) == used), None)
                if step and whole and self.commands[whole].raw:  # it may be an expression
                    break
                if len({c[used] for c in step}) > 1:
                    raise ambiguous(" ".join(words[: used + 1]), sorted({c[used] for c in step}))
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
        close = [" ".join(c) for c in self.commands if words[0] in c[1:]]
        close = close or similar(words[0], {w[0] for w in self.commands} | set(self.aliases), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "type 'help' for the list"
        if words[0].startswith("!"):
            hint = f"at the prompt; in scripts: shell {words[0][1:]}"
        elif os.path.isfile(os.path.expanduser(words[0])):  # noqa: PTH111, PTH113 (they raise nothing)
            hint = "it is a file: load reads a snapshot, oops a console log, source a script, kernel a kernel"
        raise UserError(f"no command {words[0]!r}", hint)

    def run(self, ctx: State, line: str | Call, *, kept: bool = True) -> Report:
        """Run a call, or parse and run a line; its answer is `kept` for `expect`, or not.

        Raises PtinspectError; nothing else unless there is a bug.
        """
        call = self.parse(line) if isinstance(line, str) else line
        command, guest = call.command, ctx.guest
        if command.needs is Needs.TARGET:
            guest.require(command.name, stopped=False)
        elif command.needs is Needs.STOPPED or (
            command.needs is Needs.STOPPED_UNLESS_SNAP and not call.arguments.get("snap")
        ):
            guest.require(command.name, stopped=True)
        changed = guest.look()
        with _system_errors():
            report = _with_notices(guest, call.on(ctx, guest), changed)
        if kept:
            _remember(guest, command, report)
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


def _remember(guest: Guest, command: Command, report: Report) -> None:
    """Keep the report of a command for `expect`; forget those that it may have made wrong."""
    kept = guest.kept.setdefault(RESULTS, {})
    if command.changes:
        for old in [key for key in kept if key != "diff"]:
            del kept[old]
    if command.name != "expect":
        kept[command.name] = (guest.stop_token, report)


def _with_notices(guest: Guest, report: Report, changed: str) -> Report:
    """Add what somebody else did to the guest, and what happened to the lanes while the command ran."""
    notices = [*([changed] if changed else []), *guest.notices()]
    if not notices:
        return report
    return replace(report, body=(*report.body, *(Note(escape(text), "changed") for text in notices)))


def build_registry() -> Registry:
    """Return a registry with every command; its modules are imported as they are needed."""
    registry = Registry()
    loads: dict[str, Load] = {}
    for entry in catalogue():
        load = loads.setdefault(entry.module, Load(registry, entry.module))
        registry.declare(entry.words, entry.aliases, load)
    return registry


class Load:
    """Import a module and have its commands registered; the second time does nothing."""

    def __init__(self, registry: Registry, module: str) -> None:
        self._registry, self._module = registry, module
        self._done, self._lock = False, RLock()

    def __call__(self) -> None:
        """Do it; another thread, that of completion for instance, waits until it is done."""
        with self._lock:
            if not self._done:
                self._registry.add_all(importlib.import_module(f"ptinspect.commands.{self._module}"))
                self._done = True
