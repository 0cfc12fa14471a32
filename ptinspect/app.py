"""The composition root: process arguments become objects, and a one-shot command, a script or the REPL."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, SimpleNamespace

from ptinspect import __version__
from ptinspect.errors import (
    EXIT_BUG,
    EXIT_CONNECT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TARGET,
    EXIT_USAGE,
    PtinspectError,
    UserError,
)
from ptinspect.imports import standing_in
from ptinspect.output.model import escape
from ptinspect.typed import TYPE_CHECKING, Any

with standing_in(
    {"gettext": SimpleNamespace(gettext=str, ngettext=lambda one, more, n: one if n == 1 else more)}
):
    import argparse  # its texts have no translations, and looking for them takes five times as long as it

if TYPE_CHECKING:
    from pathlib import Path

    from ptinspect.commands.framework.context import Context
    from ptinspect.commands.framework.registry import Registry
    from ptinspect.repl.player import Player
    from ptinspect.repl.printer import Printer
    from ptinspect.script.statements import Statement

CANNOT_TELL = 125
"""What --bisect makes of an error that is no verdict on the kernel."""
EXIT_PIPE = 141
"""Ended because nobody reads the output any more, as a shell counts it."""

AFTERWARDS_SECONDS = 30.0
"""Time for everything that --on-failure asks for."""

EXIT_CODES = (
    "exit codes: 0 done, 1 a check or expectation failed, 2 wrong usage or a file that cannot be used, "
    "3 target or guest error, 4 could not attach, 70 a bug in ptinspect, 130 interrupted, 129 and 143 "
    "ended by SIGHUP and SIGTERM, 141 nobody reads the output"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ptinspect and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the letters gets their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        with Signals() as signals:
            code = _main(arguments, signals)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_PIPE
    except OSError as error:
        _discard_output()
        sys.stderr.write(f"ptinspect: cannot write the output: {error.strerror or error}\n")
        return EXIT_USAGE


def _discard_output() -> None:
    """Send what is still to be written to standard output nowhere, so that Python's end does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Signals:
    """Make the first SIGINT, SIGTERM or SIGHUP an orderly end: detached, and QEMU ended.

    Later ones change nothing: each step of that end has a time limit of its own.
    """

    def __init__(self) -> None:
        self.code = 0
        """Exit code of the signal that came, as a shell counts it; 0: none."""
        self.closing = False
        """The end is under way already, without any signal."""
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Signals:
        """Take the signals; one that comes in a finalizer, where Python raises nothing, is not reported."""
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        with suppress(ValueError):  # of a thread that is not the main one
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                    self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _unraisable(self, found: sys.UnraisableHookArgs) -> None:
        if not isinstance(found.exc_value, KeyboardInterrupt | SystemExit):
            self._hook(found)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.code or self.closing:
            return
        self.code = 128 + number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(self.code)


def _main(arguments: list[str], signals: Signals) -> int:
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except UserError as error:
        from ptinspect.repl.printer import Printer

        Printer(json="--json" in arguments).error("", error)
        return error.exit_code
    if options.help:
        parser.epilog, parser.formatter_class = _epilog(), argparse.RawDescriptionHelpFormatter
        sys.stdout.write(parser.format_help())
        return EXIT_OK
    if options.version:
        sys.stdout.write(f"ptinspect {__version__}\n")
        return EXIT_OK
    starting = None
    if options.gdb is not None:  # before anything else is imported
        from ptinspect.link.gdb.starting import begun

        starting = begun(options.gdb_path)
    from ptinspect.guest.guest import Guest

    guest = Guest(options.kernel, gdb=options.gdb_path)
    guest.starting = starting
    from ptinspect.commands.framework.context import Context
    from ptinspect.commands.framework.registry import build_registry
    from ptinspect.repl.printer import Printer

    registry = build_registry()
    printer = Printer(json=options.json, colour=options.colour)
    _configure(printer)
    ctx = Context(
        registry,
        guest,
        printer,
        json=options.json,
        debug=options.debug,
        options=printer.options,
    )
    code = EXIT_BUG
    try:
        code = _run(ctx, printer, options, signals)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError:
        raise
    except PtinspectError as error:
        printer.error("", error)
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 (the bug net)
        report_bug(printer, error)
    finally:
        signals.closing = True
        code = _close(ctx, printer) or code
    return for_bisect(code) if options.bisect else code


