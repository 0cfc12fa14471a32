"""Records of GDB/MI: the one place that uses pygdbmi, for records that are small and whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pygdbmi import gdbmiparser

from ptinspect.errors import MiError
from ptinspect.link.gdb.mitext import Line, c_string, string_field, well_formed

PARSE_LIMIT = 4 << 20
"""Longest record that is parsed as a whole, bytes."""
LINK_ERRORS = re.compile(
    r"Remote communication error|Remote connection closed|Target disconnected|not connected to a gdbstub"
    r"|nvalid hex digit|Ignoring packet error|Remote replied unexpectedly|Packet too long|Malformed .*packet"
    r"|Reply contains|to 'Qqemu\.PhyMemMode",
    re.IGNORECASE,
)
"""After these errors GDB may take one reply of the stub for another: nothing it says can be trusted."""


def parse_payload(line: Line) -> dict[str, Any]:
    """Parse the fields of a result or event record. Raises MiError if they make no sense."""
    if not line.body:
        return {}
    if len(line.body) > PARSE_LIMIT or not well_formed(line.body):
        raise MiError(
            f"GDB sent a {line.name!r} record that cannot be read", line.body[:200].decode("latin-1")
        )
    text = f"^{line.name},{line.body.decode('utf-8', 'replace')}"
    try:
        payload = gdbmiparser.parse_response(text)["payload"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise MiError(f"GDB sent a {line.name!r} record that cannot be read: {error}", text[:200]) from error
    return payload if isinstance(payload, dict) else {}


@dataclass
class Reply:
    """Hold what GDB answered to one command."""

    name: str
    """`done`, `running`, `connected`, `error` or `exit`."""
    line: Line
    """The result record."""
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
