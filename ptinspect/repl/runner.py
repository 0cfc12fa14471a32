"""Run command lines one after the other and print what they answer."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from ptinspect.commands.context import Context
from ptinspect.errors import EXIT_OK, PtinspectError, TargetLost
from ptinspect.repl.printer import Printer


@dataclass(frozen=True)
class Line:
    """A command line and where it stands."""

    text: str
    """The command as typed."""
    place: str = ""
    """`file:line` in a script, else empty."""


def asks_for_help(ctx: Context, text: str) -> str:
    """Return `help COMMAND` for `COMMAND … --help`, else the line as it is. Raises UserError."""
    if not text.rstrip().endswith(("--help", "-h")):
        return text
    command, arguments, _ = ctx.registry.split(text)
    if command.passthrough or arguments[-1:] not in (["--help"], ["-h"]):
        return text
    return f"help {command.name}"


def name_of(ctx: Context, text: str) -> str:
    """Return the full name of the command that a line calls, or its first word."""
    try:
        return ctx.registry.split(text)[0].name
    except PtinspectError:
        return text.split(maxsplit=1)[0] if text.split() else ""


def last_words(ctx: Context, error: PtinspectError) -> None:
    """Add what QEMU or the console said last to the hint, if the guest that was launched has gone."""
    if not isinstance(error, TargetLost) or ctx.qemu is None:
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        ctx.qemu.process.wait(1)
    if not ctx.qemu.alive:
        said = " | ".join(ctx.qemu.last_words().splitlines()[-5:])
        error.hint = "; ".join(
            part for part in (error.hint, f"QEMU's last words: {said}" if said else "") if part
        )


def run_line(ctx: Context, printer: Printer, line: Line) -> int:
    """Run one line, print its answer or its error, and return its exit code.

    What is no PtinspectError is a bug and goes to the caller.
    """
    printer.start()
    try:
        report = ctx.registry.run(ctx, asks_for_help(ctx, line.text))
    except PtinspectError as error:
        last_words(ctx, error)
        printer.error(name_of(ctx, line.text), error, line.text, line.place)
        return error.exit_code
    finally:
        printer.end_progress()
    printer.report(name_of(ctx, line.text), report, line.text)
    return report.exit_code


def run_lines(ctx: Context, printer: Printer, lines: Iterable[Line]) -> int:
    """Run lines until one fails; return its exit code, or 0."""
    for line in lines:
        code = run_line(ctx, printer, line)
        if code != EXIT_OK:
            return code
        if ctx.leave:
            break
    return EXIT_OK
