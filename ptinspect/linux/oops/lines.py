"""The lines of a console log: bounded, without prefixes, time stamps and control codes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

MAX_BYTES = 64 << 20
"""The largest log that is read, in bytes."""
MAX_LINE = 4096
"""Characters of a line that are looked at; the rest of it is left out."""

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")
_LINES = re.compile(r"[^\r\n\x00]+")
_STAMP = r"\[ {0,12}\d{1,9}\.\d{3,9}[^\]\[]{0,40}\]"
_STAMPED = re.compile(_STAMP)
_SECONDS = re.compile(r"\[ *(\d+\.\d+)")
_BEFORE = re.compile(r"^.{0,200}?(?=" + _STAMP + ")")
_CALLER = re.compile(r"^ ?\[ {0,12}([TC]\d{1,9})\]")
_TAGS = re.compile(r"^(?:\[[^\]\[]{0,60}\])+")
_QUOTE = re.compile(r"^(?:[ \t]*>)+[ \t]?")
_LEVEL = re.compile(r"^[ \t]*<\d{1,3}>")
_KMSG = re.compile(r"^\d{1,3},\d{1,12},\d{1,20},[^;]{0,40};")
_SYSLOG = re.compile(
    r"^(?:<\d{1,3}>)?(?:\d+ )?(?:[A-Z][a-z]{2} +\d{1,2} +\d\d:\d\d:\d\d(?:\.\d+)?|"
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*)[ \t]+(?:\S{1,255}[ \t]+)?(?:kernel|linux)(?:\[\d+\])?:"
)
_CLOCK = re.compile(r"^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[^\]\s]{0,20}\]?")


@dataclass(frozen=True)
class Line:
    """A line of the kernel's, as it was printed."""

    number: int
    """Line of the file, from 1."""
    text: str
    """What the kernel said, prefixes removed; at most MAX_LINE characters."""
    caller: str = ""
    """`T<pid>` or `C<cpu>` where the kernel prints it (CONFIG_PRINTK_CALLER), else empty."""
    time: str = ""
    """The time stamp, seconds since boot as printed, or empty."""


def decode(data: bytes) -> str:
    """Return the text of a log; bytes that are no UTF-8 become replacement characters."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            return data[2:].decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def lines(text: str, spans: Iterable[tuple[int, int]] | None = None) -> Iterator[Line]:
    """Go through the messages in `text`, one at a time, in order.

    CR, LF and any mixture of them end a line; a line that holds several time stamps is several
    messages that ran together. Empty ones are left out. `spans` limits the work to parts of the
    text: half-open ranges of characters, in order, that do not overlap.
    """
    ending = "\n" if "\n" in text else "\r"
    position, number = 0, 1
    for start, end in spans if spans is not None else ((0, len(text)),):
        for match in _LINES.finditer(text, start, end):
            number += text.count(ending, position, match.start())
            position = match.start()
            for piece in _split(match[0]):
                line = _clean(piece, number)
                if line.text:
                    yield line


def _split(raw: str) -> list[str]:
    """Cut a line where a further time stamp begins; cut what is longer than MAX_LINE."""
    if raw.count("[") < 2:
        return [raw[:MAX_LINE]]
    starts = [match.start() for match in _STAMPED.finditer(raw)]
    if len(starts) < 2:
        return [raw[:MAX_LINE]]
    edges = [0, *starts[1:], len(raw)]
    return [raw[a : min(b, a + MAX_LINE)] for a, b in pairwise(edges)]


def _clean(raw: str, number: int) -> Line:
    text = _ANSI.sub("", raw) if "\x1b" in raw else raw
    text = _QUOTE.sub("", text)
    time = ""
    before = _BEFORE.match(text) if "[" in text else None
    if before is not None:
        rest = text[before.end() :]
        stamp = _STAMPED.match(rest)
        assert stamp is not None
        if _is_prefix(before[0]):
            seconds = _SECONDS.match(stamp[0])
            time = "" if seconds is None else seconds[1]
            text = rest[stamp.end() :]
    if not time:
        text = _strip_prefix(text)
    caller = _CALLER.match(text)
    if caller is not None:
        text = text[caller.end() :]
    elif time:
        text = _TAGS.sub("", text)
    text = text[1:] if text.startswith(" ") else text
    return Line(number, text.rstrip(), caller[1] if caller is not None else "", time)


def _is_prefix(text: str) -> bool:
    """Tell whether what stands before a time stamp is a logger's prefix and nothing of the kernel's."""
    return not text.strip() or not _strip_prefix(text).strip() or bool(re.search(r"[>:;|\]][ \t]*$", text))


def _strip_prefix(text: str) -> str:
    for pattern in (_KMSG, _SYSLOG, _CLOCK, _LEVEL):
        match = pattern.match(text)
        if match is not None:
            text = text[match.end() :]
    return text