def for_bisect(code: int) -> int:
    """Return the exit code with which `git bisect run` is told that a run cannot tell good from bad.

    Source: git-bisect(1): 125 skips the commit, 1 to 127 are bad, all above ends the bisection.
    """
    return CANNOT_TELL if code in (EXIT_USAGE, EXIT_TARGET, EXIT_CONNECT, EXIT_BUG) else code


def _configure(printer: Printer) -> None:
    """Take over the configuration file; one that cannot be used is one line, and the defaults hold."""
    from ptinspect import config

    path = config.location()
    try:
        for wrong in printer.options.take(config.read(path), "file"):
            printer.say(f"ptinspect: {path}: {escape(wrong)}: the default holds")
    except UserError as error:
        printer.say(f"ptinspect: {escape(error.message)}: the defaults hold")


def _run(ctx: Context, printer: Printer, options: argparse.Namespace, signals: Signals) -> int:
    from ptinspect.files import need_file
    from ptinspect.repl.player import Player, TimeUp, refused, reported
    from ptinspect.script.variables import definition

    player = Player(
        ctx, printer, keep_going=options.keep_going, echo=not options.quiet, ended=lambda: signals.code
    )
    try:
        player.variables.update(definition(text) for text in options.var or ())
        if options.kernel is not None:
            need_file(options.kernel, "--kernel: ")
        statements = _statements(ctx, options)
        player.check(statements)
    except UserError as error:
        printer.error("", error)
        refused(options.junit, _suite(options), error)
        return error.exit_code
    with reported(player, options.junit, _suite(options)), _ended(player):
        try:
            with player.within(options.timeout):
                return _work(player, options, statements)
        except TimeUp:
            return player.time_over()


def _work(player: Player, options: argparse.Namespace, statements: list[Statement]) -> int:
    """Attach if that is wanted; run the statements, or what comes through a pipe, or the prompt."""
    ctx, printer = player.ctx, player.printer
    if options.gdb is not None:
        code = _attach(ctx, printer, options.gdb, quiet=bool(statements))
        if code != EXIT_OK:
            return code
    if statements:
        code = player.play(statements)
        if code != EXIT_OK and options.on_failure:
            player.afterwards(options.on_failure, AFTERWARDS_SECONDS)
        return code
    if sys.stdin is None:
        raise UserError("there is no standard input to read commands from", "-c 'COMMAND', or -x FILE")
    if options.json or not sys.stdin.isatty():
        from ptinspect.script.parse import parse

        player.echo = False
        return player.play(parse("stdin", _typed()))
    from ptinspect.repl.loop import Loop

    if options.timeout is not None:
        raise UserError("--timeout at the prompt", "it limits -c, -x and what comes through a pipe")
    ctx.interactive = True
    return Loop(ctx, printer, player=player, greets=not options.quiet).run()


def _statements(ctx: Context, options: argparse.Namespace) -> list[Statement]:
    """Return what the process's arguments ask for. Raises UserError if a script cannot be used."""
    from ptinspect.script.statements import Line

    statements: list[Statement] = []
    for kind, text in options.work or ():
        from ptinspect.script.parse import parse_line
        from ptinspect.script.shipped import open_script

        statements.extend(open_script(text) if kind == "script" else [parse_line(text)])
    if options.command:
        statements.append(Line(join(ctx.registry, options.command)))
    return statements


def _typed() -> Iterator[str]:
    """Return the lines of standard input. Raises UserError if it is no text."""
    from ptinspect.script.variables import LONGEST

    try:
        while line := sys.stdin.readline(LONGEST + 2):
            line.encode()  # in some locales Python makes surrogates of what is no text
            yield line
    except UnicodeError as error:
        raise UserError("standard input is no text (UTF-8)") from error
    except OSError as error:
        raise UserError(f"cannot read standard input: {error.strerror or error}") from error


@contextmanager
def _ended(player: Player) -> Iterator[None]:
    """Say at which command Ctrl-C or a signal ended the run."""
    said = "interrupted"
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and isinstance(end.code, int):
            said = f"ended by {signal.Signals(end.code - 128).name}"
        with suppress(OSError):
            at = player.at
            player.printer.failure(player.name, "interrupted", said, line=at.text, place=at.place)
        raise


def _suite(options: argparse.Namespace) -> str:
    """Return what a report is called."""
    return next((text for kind, text in options.work or () if kind == "script"), "ptinspect")


