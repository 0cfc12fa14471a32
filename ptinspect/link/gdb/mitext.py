"""The text of GDB/MI records, taken apart without a grammar where that is enough."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(rb"(\d*)([\^*=+~@&])")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SIMPLE = {
    b"n": b"\n",
    b"t": b"\t",
    b"r": b"\r",
    b"b": b"\b",
    b"f": b"\f",
    b"v": b"\v",
    b"a": b"\a",
    b"e": b"\x1b",
}
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
    """Split a line without its newline. Never raises; what is no record has an empty kind."""
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
