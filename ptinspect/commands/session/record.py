"""`history`, `record`: the lines that were run, listed and made a script of."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import number_argument, switch
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, Styled, Table, escape, headings
from ptinspect.text import counted


@dataclass(frozen=True)
class HistoryLine:
    """A line that was typed."""

    number: int
    line: str


@dataclass(frozen=True)
class HistoryResult:
    """The lines typed so far, oldest first."""

    lines: Sequence[HistoryLine]


@command(
    "history",
    group="Session",
    summary="List the lines typed so far",
    example="history 10",
    arguments=(number_argument("count", 1, 1_000_000, "only the last N lines", nargs="?"),),
    result=HistoryResult,
    details="At the prompt !N runs line N again, !! the last one, !-2 the one before it, !walk the last "
    "that began so; what follows it is added (!! --json). The line is shown before it runs. "
    "Up-arrow goes through the lines that begin as what is typed already, Ctrl-R searches.",
    recorded=False,
)
def history(ctx: Context, *, count: int | None) -> Report:
    """List the lines that were run, oldest first, with their numbers."""
    lines = [HistoryLine(number, line) for number, line in enumerate(ctx.history, 1)]
    if count is not None:
        lines = lines[-count:]
    rows = [(Styled(str(line.number), "dim"), escape(line.line)) for line in lines]
    table = Table(headings(">", ""), rows, empty="no lines yet")
    return Report(HistoryResult(lines), (table,))


DETAILS = """\
From now on, or with --all from the beginning, every line that succeeds is written to FILE as it was typed;
one that failed or was interrupted is written as a comment. Variables are written with their values. The
file runs again with -x. 'record off' ends it, as the end of ptinspect does; 'record' alone shows how it
stands. help, history, quit and record itself are left out."""


@dataclass(frozen=True)
class RecordResult:
    """How the recording stands."""

    recording: bool
    file: str | None
    statements: int


@command(
    "record",
    group="Session",
    summary="Make a script of what is typed from now on",
    example="record session.pti",
    arguments=(
        argument(
            "file",
            nargs="?",
            type=arguments.completes("file", arguments.either("off", other=arguments.file)),
            written="file",
            metavar="FILE|off",
            help="where to; off: end it; none: how it stands",
        ),
        switch("--all", "what was run so far too"),
        switch("--force", "replace a file that exists"),
    ),
    result=RecordResult,
    details=DETAILS,
    recorded=False,
    not_in_gdb="use GDB's own: set logging",
)
def record(ctx: Context, *, file: Path | str | None, all: bool, force: bool) -> Report:
    """Begin, end, or show how it stands."""
    path = ctx.record.path
    if isinstance(file, Path):
        ctx.record.begin(file, _head(ctx, file, all), everything=all, force=force)
        return _report(ctx, f"recording into {escape(str(file))}", file)
    if file is None:
        return _report(ctx, "nothing is recorded" if path is None else f"recording into {path}", path)
    if path is None:
        raise UserError("nothing is recorded", "record FILE begins")
    ctx.record.end()
    return _report(ctx, f"{path} is complete", path)


def _head(ctx: Context, file: Path, everything: bool) -> list[str]:
    """Return what whoever runs the script again has to know."""
    kernel = ctx.guest.kernel_path
    words = ["ptinspect", *(() if kernel is None else ("--kernel", str(kernel))), "-x", str(file)]
    head = [f"Recorded; to run it again: {shlex.join(words)}"]
    if ctx.guest.session is not None and not everything:
        head.append("A guest was attached already when this began: -c 'launch …' or --gdb ADDR before -x.")
    return head


def _report(ctx: Context, text: str, path: Path | None) -> Report:
    count = ctx.record.written
    result = RecordResult(ctx.record.path is not None, None if path is None else str(path), count)
    return Report(result, (Note(text if path is None else f"{text}: {counted(count, 'statement')}"),))