def _attach(ctx: Context, printer: Printer, address: str, *, quiet: bool) -> int:
    from ptinspect.script.statements import Line

    line = f"attach {shlex.quote(address)}"
    try:
        report = ctx.registry.run(ctx, line)
    except PtinspectError as error:
        printer.error("attach", error, line)
        return error.exit_code
    ctx.record.note(Line(line), EXIT_OK, "", {})
    if not quiet and not printer.json:
        printer.report("attach", report, line)
    return EXIT_OK


def join(registry: Registry, words: list[str]) -> str:
    """Make one line of the process's arguments; what is passed through keeps its own quotes."""
    try:
        command, _ = registry.resolve(words)
    except UserError:
        return shlex.join(words)
    if command.passthrough:
        return " ".join(words)
    return shlex.join(words)


def _epilog() -> str:
    from ptinspect.commands.framework.catalogue import catalogue

    found = sorted(catalogue(), key=lambda entry: entry.words)
    commands = [f"  {' '.join(entry.words):<16} {entry.summary}" for entry in found]
    return "\n".join(["commands (help COMMAND explains one):", *commands, "", EXIT_CODES])


def _parser() -> argparse.ArgumentParser:
    from ptinspect.commands.framework.command import Parser

    parser = Parser(
        "ptinspect",
        usage="ptinspect [OPTIONS] [COMMAND ARGS…]   (no command: interactive)",
        description="Look at, snapshot and diff the translation tables of an arm64 Linux guest under QEMU.",
    )
    add = parser.add_argument
    add("--help", "-h", action="store_true", help="show this and leave")
    add("--version", action="store_true", help="show the version and leave")
    add("--gdb", metavar="ADDR", help="attach to a gdbstub first: host:port, :port or a socket's path")
    add("--kernel", metavar="FILE", type=_path, help="the guest's kernel: Image, vmlinuz, or vmlinux")
    add(
        "-c", dest="work", action="append", metavar="'COMMAND'", type=_command, help="run it; may be repeated"
    )
    add(
        "-x",
        dest="work",
        action="append",
        metavar="FILE",
        type=_file,
        help="run a script of commands; @NAME: one that came along",
    )
    add(
        "--var",
        action="append",
        metavar="NAME=VALUE",
        help="give ${NAME} in scripts a value; may be repeated",
    )
    add("--quiet", "-q", action="store_true", help="no greeting; the commands of -x are not shown")
    add("--keep-going", action="store_true", help="go on after a command failed")
    add(
        "--on-failure",
        action="append",
        metavar="'COMMAND'",
        help="run it after a failure, while the guest is there",
    )
    add("--timeout", metavar="SECONDS", type=_seconds, help="end after that time, whatever runs")
    add("--bisect", action="store_true", help="for git bisect run: exit code 125 instead of 2, 3, 4 and 70")
    add("--junit", metavar="FILE", type=_path, help="write a JUnit report of the commands")
    add("--json", action="store_true", help="print one JSON object per command and line")
    add("--plain", dest="colour", action="store_false", default=None, help="no colours")
    add("--color", dest="colour", action="store_true", default=None, help="colours, even into a pipe")
    add("--gdb-path", metavar="FILE", help="the GDB to use (default: one that knows aarch64)")
    add("--debug", action="store_true", help="show tracebacks of bugs")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _command(text: str) -> tuple[str, str]:
    return "command", text


def _file(text: str) -> tuple[str, str]:
    return "script", text


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def _seconds(text: str) -> float:
    from ptinspect.commands.framework.arguments import seconds

    value = seconds(text)
    if not 0 < value < 1e8:
        raise UserError("--timeout: more than no time, please")
    return value


def report_bug(printer: Printer, error: BaseException) -> None:
    """Print one line about a bug in ptinspect, and the traceback on standard error."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""  # noqa: PTH119
    sys.stderr.write("".join(traceback.format_exception(error)))
    printer.failure("", "bug", f"a bug in ptinspect: {type(error).__name__}: {error}{where}")


def _close(ctx: Context, printer: Printer) -> int:
    """Leave the guest; return the exit code of what went wrong with that."""
    try:
        ctx.close()
    except PtinspectError as error:
        printer.failure("", error.kind, f"while leaving: {error.message}", hint=error.hint)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
