"""`oops`: explain a console log, with no guest."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.oops_result import OopsResult
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Note, Report, escape

VERDICTS = (
    "reverted-entry, lost-entry, stack-mapping-lost, deep-call-chain, guard-page-hit, sp-corrupted, "
    "stack-corruption, not-a-stack-problem, unknown"
)
"""The codes of ptinspect.linux.death, named here so that help needs no import of it."""


@command(
    "oops",
    group="Stack",
    summary="Explain the panics and oopses in a console log",
    example="oops console.log",
    arguments=(
        argument("file", metavar="FILE", help="the log; - for standard input"),
        argument(
            "--output",
            "-o",
            type=Path,
            metavar="FILE",
            help="write it to a file too: .md, .txt, .json or .csv",
        ),
    ),
    result=OopsResult,
    details="Reads logs of arm64 kernels from 4.x on, of any size: from a console, dmesg, journalctl, a mail "
    "or a phone, with their prefixes, quotes and wrapped lines, also as .gz, .xz, .bz2 or .zst. Each "
    "death gets one verdict, with what in the log supports it and what the log "
    f"cannot tell: {VERDICTS}.",
)
def oops(ctx: Context, *, file: str, output: Path | None = None) -> Report:
    """Explain a console log."""
    from ptinspect.commands.stack.oops_view import explained
    from ptinspect.linux.oops.analysis import analyse

    if output is not None:
        form_of(output)
    with _opened(ctx, file) as log:
        try:
            found = analyse(log)
        except OSError as error:
            raise _unreadable(file, error) from error
    report = explained(found, "standard input" if file == "-" else file)
    if output is None:
        return report
    write(report, output)
    written = Note(f"written to {escape(str(output))}", "dim")
    return replace(report, value={**report.result, "written": str(output)}, body=[*report.body, written])


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
