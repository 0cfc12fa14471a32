"""`console`: the end of the guest's console, or what it says from now on."""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, UserError
from ptinspect.output.model import Note, Report, escape

CONSOLE_BYTES = 1 << 20
"""How much of the end of the console file is looked at; how much one look of the follower reads."""
EVERY = 0.1
"""Seconds between two looks at the file."""
SCRIPT_SECONDS = 10.0
"""How long `console -f` follows where there is no prompt, unless --timeout says so."""
LINE = 2000
"""Bytes after which a line is broken."""
AT_ONCE = 300
"""Lines shown of one look; of a guest that says more, only the last ones are shown."""
LINES = 20
AHEAD = 5
"""Lines shown before it begins to follow."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    lines = argtypes.whole(1, 100_000)
    add("state", nargs="?", choices=("on", "off"), help="with -f: begin or end, whatever it is now")
    add("-n", dest="lines", type=lines, metavar="LINES", help=f"how many lines (20; with -f {AHEAD})")
    add("-f", "--follow", action="store_true", help="show what comes from now on")
    add("--timeout", type=argtypes.seconds, metavar="SECONDS", help="with -f: wait here, for so long")


class Tail:
    """Give the lines that were added to the console's file, whichever guest is there."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._path = self._now()
        self._position = self._size()
        self._rest = b""

    def _now(self) -> Path | None:
        qemu = self._ctx.qemu
        return None if qemu is None else qemu.console

    def _size(self) -> int:
        try:
            return 0 if self._path is None else self._path.stat().st_size
        except OSError:
            return 0

    def lines(self) -> list[str]:
        """Return the lines that are complete, escaped; those of a new guest from its first one on."""
        path = self._now()
        if path != self._path:
            self._path, self._position, self._rest = path, 0, b""
        if path is None:
            return []
        try:
            with path.open("rb") as file:
                file.seek(self._position)
                data = file.read(CONSOLE_BYTES)
        except OSError:
            return []
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE:
            whole.append(self._rest[:LINE])
            self._rest = self._rest[LINE:]
        return [_escaped(line) for line in whole]

    def rest(self) -> list[str]:
        """Return the last line, which no line break has ended yet."""
        last, self._rest = self._rest, b""
        return [_escaped(last)] if last.strip() else []


class Follower:
    """Show what the console says, in a thread of its own, until it is stopped."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._tail = Tail(ctx)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            _show(self._ctx, self._tail.lines())

    def stop(self) -> None:
        """End it; what was said up to now is shown."""
        self._end.set()
        self._thread.join(2.0)
        _show(self._ctx, self._tail.lines() + self._tail.rest())


def _show(ctx: Context, lines: list[str]) -> None:
    if len(lines) > AT_ONCE:
        ctx.interaction.aside(f"({len(lines) - AT_ONCE} lines left out)")
    for line in lines[-AT_ONCE:]:
        ctx.interaction.aside(line)


def _escaped(line: bytes) -> str:
    return escape(line.decode("utf-8", "replace").rstrip("\r").expandtabs(8))


@command(
    "console",
    group="Guest",
    summary="Show the end of the guest's console, or follow it",
    example="console -n 40",
    configure=_configure,
    details="console -f shows each line above the prompt as it comes, while commands run too; a second "
    f"one, or console -f off, ends that. In a script it follows for {SCRIPT_SECONDS:.0f} seconds, or as "
    "--timeout says. Known for guests that were launched here.",
)
def console(ctx: Context, args: argparse.Namespace) -> Report:
    """Show the last lines of the console, or follow it."""
    if not args.follow:
        if args.state or args.timeout:
            raise UserError("console: on, off and --timeout are about following", "console -f")
        return _shown(ctx, args.lines or LINES)
    if args.timeout is not None or not ctx.interactive:
        return _wait(ctx, SCRIPT_SECONDS if args.timeout is None else args.timeout)
    wanted = args.state == "on" if args.state else ctx.follower is None
    if ctx.follower is not None:
        ctx.follower.stop()
        ctx.follower = None
    if not wanted:
        return Report({"following": False}, (Note("the console is not followed any more", "dim"),))
    report = _shown(ctx, args.lines or AHEAD)
    ctx.follower = Follower(ctx)
    said = Note("following; console -f ends it", "dim")
    return Report({**report.result, "following": True}, (*report.body, said))


def _wait(ctx: Context, seconds: float) -> Report:
    """Follow for a time, with nothing else going on."""
    path = _file(ctx)
    tail = Tail(ctx)
    found: list[str] = []
    deadline = time.monotonic() + seconds
    while True:
        lines = tail.lines()
        over = time.monotonic() >= deadline
        if over:
            lines += tail.rest()
        _show(ctx, lines)
        found = (found + lines)[-100_000:]
        if over:
            break
        time.sleep(EVERY)
    said = Note(f"{len(found)} lines in {seconds:g} s", "dim")
    return Report({"lines": found, "file": str(path), "following": False}, (said,))


def _file(ctx: Context) -> Path:
    if ctx.qemu is None:
        raise UserError("console: known only for guests that were launched here", "launch starts one")
    return ctx.qemu.console


def _shown(ctx: Context, count: int) -> Report:
    path = _file(ctx)
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - CONSOLE_BYTES, 0))
            data = file.read()
    except OSError as error:
        raise GuestError(f"cannot read the console: {error.strerror or error}") from error
    lines = [_escaped(line) for line in data.split(b"\n")]
    if lines and not lines[-1]:
        lines.pop()
    lines = lines[-count:]
    body = [Note("\n".join(lines))] if lines else [Note("the console is empty yet", "dim")]
    return Report({"lines": lines, "file": str(path), "following": ctx.follower is not None}, body)
