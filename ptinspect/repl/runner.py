"""Run a command line and print what it answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from ptinspect.commands.framework.command import Call, Command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_OK, NothingRuns, PtinspectError, TargetLost, UserError
from ptinspect.output.model import Note, Report
from ptinspect.repl.printer import Printer
from ptinspect.script.outcome import Outcome
from ptinspect.script.statements import Line


def explain(ctx: Context, error: PtinspectError) -> None:
    """Add to the hint what the guest shows: where it stays, or the last lines of one that has ended."""
    if isinstance(error, NothingRuns) and ctx.guest.state == "stopped":
        error.hint = f"it is at {ctx.guest.place(error.pc)}; {error.hint}"
    if not isinstance(error, TargetLost) or ctx.guest.qemu is None:
        return
    import subprocess

    with contextlib.suppress(subprocess.TimeoutExpired):
        ctx.guest.qemu.process.wait(3)
    if not ctx.guest.qemu.alive:
        said = " | ".join(ctx.guest.qemu.last_words().splitlines()[-5:])
        error.hint = "; ".join(
            part for part in (error.hint, f"QEMU's last words: {said}" if said else "") if part
        )


def _spared(ctx: Context, call: Call) -> Call:
    """Ask before a file or snapshot is overwritten. Raises UserError if it is to stay."""
    there = call.overwrites(ctx.guest.snapshots)
    for name in there if ctx.options.flag("confirm") else ():
        if not ctx.confirm(f"{name} is there already: overwrite it?"):
            option = call.leave.strip("_")
            raise UserError(
                f"{name} stays as it was", f"--{option} overwrites it; set confirm off never asks"
            )
    return call.using(**{call.leave: True}) if there else call


@dataclass
class Attempt:
    """Say what came of a line."""

    outcome: Outcome
    """What came of it."""
    call: Call | None = None
    """The command with its arguments; None if they make no sense."""
    report: Report | None = None
    """Its answer; None if it failed."""


def attempt(
    ctx: Context,
    printer: Printer,
    line: Line,
    call: Call | None = None,
    *,
    found: Callable[[Command], None] = lambda command: None,
    asks: bool = False,
) -> Attempt:
    """Run one line, print its answer or its error, and return what came of it.

    `call` is the line parsed already; `found` is called with the command before it runs, and may refuse it;
    `asks`: the user is asked before anything is overwritten.
    What is no PtinspectError is a bug and goes to the caller.
    """
    began = time.monotonic()
    name = line.text.split(maxsplit=1)[0] if line.text.split() else ""
    printer.start()
    try:
        if call is None:
            words = ctx.registry.split(line.text)
            name = words.command.name
            found(words.command)
            call = ctx.registry.bind(words)
        else:
            name = call.name
        if asks:
            call = _spared(ctx, call)
        report = ctx.registry.run(ctx, call)
    except PtinspectError as error:
        explain(ctx, error)
        printer.error(name, error, line.text, line.place)
        seconds = time.monotonic() - began
        outcome = Outcome(name, line.text, line.place, error.exit_code, error.message, seconds)
        return Attempt(outcome, call)
    finally:
        printer.end_progress()
    printer.report(name, report, line.text, line.place)
    message = "" if report.exit_code == EXIT_OK else what_failed(report)
    if message and line.place and not printer.json:
        printer.say(f"{line.place}: {message}")
    seconds = time.monotonic() - began
    outcome = Outcome(name, line.text, line.place, report.exit_code, message, seconds)
    return Attempt(outcome, call, report)


def what_failed(report: Report) -> str:
    """Return the line of a report that names what did not hold."""
    notes = [part for part in report.body if isinstance(part, Note) and part.text]
    bad = [note.text for note in notes if note.style == "bad"]
    return " ".join((bad or [note.text for note in notes[:1]] or ["it did not hold"])[0].split())
