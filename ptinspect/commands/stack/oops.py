"""`oops`: explain a console log, with no guest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Note, Report, escape

VERDICTS = (
    "reverted-entry, lost-entry, stack-mapping-lost, deep-call-chain, guard-page-hit, sp-corrupted, "
    "stack-corruption, not-a-stack-problem, unknown"
)
"""The codes of ptinspect.linux.death, named here so that help needs no import of it."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the log; - for standard input")
    parser.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="write it to a file too: .md, .txt, .json or .csv"
    )


@command(
    "oops",
    group="Stack",
    summary="Explain the panics and oopses in a console log",
    example="oops console.log",
    configure=_configure,
    details="Reads logs of arm64 kernels from 4.x on, of any size: from a console, dmesg, journalctl, a mail "
    "or a phone, with their prefixes, quotes and wrapped lines, also as .gz, .xz, .bz2 or .zst. Each "
    "death gets one verdict, with what in the log supports it and what the log "
    f"cannot tell: {VERDICTS}.",
)
def oops(ctx: Context, args: argparse.Namespace) -> Report:
    """Explain a console log."""
    from ptinspect.linux.oops.analysis import analyse
    from ptinspect.output.views.oops import explained

    if args.output is not None:
        form_of(args.output)
    with _opened(ctx, args.file) as log:
        try:
            found = analyse(log)
        except OSError as error:
            raise _unreadable(args.file, error) from error
    report = explained(found, "standard input" if args.file == "-" else args.file)
    if args.output is None:
        return report
    write(report, args.output)
    result: Mapping[str, object] = {**report.result, "written": str(args.output)}
    return replace(
        report, value=result, body=[*report.body, Note(f"written to {escape(str(args.output))}", "dim")]
    )


def _opened(ctx: Context, name: str) -> AbstractContextManager[BinaryIO]:
    """Open a log. Raises UserError."""
    if name == "-":
        if ctx.interactive:
            raise UserError("oops -: standard input is the prompt's", "name a file")
        return nullcontext(sys.stdin.buffer)
    try:
        return open_input(Path(name).expanduser())
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError | ValueError) -> UserError:
    return UserError(f"cannot read {escape(name)}: {getattr(error, 'strerror', None) or error}")
