"""`bt`: the chain of callers, through exceptions and changes of stack as far as the kernel file tells."""

from __future__ import annotations

import argparse

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.guest.names import cpu_state, need_registers
from ptinspect.output.model import Report
from ptinspect.output.views import run as views


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        dest="limit",
        type=argtypes.whole(1, 10_000),
        default=64,
        metavar="N",
        help="at most N frames (64)",
    )
    add_cpu_option(parser)


@command(
    "bt",
    aliases=("backtrace", "where"),
    group="Session",
    summary="Show the chain of callers",
    example="bt -n 10",
    needs=Needs.STOPPED,
    configure=_configure,
    details="Frame records (x29) are read through the kernel's tables, so it works with the MMU off. "
    "stack shows the same frames with their sizes.",
)
def backtrace(ctx: Context, args: argparse.Namespace) -> Report:
    """Show the callers of the current function."""
    from ptinspect.stack.depth import start_of_cpu

    state = cpu_state(ctx.guest, args.cpu)
    need_registers(ctx.guest)
    return views.frames(start_of_cpu(ctx.view(), state).frames(args.limit), ctx.place)
