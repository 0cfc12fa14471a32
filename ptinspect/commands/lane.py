"""`lane`: the ways to guest memory, and which of them is used."""

from __future__ import annotations

import argparse

from ptinspect.commands.context import Context
from ptinspect.commands.registry import Needs, Registry
from ptinspect.output.model import Report

LANES = ("auto", "host", "pmemsave", "gdbstub")


def register(registry: Registry[Context]) -> None:
    """Add `lane`."""
    registry.command(
        "lane",
        summary="Show how guest memory is read, or choose the way",
        example="lane auto",
        needs=Needs.STOPPED,
        configure=_configure,
        details="host: the RAM of the QEMU process on this machine; pmemsave: files that QEMU writes; "
        "gdbstub: always works. auto: the fastest that reads the same as the gdbstub at this stop.",
    )(lane)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", choices=LANES, metavar="NAME", help=", ".join(LANES))


def lane(ctx: Context, args: argparse.Namespace) -> Report:
    """Show or choose the lane."""
    from ptinspect.output.views.lanes import lanes

    memory = ctx.stopped.memory
    if args.name is not None:
        memory.choose(args.name)
    facts = memory.facts()
    return lanes(memory.mode, facts, memory.take_notices())
