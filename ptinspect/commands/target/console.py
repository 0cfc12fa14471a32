"""`console`: the end of the guest's console, or what is added to it from now on."""

from __future__ import annotations

import threading

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import switch, timeout_argument
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import UserError
from ptinspect.guest import console_log
from ptinspect.guest.console_log import Tail, console_file
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report
from ptinspect.text import counted

SCRIPT_SECONDS = 10.0
"""How long `console -f` follows where there is no prompt, unless --timeout gives another time."""
AT_ONCE = 300
"""Lines shown of one look; of a guest that prints more, only the last ones are shown."""
LINES = 20
AHEAD = 5
"""Lines shown before it begins to follow."""
KEPT = 100_000
"""Lines of a time of following that are in the result, the last ones."""


class Follower:
    """Show the console's lines as they come, in a thread of its own, until it is stopped."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._tail = Tail(ctx.guest)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(console_log.EVERY):
            _show(self._ctx, self._tail.lines())

    def stop(self) -> None:
        """End it; what was printed up to now is shown."""
        self._end.set()
        self._thread.join(2.0)
        _show(self._ctx, self._tail.lines() + self._tail.rest())


def _show(ctx: Context, lines: list[str]) -> None:
    if len(lines) > AT_ONCE:
        ctx.interaction.aside(f"({counted(len(lines) - AT_ONCE, 'line')} left out)")
    for line in lines[-AT_ONCE:]:
        ctx.interaction.aside(line)


@dataclass(frozen=True)
class ConsoleResult:
    """Lines of the console, and whether more are shown as they come."""

    lines: list[str] | Absent = ABSENT
    file: str | Absent = ABSENT
    following: bool = False


@command(
    "console",
    group="Guest",
    summary="Show the end of the guest's console, or follow it",
    example="console -n 40",
    arguments=(
        argument("state", nargs="?", choices=("on", "off"), help="with -f: begin or end, whatever it is now"),
        argument(
            "-n",
            dest="lines",
            type=arguments.whole(1, 100_000),
            metavar="LINES",
            help=f"how many lines ({LINES}; with -f {AHEAD})",
        ),
        switch("-f", "show what comes from now on", "--follow"),
        timeout_argument("with -f: wait here, for so long"),
    ),
    result=ConsoleResult,
    details="console -f shows each line above the prompt as it comes, while commands run too; a second "
    f"one, or console -f off, ends that. In a script it follows for {SCRIPT_SECONDS:.0f} seconds, or for "
    "--timeout. Known for guests that were launched here.",
)
def console(
    ctx: Context,
    *,
    state: str | None = None,
    lines: int | None = None,
    follow: bool = False,
    timeout: float | None = None,
) -> Report:
    """Show the last lines of the console, or follow it."""
    if not follow:
        if state or timeout:
            raise UserError("console: on, off and --timeout are about following", "console -f")
        return _shown(ctx, lines or LINES, following=ctx.follower is not None)
    if timeout is not None or not ctx.interactive:
        return _wait(ctx, SCRIPT_SECONDS if timeout is None else timeout)
    wanted = state == "on" if state else ctx.follower is None
    if ctx.follower is not None:
        ctx.follower.stop()
        ctx.follower = None
    if not wanted:
        return Report(ConsoleResult(), (Note("the console is not followed any more", "dim"),))
    report = _shown(ctx, lines or AHEAD, following=True)
    ctx.follower = Follower(ctx)
    note = Note("following; console -f ends it", "dim")
    return replace(report, body=(*report.body, note))


def _wait(ctx: Context, seconds: float) -> Report:
    """Follow for a time, with nothing else going on."""
    path = console_file(ctx.guest)
    found: list[str] = []
    for lines in console_log.follow(ctx.guest, seconds):
        _show(ctx, lines)
        found = (found + lines)[-KEPT:]
    note = Note(f"{counted(len(found), 'line')} in {seconds:g} s", "dim")
    return Report(ConsoleResult(found, str(path)), (note,))


def _shown(ctx: Context, count: int, *, following: bool) -> Report:
    path, lines = console_file(ctx.guest), console_log.last_lines(ctx.guest, count)
    body = [Note("\n".join(lines))] if lines else [Note("the console is empty yet", "dim")]
    if ctx.guest.replay is not None:
        body.append(Note("of the whole recording, wherever its replay stands", "dim"))
    return Report(ConsoleResult(lines, str(path), following), body)
