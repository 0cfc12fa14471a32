"""Breakpoints, as GDB keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptinspect.errors import MiError
from ptinspect.link.gdb.mi import GdbLink, quote
from ptinspect.link.state import Breakpoint

SECONDS = 10.0


def insert_breakpoint(
    gdb: GdbLink, address: int, *, hardware: bool, temporary: bool, cpu: int | None, condition: str | None
) -> Breakpoint:
    """Set a breakpoint on a value of the program counter. Raises MiError with GDB's reason."""
    words = ["-break-insert"]
    words += ["-t"] if temporary else []
    words += ["-h"] if hardware else []
    words += ["-p", str(cpu + 1)] if cpu is not None else []
    words += ["-c", quote(condition)] if condition else []
    payload = gdb.request(" ".join([*words, f"*{address:#x}"]), SECONDS).payload
    fields = payload.get("bkpt")
    found = _breakpoint(fields) if isinstance(fields, Mapping) else None
    if found is None:
        raise MiError("GDB does not tell which breakpoint it has set")
    return found


def insert_watchpoint(gdb: GdbLink, address: int, length: int) -> int:
    """Watch accesses to memory by hardware and return the number. Raises MiError with GDB's reason."""
    what = f"*(char(*)[{length}]){address:#x}"
    found = gdb.request(f"-break-watch -a {quote(what)}", SECONDS).payload.get("hw-awpt")
    if not isinstance(found, dict) or not str(found.get("number", "")).isdecimal():
        raise MiError("GDB would not watch the memory by hardware")
    return int(found["number"])


def list_breakpoints(gdb: GdbLink) -> tuple[Breakpoint, ...]:
    """Return all breakpoints with an address, by number."""
    found = map(_breakpoint, rows(gdb))
    return tuple(sorted((b for b in found if b is not None), key=lambda b: b.id))


def rows(gdb: GdbLink) -> list[Mapping[str, Any]]:
    """Return MI's fields of all breakpoints and watchpoints."""
    table = gdb.request("-break-list", SECONDS).payload.get("BreakpointTable")
    body = table.get("body", []) if isinstance(table, dict) else []
    return [row for row in body if isinstance(row, Mapping)]


def _breakpoint(fields: Mapping[str, Any]) -> Breakpoint | None:
    try:
        number, address = int(fields["number"]), int(fields["addr"], 16)
    except (KeyError, ValueError):
        return None
    thread = fields.get("thread", "")
    if isinstance(thread, list):  # GDB 13 gives the field twice
        thread = thread[0] if thread else ""
    return Breakpoint(
        number,
        address,
        hardware=str(fields.get("type", "")).startswith("hw"),
        temporary=fields.get("disp") == "del",
        cpu=int(thread) - 1 if str(thread).isdecimal() else None,
        condition=str(fields.get("cond", "")),
        hits=int(fields.get("times", 0)),
    )
