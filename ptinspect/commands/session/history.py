"""`history`: the lines typed so far."""

from __future__ import annotations

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.output.model import Column, Report, Styled, Table, escape


@command(
    "history",
    group="Session",
    summary="List the lines typed so far",
    example="history 10",
    arguments=(
        argument(
            "count", nargs="?", type=argtypes.whole(1, 1_000_000), metavar="N", help="only the last N lines"
        ),
    ),
    details="At the prompt !N runs line N again, !! the last one, !-2 the one before it, !walk the last "
    "that began so; what follows it is added (!! --json). The line is shown before it runs. "
    "Up-arrow goes through the lines that begin as what is typed already, Ctrl-R searches.",
    recorded=False,
)
def history(ctx: Context, *, count: int | None) -> Report:
    """List the lines that were run, oldest first, with their numbers."""
    lines = list(enumerate(ctx.past, 1))
    if count is not None:
        lines = lines[-count:]
    rows = [(Styled(str(number), "dim"), escape(line)) for number, line in lines]
    table = Table((Column("", "right"), Column("")), rows, empty="no lines yet")
    return Report({"lines": [{"number": number, "line": line} for number, line in lines]}, (table,))
