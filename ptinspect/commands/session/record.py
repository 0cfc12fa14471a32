"""`record`: make a script of an interactive session."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, escape

DETAILS = """\
From now on, or with --all from the beginning, every line that succeeds is written to FILE as it was typed;
one that failed or was interrupted is written as a comment. Variables are written with their values. The
file runs again with -x. 'record off' ends it, as the end of ptinspect does; 'record' alone says how it
stands. help, history, quit and record itself are left out."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", type=Path, metavar="FILE|off", help="where to; off: end it; none: how it stands")
    add("--all", action="store_true", help="what was run so far too")
    add("--force", action="store_true", help="replace a file that exists")


@command(
    "record",
    group="Session",
    summary="Make a script of what is typed from now on",
    example="record session.pti",
    configure=_configure,
    details=DETAILS,
    recorded=False,
    not_in_gdb="use GDB's own: set logging",
)
def record(ctx: Context, args: argparse.Namespace) -> Report:
    """Begin, end, or say how it stands."""
    path = ctx.record.path
    if args.file is not None and str(args.file) != "off":
        ctx.record.begin(args.file, _head(ctx, args), everything=args.all, force=args.force)
        return _report(ctx, f"recording into {escape(str(args.file))}", args.file)
    if args.file is None:
        return _report(ctx, "nothing is recorded" if path is None else f"recording into {path}", path)
    if path is None:
        raise UserError("nothing is recorded", "record FILE begins")
    ctx.record.end()
    return _report(ctx, f"{path} is complete", path)


def _head(ctx: Context, args: argparse.Namespace) -> list[str]:
    """Return what whoever runs the script again has to know."""
    kernel = ctx.guest.kernel_path
    words = ["ptinspect", *(() if kernel is None else ("--kernel", str(kernel))), "-x", str(args.file)]
    head = [f"Recorded; to run it again: {shlex.join(words)}"]
    if ctx.session is not None and not args.all:
        head.append("A guest was attached already when this began: -c 'launch …' or --gdb ADDR before -x.")
    return head


def _report(ctx: Context, said: str, path: Path | None) -> Report:
    count = ctx.record.written
    result = {
        "recording": ctx.record.path is not None,
        "file": None if path is None else str(path),
        "statements": count,
    }
    text = said if path is None else f"{said}: {count} statement{'s' if count != 1 else ''}"
    return Report(result, (Note(text),))
