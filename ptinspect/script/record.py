"""Make a script of what was run."""

from __future__ import annotations

import contextlib
import shlex
from collections import deque
from collections.abc import Iterator, Mapping

from ptinspect.dataclass import dataclass, field
from ptinspect.errors import EXIT_OK, UserError
from ptinspect.script.statements import Line, OnFailure, OnStop, Repeat, Source, Statement, Var
from ptinspect.script.variables import used
from ptinspect.text import escape
from ptinspect.typed import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pathlib import Path

MOST = 10_000
"""Statements that are remembered for `record FILE --all`."""
INDENT = "    "


@dataclass(frozen=True)
class Done:
    """A statement that was run."""

    statement: Statement
    """As it was typed or written."""
    code: int
    """What it came to."""
    message: str
    variables: Mapping[str, str]
    """The variables that it used and their values."""


@dataclass
class Record:
    """Remember what was run, and write it to a file once that is wanted."""

    done: deque[Done] = field(default_factory=lambda: deque(maxlen=MOST))
    path: Path | None = None
    """The file that is being written; None if none is."""
    written: int = 0
    """Statements in it, the failed ones included."""
    _file: TextIO | None = None
    _defined: set[str] = field(default_factory=set)

    def begin(self, path: Path, head: list[str], *, everything: bool, force: bool) -> None:
        """Begin a script with `head` as comments; with `everything` it contains what was run so far.

        Raises UserError if the file cannot be written, is there already (unless `force`), or another
        one is being written.
        """
        if self._file is not None:
            raise UserError(f"{self.path} is being recorded already", "record off ends it")
        try:
            self._file = path.open("w" if force else "x", encoding="utf-8")
        except FileExistsError as error:
            raise UserError(f"{path} exists already", "record FILE --force replaces it") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
        self.path, self.written = path, 0
        self._defined.clear()
        self._put([f"# {escape(line)}" for line in head])
        for done in self.done if everything else ():
            self._write(done)

    def end(self) -> None:
        """Close the file. Safe to call twice."""
        file, self._file, self.path = self._file, None, None
        if file is not None:
            with contextlib.suppress(OSError):  # every statement was flushed
                file.close()

    def note(self, statement: Statement, code: int, message: str, variables: Mapping[str, str]) -> None:
        """Take note of a statement that was run. Raises UserError if the file cannot be written."""
        names = list(variables) if isinstance(statement, Source) else []
        with contextlib.suppress(UserError):  # malformed: that is why it failed
            names += _used(statement)
        wanted = {name: variables[name] for name in names if name in variables}
        done = Done(statement, code, message, wanted)
        self.done.append(done)
        if self._file is not None:
            self._write(done)

    def _write(self, done: Done) -> None:
        lines = [] if isinstance(done.statement, Var) else lines_of(done.statement)
        fits = _same(done.statement) and all(value.isprintable() for value in done.variables.values())
        if done.code == EXIT_OK and fits:
            new = [name for name in done.variables if name not in self._defined]
            self._defined.update(new)
            lines = [*(definition_of(name, done.variables[name]) for name in new), *lines]
        else:
            why = f"exit code {done.code}: {done.message}" if done.code else "a script cannot hold this:"
            lines = [f"# {escape(line)}" for line in (*why.splitlines()[:1], *lines_of(done.statement))]
        self.written += 1
        self._put(lines)

    def _put(self, lines: list[str]) -> None:
        assert self._file is not None
        try:
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()
        except OSError as error:
            path = self.path
            self.end()
            raise UserError(
                f"cannot write {path}: {error.strerror or error}", "it is recorded no more"
            ) from error


def _same(statement: Statement) -> bool:
    """Tell whether a script can hold a statement: a backslash at its end would continue the line."""
    lines = lines_of(statement)
    try:
        from ptinspect.script.parse import parse

        again = list(parse("", "\n".join(lines).splitlines()))
    except UserError:
        return False
    return len(again) == 1 and lines_of(again[0]) == lines


def _used(statement: Statement) -> Iterator[str]:
    """Return the variables in a statement, those of its blocks included."""
    match statement:
        case Line(text):
            yield from used(text)
        case Var(name):
            yield name
        case Source(path):
            yield from used(path)
        case Repeat(count, counter, body):
            yield from used(count)
            yield from (name for inner in body for name in _used(inner) if name != counter)
        case OnStop(where, body):
            yield from used(where)
            yield from (name for inner in body for name in _used(inner))
        case OnFailure(body):
            yield from (name for inner in body for name in _used(inner))


def lines_of(statement: Statement, indent: str = "") -> list[str]:
    """Return the lines that `parse` makes this statement of, its place aside."""
    match statement:
        case Line(text):
            return [indent + text]
        case Var(name, value):
            return [f"{indent}var {name} = {value}"]
        case Source(path):
            return [f"{indent}source {path}"]
        case Repeat(count, counter, body):
            head = f"{indent}repeat {count}{f' as {counter}' if counter else ''}:"
        case OnStop(where, body):
            head = f"{indent}on stop {where}:"
        case OnFailure(body):
            head = f"{indent}on failure:"
    if not body:
        return [f"{head} off"]
    return [head, *(line for inner in body for line in lines_of(inner, indent + INDENT))]


def definition_of(name: str, value: str) -> str:
    """Return the line that gives a variable this very value; `$` in it stands for itself."""
    return f"var {name} = {shlex.quote(value)}"
