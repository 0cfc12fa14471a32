"""Stops, breakpoints, frames and memory, as reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.link.session import Breakpoint, StopInfo
    from ptinspect.stack.unwind import Unwound

Place = Callable[[int], str]
"""Gives an address with its symbol."""


class ReturnPlace(Protocol):
    """Give an address with its symbol, and a return address with that of the call before it."""

    def __call__(self, address: int, *, returns: bool = ...) -> str:
        """Return `0x… (function+0x10)`."""
        ...


def stopped(stop: StopInfo, place: Place) -> Report:
    """Say where and why the guest stopped."""
    result: dict[str, Any] = {
        "state": "stopped",
        "reason": str(stop.reason),
        "cpu": stop.cpu,
        "pc": hex_address(stop.pc),
        "place": place(stop.pc),
        "breakpoint": stop.breakpoint,
        "signal": stop.signal,
    }
    which = f" {stop.breakpoint}" if stop.breakpoint is not None else ""
    why = f"{stop.reason}{which}{f', {stop.signal}' if stop.signal else ''}"
    style: Style = "good" if stop.breakpoint is not None else "plain"
    return Report(result, (Note(f"stopped: cpu {stop.cpu} at {place(stop.pc)} ({escape(why)})", style),))


def breakpoint_set(found: Breakpoint, place: Place) -> Report:
    """Say which breakpoint was set."""
    return Report(_breakpoint(found, place), (Note(f"breakpoint {found.id} at {place(found.address)}"),))


def breakpoints(found: Sequence[Breakpoint], place: Place) -> Report:
    """List breakpoints."""
    rows = [(str(b.id), place(b.address), _kind(b)) for b in found]
    table = Table((Column("no.", "right"), Column("address"), Column("kind")), rows, empty="no breakpoints")
    return Report({"breakpoints": [_breakpoint(b, place) for b in found]}, (table,))


def _kind(found: Breakpoint) -> str:
    return "temporary" if getattr(found, "temporary", False) else ""


def _breakpoint(found: Breakpoint, place: Place) -> dict[str, Any]:
    return {"id": found.id, "address": hex_address(found.address), "place": place(found.address)}


WHAT = {"exception": "exception", "user": "entry from user mode", "unwritten": "exceptions, not stored"}
"""What a frame is that is no function's."""


def frames(found: Unwound, place: ReturnPlace) -> Report:
    """Show a backtrace, from the innermost frame on.

    `record` is the frame record, or that of an exception, that an address was read from.
    """
    rows: list[tuple[int, str, str, int | None]] = []
    record: int | None = None
    for frame in found.frames:
        if frame.kind != "end":
            rows.append((frame.pc, place(frame.pc, returns=frame.returns), frame.kind, record))
            record = frame.record
    if found.last is not None:
        rows.append((found.last.pc, place(found.last.pc, returns=found.last.returns), "function", record))
    table = Table(
        (Column("#", "right"), Column("pc"), Column("")),
        [(str(number), where, WHAT.get(kind, "")) for number, (_, where, kind, _) in enumerate(rows)],
    )
    result = {
        "frames": [
            {
                "pc": hex_address(pc),
                "place": where,
                "record": None if fp is None else hex_address(fp),
                "kind": kind,
            }
            for pc, where, kind, fp in rows
        ],
        "ended": found.ended,
    }
    return Report(result, (table, Note(f"the chain ends: {escape(found.ended)}", "dim")))


def memory(
    text: str, rows: Sequence[tuple[int, str, Sequence[str]]], data: bytes, physical: bool, missing: str
) -> Report:
    """Show memory: (address, note, cells) for each line; `missing` says what could not be read."""
    prefix = "pa:" if physical else ""
    columns = (Column("address"), Column("bytes"))
    lines = [(Styled(f"{prefix}{a:#x}{note}", "address"), " ".join(cells)) for a, note, cells in rows]
    result = {"address": text, "bytes": data.hex(), "physical": physical, "error": missing}
    body: list[Table | Note] = [Table(columns, lines)] if lines else []
    if missing:
        body.append(Note(missing, "bad"))
    return Report(result, body)
