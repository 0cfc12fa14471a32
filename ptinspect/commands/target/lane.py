"""`lane`: the ways to guest memory, and which of them is used."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.output.model import Column, Note, Report, Styled, Table, escape

if TYPE_CHECKING:
    from ptinspect.link.lanes.lanes import LaneFacts

LANES = ("auto", "host", "pmemsave", "gdbstub")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", choices=LANES, metavar="NAME", help=", ".join(LANES))


@command(
    "lane",
    group="Guest",
    summary="Show how guest memory is read, or choose the way",
    example="lane auto",
    needs=Needs.STOPPED,
    configure=_configure,
    details="host: the RAM of the QEMU process on this machine; pmemsave: files that QEMU writes; "
    "gdbstub: always works. auto: the fastest that reads the same as the gdbstub at this stop.",
)
def lane(ctx: Context, args: argparse.Namespace) -> Report:
    """Show or choose the lane."""
    lanes = ctx.stopped.lanes
    if args.name is not None:
        lanes.choose(args.name)
    facts = lanes.facts()
    return _shown(lanes.mode, facts, lanes.take_notices())


def _shown(mode: str, facts: Sequence[LaneFacts], notices: Sequence[str]) -> Report:
    """Show every lane: in use, usable with what speed, or why not."""
    result = {
        "mode": mode,
        "lanes": [
            {
                "name": way.name,
                "label": way.label,
                "available": not way.why_not,
                "why_not": way.why_not,
                "chosen": way.chosen,
                "bytes_per_second": None if way.bytes_per_second is None else round(way.bytes_per_second),
            }
            for way in facts
        ],
        "notices": list(notices),
    }
    rows = [
        (
            Styled(way.name, "good") if way.chosen else way.name,
            "in use" if way.chosen else "",
            "" if way.bytes_per_second is None else f"{way.bytes_per_second / 1e6:.0f} MB/s",
            escape(f"not usable: {way.why_not}" if way.why_not else way.label),
        )
        for way in facts
    ]
    columns = (Column("lane"), Column(""), Column("speed", "right"), Column("memory by"))
    notes = [Note(escape(text), "changed") for text in notices]
    return Report(result, (Table(columns, rows), Note(f"chosen by: {mode}", "dim"), *notes))
