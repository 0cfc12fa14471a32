"""`history`: the lines typed so far."""

from __future__ import annotations

import argparse

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.output.model import Column, Report, Styled, Table, escape


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "count", nargs="?", type=argtypes.whole(1, 1_000_000), metavar="N", help="only the last N lines"
    )


@command(
    "history",
    group="Session",
    summary="List the lines typed so far",
    example="history 10",
    configure=_configure,
    details="At the prompt !N runs line N again, !! the last one, !-2 the one before it, !walk the last "
    "that began so; what stands behind it is added (!! --json). The line is shown before it runs. "
    "Up-arrow goes through the lines that begin as what is typed already, Ctrl-R searches.",
    recorded=False,
)
def history(ctx: Context, args: argparse.Namespace) -> Report:
    """List the lines that were run, oldest first, with their numbers."""
    lines = list(enumerate(ctx.past, 1))
    if args.count is not None:
        lines = lines[-args.count :]
    rows = [(Styled(str(number), "dim"), escape(line)) for number, line in lines]
    table = Table((Column("", "right"), Column("")), rows, empty="no lines yet")
    return Report({"lines": [{"number": number, "line": line} for number, line in lines]}, (table,))
