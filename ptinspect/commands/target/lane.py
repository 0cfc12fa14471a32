"""`lane`: the ways to guest memory, and which of them is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.guest.guest import Guest
from ptinspect.output.encode import filled
from ptinspect.output.model import Note, Report, Styled, Table, escape, headings

if TYPE_CHECKING:
    from ptinspect.link.lanes.lanes import LaneFacts

LANES = ("auto", "host", "pmemsave", "gdbstub")


@dataclass(frozen=True)
class LaneResult:
    """A way to guest memory."""

    name: str
    label: str
    available: bool
    why_not: str
    chosen: bool
    bytes_per_second: int | None


@dataclass(frozen=True)
class LanesResult:
    """The ways to guest memory."""

    mode: str
    lanes: list[LaneResult]
    notices: list[str]


@command(
    "lane",
    group="Guest",
    summary="Show how guest memory is read, or choose the way",
    example="lane auto",
    arguments=(argument("name", nargs="?", choices=LANES, metavar="NAME", help=", ".join(LANES)),),
    result=LanesResult,
    needs=Needs.STOPPED,
    details="host: the RAM of the QEMU process on this machine; pmemsave: files that QEMU writes; "
    "gdbstub: always works. auto: the fastest that reads the same as the gdbstub at this stop.",
)
def lane(guest: Guest, *, name: str | None = None) -> Report:
    """Show or choose the lane."""
    lanes = guest.stopped.lanes
    if name is not None:
        lanes.choose(name)
    facts = lanes.facts()
    return _shown(lanes.mode, facts, lanes.take_notices())


def _shown(mode: str, facts: Sequence[LaneFacts], notices: Sequence[str]) -> Report:
    """Show every lane: in use, usable with what speed, or why not."""
    lanes = [
        filled(
            LaneResult,
            way,
            available=not way.why_not,
            bytes_per_second=None if way.bytes_per_second is None else round(way.bytes_per_second),
        )
        for way in facts
    ]
    rows = [
        (
            Styled(way.name, "good") if way.chosen else way.name,
            "in use" if way.chosen else "",
            "" if way.bytes_per_second is None else f"{way.bytes_per_second / 1e6:.0f} MB/s",
            escape(way.label if way.available else f"not usable: {way.why_not}"),
        )
        for way in lanes
    ]
    body: list[Table | Note] = [
        Table(headings("lane", "", ">speed", "memory by"), rows),
        Note(f"chosen by: {mode}", "dim"),
    ]
    body += [Note(escape(text), "changed") for text in notices]
    return Report(LanesResult(mode, lanes, list(notices)), body)
