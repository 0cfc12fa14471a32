"""GDB/MI: its records, and the exchange of commands; the one place that uses pygdbmi.

Records that are large or damaged are taken apart without a grammar.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from ptinspect.dataclass import dataclass
from ptinspect.errors import MiError

SECONDS = 10.0
"""How long a small command may take."""
PARSE_LIMIT = 4 << 20
"""Longest record that is parsed as a whole, bytes."""
LINK_ERRORS = re.compile(
    r"Remote communication error|Remote connection closed|Target disconnected|not connected to a gdbstub"
    r"|nvalid hex digit|Ignoring packet error|Remote replied unexpectedly|Packet too long|Malformed .*packet"
    r"|Reply contains|to 'Qqemu\.PhyMemMode",
    re.IGNORECASE,
)
"""After these errors GDB may take one reply of the stub for another: none of its answers can be trusted."""
_TOKEN = re.compile(rb"(\d*)([\^*=+~@&])")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SIMPLE = {
    b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"v": b"\v", b"a": b"\a", b"e": b"\x1b"
}  # fmt: skip
_ITEM = rb'[\w.-]+="'
_INNERMOST = re.compile(rb'\{(?:%b(?:,%b)*)?\}|\[(?:(?:[\w.-]+=)?"(?:,(?:[\w.-]+=)?")*)?\]' % (_ITEM, _ITEM))
_RESULTS = re.compile(rb'(?:%b(?:,(?:[\w.-]+=)?")*)?' % _ITEM)
MAX_DEPTH = 32
"""Lists and tuples within each other; GDB's own records have 6 at most."""


@dataclass(frozen=True)
class Line:
    """One line of GDB's output."""

    token: int | None
    """Number that the command carried, on results."""
    kind: str
    """The record's first character: ^ result, * and = events, ~ @ & text; empty on other output."""
    name: str
    """`done`, `error`, `stopped`, …; empty on text."""
    body: bytes
    """What follows the name and its comma; for text the string itself, with quotes."""


def split_line(line: bytes) -> Line:
    """Split a line without its newline. Never raises; other output has an empty kind."""
    match = _TOKEN.match(line)
    if match is None:
        return Line(None, "", "", line)
    kind = match[2].decode()
    token = int(match[1]) if match[1] else None
    rest = line[match.end() :]
    if kind in "~@&":
        return Line(token, kind, "", rest)
    name, _, body = rest.partition(b",")
    return Line(token, kind, name.decode("ascii", "replace"), body)


def unescape(text: bytes) -> bytes:
    """Return the bytes that a C string of MI stands for, given what is between its quotes."""
    if b"\\" not in text:
        return text
    return _ESCAPE.sub(_plain, text)


def _plain(match: re.Match[bytes]) -> bytes:
    body = match[1]
    if body[:1] in b"01234567":
        return bytes([int(body, 8) & 0xFF])
    return _SIMPLE.get(body, body)


def c_string(text: bytes) -> str:
    """Return the text of a quoted C string; bytes that are no UTF-8 are replaced."""
    body = text[1:-1] if text[:1] == b'"' and text[-1:] == b'"' and len(text) > 1 else text
    line, end, rest = body.partition(b"\\n")
    if end and not rest and b"\\" not in line:  # most are lines without other escapes
        return line.decode("utf-8", "replace") + "\n"
    return unescape(body).decode("utf-8", "replace")


def quote(text: str) -> str:
    """Return `text` as a quoted argument of an MI command."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def string_field(body: bytes, name: bytes) -> bytes | None:
    """Return the raw value of the field `name="…"` with which the body begins; None if it does not.

    For long values without escapes (hex, base64): nothing is copied but the value.
    """
    start = len(name) + 2
    if body[:start] != name + b'="':
        return None
    end = body.find(b'"', start)
    return None if end < 0 else body[start:end]


def well_formed(body: bytes) -> bool:
    """Tell whether this is a list of results, as GDB/MI's grammar has it (GDB manual, GDB/MI Output Syntax).

    pygdbmi's parser does not return from some that are not, so it is given nothing else.
    """
    bare = _STRING.sub(b'"', body)
    for _ in range(MAX_DEPTH):
        shorter = _INNERMOST.sub(b'"', bare)
        if shorter == bare:
            break
        bare = shorter
    return _RESULTS.fullmatch(bare) is not None


def parse_payload(line: Line) -> dict[str, Any]:
    """Parse the fields of a result or event record. Raises MiError if they make no sense."""
    if not line.body:
        return {}
    if len(line.body) > PARSE_LIMIT or not well_formed(line.body):
        raise MiError(
            f"GDB sent a {line.name!r} record that cannot be read", line.body[:200].decode("latin-1")
        )
    from pygdbmi import gdbmiparser

    text = f"^{line.name},{line.body.decode('utf-8', 'replace')}"
    try:
        payload = gdbmiparser.parse_response(text)["payload"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise MiError(f"GDB sent a {line.name!r} record that cannot be read: {error}", text[:200]) from error
    return payload if isinstance(payload, dict) else {}


@dataclass
class Reply:
    """Hold what GDB answered to one command."""

    line: Line
    """The result record; its name is `done`, `running`, `connected`, `error` or `exit`."""
    text: str
    """Console, log and target output that came before it."""

    @property
    def payload(self) -> dict[str, Any]:
        """The parsed fields. Raises MiError."""
        return parse_payload(self.line)

    def field(self, name: str) -> bytes:
        """Return the first field, raw, without parsing the record. Raises MiError if it has another name."""
        value = string_field(self.line.body, name.encode())
        if value is None:
            raise MiError(f"GDB's answer has no field {name!r}", self.line.body[:200].decode("latin-1"))
        return value


def error_message(reply: Reply) -> str:
    """Return GDB's error message."""
    value = string_field(reply.line.body, b"msg")
    try:
        return str(reply.payload.get("msg", ""))
    except MiError:
        return "GDB reports an error" if value is None else c_string(value)


class GdbLink(Protocol):
    """Exchange MI commands with one GDB, whoever started it."""

    @property
    def busy(self) -> bool:
        """Tell whether a command waits for its reply."""

    def request(self, command: str, timeout: float, *, check: bool = True) -> Reply:
        """Send one MI command (or CLI command) and return its reply.

        Raises MiError if GDB answers with an error (unless not `check`), TargetTimeout if there is
        no answer in `timeout` seconds, TargetLost if GDB has ended.
        """

    def post(self, command: str) -> bool:
        """Send a command whose reply nobody waits for; False if another one is just being sent.

        Safe in a signal handler. Raises TargetLost.
        """

    def cancel(self) -> None:
        """Make GDB give up the command that it works on; safe in a signal handler."""

    def expect_end(self) -> None:
        """Take the end of the debugged program for granted: it is about to be left."""

    def close(self) -> None:
        """Let GDB go. Safe to call twice."""


def console_command(line: str) -> str:
    """Return the MI command that runs a command of GDB's CLI."""
    return f"-interpreter-exec console {quote(line)}"


def console(gdb: GdbLink, line: str, timeout: float) -> str:
    """Run a command of GDB's CLI and return what it prints; raises as `request` does."""
    return gdb.request(console_command(line), timeout).text
