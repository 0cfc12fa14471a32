"""Run a command line and print what it answers."""

from __future__ import annotations

import contextlib
import subprocess
import time

from ptinspect.commands.framework.context import Context
from ptinspect.errors import EXIT_OK, PtinspectError, TargetLost
from ptinspect.output.model import Note, Report
from ptinspect.repl.printer import Printer
from ptinspect.script.outcome import Outcome
from ptinspect.script.statements import Line


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
    return attempt(ctx, printer, line).code


def attempt(ctx: Context, printer: Printer, line: Line) -> Outcome:
    """Run one line, print its answer or its error, and return what came of it.

    What is no PtinspectError is a bug and goes to the caller.
    """
    began = time.monotonic()
    name = name_of(ctx, line.text)
    printer.start()
    try:
        report = ctx.registry.run(ctx, asks_for_help(ctx, line.text))
    except PtinspectError as error:
        last_words(ctx, error)
        printer.error(name, error, line.text, line.place)
        seconds = time.monotonic() - began
        return Outcome(name, line.text, line.place, error.exit_code, error.message, seconds)
    finally:
        printer.end_progress()
    printer.report(name, report, line.text, line.place)
    message = "" if report.exit_code == EXIT_OK else what_failed(report)
    if message and line.place and not printer.json:
        printer.say(f"{line.place}: {message}")
    seconds = time.monotonic() - began
    return Outcome(name, line.text, line.place, report.exit_code, message, seconds, report.result)


def what_failed(report: Report) -> str:
    """Return the line of a report that says what did not hold."""
    notes = [part for part in report.body if isinstance(part, Note) and part.text]
    bad = [note.text for note in notes if note.style == "bad"]
    return " ".join((bad or [note.text for note in notes[:1]] or ["it did not hold"])[0].split())
