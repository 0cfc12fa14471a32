"""From the text of a script to its statements."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.script.statements import Line, OnFailure, OnStop, Repeat, ScriptError, Source, Statement, Var
from ptinspect.script.variables import LONGEST, NAME

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
MAX_LINES = 20_000
MAX_DEPTH = 8
_REPEAT = r"repeat\s+(?P<count>\S+?)(?:\s+as\s+(?P<name>\S+?))?\s*:(?:\s+(?P<body>.*))?"
_ON_STOP = r"on\s+stop\s+(?P<where>.+?):(?:\s+(?P<body>.*))?"
_ON_FAILURE = r"on\s+failure\s*:(?:\s+(?P<body>.*))?"
_VAR = r"var\s+(?P<name>\S+?)\s*=\s*(?P<value>.*)"
_SOURCE = r"source\s+(?P<path>.+)"
_BLOCKS = r"(repeat|on\s+stop|on\s+failure)\b"
_OTHERS = r"(var|source)(\s|$)"


def read_script(path: Path, name: str = "") -> tuple[Statement, ...]:
    """Return the statements of a script; `name` is what its places are called, if not by its path.

    Raises UserError if the file cannot be read as text, is too large, or makes no sense; what is wrong
    in it has `file:line`.
    """
    try:
        with open_input(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"the script {path} is larger than {MAX_BYTES >> 20} MiB", "is it a script?")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the script {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (UTF-8)") from error
    except ValueError as error:  # a NUL character in the name
        raise UserError(f"cannot read the script {path}: {error}") from error
    return tuple(parse(name or str(path), io.StringIO(text, newline=None)))


def parse(name: str, lines: Iterable[str]) -> Iterator[Statement]:
    """Return the statements in `lines`, each as soon as its last line is there.

    Raises UserError, with `name:number`, for what makes no sense.
    """
    cursor = _Cursor(_logical(name, lines))
    first = cursor.peek()
    while (line := cursor.take()) is not None:
        if first is not None and line.indent < first.indent:
            raise line.wrong("indented less than the first line", "begin what is in no block in one column")
        if first is not None and line.indent > first.indent:
            raise line.wrong("indented, but it belongs to no block", "indent only what stands below a colon")
        yield _statement(line, cursor, 0)


def parse_line(text: str) -> Statement:
    """Return the statement in a line that was typed. Raises UserError."""
    line = _Logical(0, text.strip(), "")
    return _statement(line, _Cursor(iter(())), 0)


@dataclass(frozen=True)
class _Logical:
    """A line, its continuations joined."""

    indent: int
    text: str
    place: str

    def wrong(self, message: str, hint: str = "") -> ScriptError:
        return ScriptError(self.place, message, hint)


class _Cursor:
    """Lines with one to look at ahead; a line is taken from the source only when it is wanted."""

    def __init__(self, lines: Iterator[_Logical]) -> None:
        self._lines = lines
        self._ahead: _Logical | None = None

    def peek(self) -> _Logical | None:
        if self._ahead is None:
            self._ahead = next(self._lines, None)
        return self._ahead

    def take(self) -> _Logical | None:
        line, self._ahead = self.peek(), None
        return line


def _logical(name: str, lines: Iterable[str]) -> Iterator[_Logical]:
    """Join continued lines; leave out empty ones and comments."""
    held: list[str] = []
    first = indent = 0
    number = 0
    for number, raw in enumerate(lines, 1):
        if number > MAX_LINES:
            raise ScriptError(f"{name}:{number}", f"more than {MAX_LINES} lines")
        line = raw.rstrip("\r\n")
        if len(line) + sum(map(len, held)) > LONGEST:
            raise ScriptError(f"{name}:{number}", f"a line of more than {LONGEST} characters")
        if not held:
            stripped = line.strip()
            if not stripped or stripped.startswith("#"):
                continue
            wide = line.expandtabs(8)
            first, indent = number, len(wide) - len(wide.lstrip())
        body = line.strip()
        if (len(body) - len(body.rstrip("\\"))) % 2:
            held.append(body[:-1].rstrip())
            continue
        text = " ".join([*held, body]).strip()
        if text and not text.startswith("#"):
            yield _Logical(indent, text, f"{name}:{first}")
        held = []
    if held:
        raise ScriptError(f"{name}:{number}", "the last line ends with a backslash: nothing follows it")


def _statement(line: _Logical, cursor: _Cursor, depth: int) -> Statement:
    text = line.text
    if found := re.fullmatch(_REPEAT, text):
        counter = found["name"] or ""
        if counter and not re.fullmatch(NAME, counter):
            raise line.wrong(f"{counter!r} is not a name for a variable")
        body = _body(line, found["body"], cursor, depth)
        return Repeat(found["count"], counter, body, line.place)
    if found := re.fullmatch(_ON_STOP, text):
        body = () if found["body"] == "off" else _body(line, found["body"], cursor, depth)
        return OnStop(found["where"].strip(), body, line.place)
    if found := re.fullmatch(_ON_FAILURE, text):
        body = () if found["body"] == "off" else _body(line, found["body"], cursor, depth)
        return OnFailure(body, line.place)
    if found := re.fullmatch(_VAR, text):
        if not re.fullmatch(NAME, found["name"]):
            raise line.wrong(f"{found['name']!r} is not a name for a variable")
        return Var(found["name"], found["value"], line.place)
    if found := re.fullmatch(_SOURCE, text):
        return Source(found["path"], line.place)
    if re.match(_BLOCKS, text):
        raise line.wrong(
            f"{text!r} lacks its colon, or what belongs before it",
            "repeat 3: COMMAND; …   on stop NAME: COMMAND; …   or the commands below, indented",
        )
    if re.match(_OTHERS, text):
        raise line.wrong(f"{text!r} is not complete", "var NAME = VALUE   source FILE")
    return Line(text, line.place)


def _body(head: _Logical, inline: str | None, cursor: _Cursor, depth: int) -> tuple[Statement, ...]:
    """Return the commands of a block: after its colon, or the indented lines below."""
    if depth >= MAX_DEPTH:
        raise head.wrong(f"more than {MAX_DEPTH} blocks within each other")
    if parts := [part for part in split(inline or "") if part]:
        return tuple(_statement(_Logical(0, part, head.place), cursor, depth + 1) for part in parts)
    below = cursor.peek()
    if below is None or below.indent <= head.indent:
        raise head.wrong("nothing belongs to this", "write commands after the colon, or indent those below")
    body: list[Statement] = []
    while (line := cursor.peek()) is not None and line.indent > head.indent:
        if line.indent != below.indent:
            raise line.wrong("indented otherwise than the line above", "indent all lines of a block alike")
        cursor.take()
        body.append(_statement(line, cursor, depth + 1))
    return tuple(body)


def outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    """Yield place and character of all that stands outside quotes and is not escaped, as a shell has it."""
    quote, at = "", 0
    while at < len(text):
        char = text[at]
        if char == "\\" and quote != "'":
            at += 1
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif not quote:
            yield at, char
        at += 1


def split(text: str) -> list[str]:
    """Split commands at the semicolons that stand outside quotes; a comment after them is left out."""
    parts, begin = [], 0
    for at, char in outside_quotes(text):
        if char == "#" and (at == 0 or text[at - 1] in " \t;"):
            text = text[:at]
            break
        if char == ";":
            parts.append(text[begin:at].strip())
            begin = at + 1
    parts.append(text[begin:].strip())
    return parts
