"""Look at a script before any of it runs: commands, variables, and the scripts that it calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ptinspect.commands.framework.registry import Registry
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError
from ptinspect.script.statements import Line, OnFailure, OnStop, Repeat, ScriptError, Source, Statement, Var
from ptinspect.script.variables import needed, words

MAX_DEPTH = 8
"""Scripts called by scripts, and actions at stops within each other."""
MOST_SCRIPTS = 1000
"""Scripts that one script may call, those that these call included."""


@dataclass(frozen=True)
class Called:
    """A script that is called."""

    place: str
    """Where it is called first: `file:line`."""
    statements: tuple[Statement, ...]


@dataclass
class Preflight:
    """Go through statements in the order in which they run, as far as that is known beforehand."""

    registry: Registry
    known: dict[str, str | None]
    """Variables; None where the value is known only when the script runs."""
    depth: int = 0
    """How many scripts called each other to come here."""
    called: dict[str, Called] = field(default_factory=dict)
    """The scripts that are called, in the order of their first calls, by the names that the calls give."""
    late: set[str] = field(default_factory=set)
    """Places that call a script whose name is known only when they are reached."""
    _scripts: int = 0

    def check(self, statements: Iterable[Statement]) -> None:
        """Raise ScriptError for the first statement that cannot work.

        That is a command that does not exist, a variable without a value, a script that cannot be read,
        and scripts that call each other without end. Arguments of commands are not looked at: what they
        mean may depend on the guest.
        """
        for statement in statements:
            try:
                self._one(statement)
            except ScriptError:
                raise
            except UserError as error:
                raise ScriptError(statement.place, error.message, error.hint) from error

    def _one(self, statement: Statement) -> None:
        match statement:
            case Line(text):
                self._needs(text)
                if not text.startswith("${"):
                    self.registry.split(text)
            case Var(name, value):
                self._needs(value)
                given = self._words(value)
                if given is not None and len(given) > 1:
                    raise UserError(f"var {name}: more than one word", "put the value into quotes")
                if name not in self.known:
                    self.known[name] = None if given is None else "".join(given)
            case Repeat(count, counter, body):
                self._needs(count)
                self._block(body, {counter: None} if counter else {})
            case OnStop(where, body):
                self._needs(where)
                self._block(body, {})
            case OnFailure(body):
                self._block(body, {})
            case Source(path):
                self._needs(path)
                self._source(path, statement.place)

    def _block(self, body: tuple[Statement, ...], more: Mapping[str, str | None]) -> None:
        """Check what may run never or often: what it defines is not known after it."""
        before, self.known = self.known, {**self.known, **more}
        self.check(body)
        self.known = before

    def _needs(self, text: str) -> None:
        for name in sorted(needed(text) - self.known.keys()):
            raise UserError(
                f"${{{name}}} has no value",
                f"--var {name}=VALUE gives one, 'var {name} = VALUE' in the script a default",
            )

    def _words(self, text: str) -> list[str] | None:
        """Return the words of a text; None if one depends on what is known only later."""
        values = {name: value for name, value in self.known.items() if value is not None}
        unknown = self.known.keys() - values.keys()
        return None if any(f"${{{name}" in text for name in unknown) else words(text, values)

    def _source(self, path: str, place: str) -> None:
        given = self._words(path)
        if given is None:
            self.late.add(place)
            return
        if len(given) != 1:
            raise UserError("source takes one file", "source session.pti")
        self._scripts += 1
        if self.depth >= MAX_DEPTH or self._scripts > MOST_SCRIPTS:
            most = MAX_DEPTH if self.depth >= MAX_DEPTH else MOST_SCRIPTS
            raise UserError(f"more than {most} scripts within each other", "does one of them call itself?")
        if given[0] not in self.called:
            from ptinspect.script.shipped import open_script

            self.called[given[0]] = Called(place, open_script(given[0]))
        self.depth += 1
        self.check(self.called[given[0]].statements)
        self.depth -= 1
