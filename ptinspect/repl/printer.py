"""Write answers, errors and progress to the terminal, by the pager or not, or to a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from _thread import RLock
from collections.abc import Callable, Iterator, Mapping

from ptinspect.commands.framework.options import Options
from ptinspect.errors import PtinspectError, UserError
from ptinspect.files import open_input
from ptinspect.output.model import Report, Style, escape
from ptinspect.output.text import paint, plain, render, terminal_size, wants_colour, wrap
from ptinspect.typed import TextIO

LESS = "-RFXK"
"""Colours as they are; leave at once what fits; leave it on the screen; Ctrl-C leaves."""


def pager_command(environment: Mapping[str, str]) -> list[str]:
    """Return the pager and its arguments: $PAGER, else less; none if neither is there or wanted."""
    import shlex
    import shutil

    chosen = environment.get("PAGER")
    if chosen is not None:
        try:
            words = shlex.split(chosen)
        except ValueError:
            return []
        return words if words and words[0] != "cat" and shutil.which(words[0]) else []
    return ["less", LESS] if shutil.which("less") else []


def too_long(text: str, size: os.terminal_size) -> bool:
    """Tell whether a text and the prompt below it need more lines than the screen has."""
    lines = (plain(line) for line in text.splitlines())
    return sum(max(1, -(-len(line) // max(size.columns, 1))) for line in lines) > size.lines - 2


def view_in_pager(text: str, environment: Mapping[str, str]) -> bool:
    """Show a text in the pager, until the user leaves it; False if there is none."""
    words = pager_command(environment)
    if not words:
        return False
    import subprocess

    from ptinspect.processes import ctrl_c_left_to_child

    try:
        with ctrl_c_left_to_child():
            child = subprocess.Popen(
                words, stdin=subprocess.PIPE, env={"LESS": LESS.removeprefix("-"), **environment}
            )
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(text.encode("utf-8", "replace"))
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            child.wait()
    except OSError:
        return False
    return True


NO_COMMAND = 127
"""Exit code of a shell that knows no such command (POSIX.1, Shell Command Language 2.8.2)."""
PROGRESS_AFTER = 1.0
"""Seconds of work after which a progress line appears."""
PROGRESS_EVERY = 0.1
"""Seconds between two progress lines."""


class Printer:
    """Print what commands answer; progress and questions go to standard error."""

    def __init__(
        self,
        *,
        json: bool = False,
        colour: bool | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.out = sys.stdout if out is None else out
        self.err = sys.stderr if err is None else err
        self.json = json
        self.options = Options()
        self.above: Callable[[str], bool] | None = None
        """Writes a line above the prompt and returns True, or False if there is none now."""
        self.taker: Callable[[TextIO, str], bool] | None = None
        """Takes what is to be written and returns True, or False to have it written now."""
        self._turn = RLock()
        self.pages = False
        """True where what is longer than the screen goes to a pager."""
        self._choice = colour
        self._started = self._shown = 0.0
        self._visible = False

    def colour(self, stream: TextIO) -> bool:
        """Tell whether to colour what goes to `stream`: `set`, then --plain, then NO_COLOR, then the file."""
        chosen = {"on": True, "off": False}.get(self.options.text("colour"))
        if self.options.origin("colour") != "session":
            if self._choice is not None:
                chosen = self._choice
            elif os.environ.get("NO_COLOR"):
                chosen = None
        return wants_colour(os.environ, stream.isatty(), chosen)

    def report(
        self, name: str, report: Report, line: str = "", place: str = "", *, page: bool = True
    ) -> None:
        """Print the answer of a command; `place` is `file:line` of a script.

        At the prompt an answer that is longer than the screen goes to the pager if `page` is true.
        """
        with self._turn:
            self._report(name, report, line, place, page)

    def _report(self, name: str, report: Report, line: str, place: str, page: bool) -> None:
        if self.json:
            from ptinspect.output import json as json_output

            self.write(self.out, json_output.answer(name, report, line, place) + "\n")
        else:
            width = terminal_size().columns if self.out.isatty() else 0
            text = render(report, colour=self.colour(self.out), width=width)
            wanted = page and self.pages and self.options.text("pager") == "auto" and self.out.isatty()
            self.end_progress()
            if (
                wanted
                and self.taker is None
                and too_long(text, terminal_size())
                and view_in_pager(text, os.environ)
            ):
                return
            self.write(self.out, text)

    def write(self, stream: TextIO, text: str) -> None:
        """Write a text, unless somebody takes it."""
        if self.taker is None or not self.taker(stream, text):
            self.end_progress()
            stream.write(text)
            stream.flush()

    def print(self, text: str, style: Style = "plain") -> None:
        """Print a text that is no answer among the answers."""
        self.write(self.out, paint(text, style, self.colour(self.out)))

    def echo(self, line: str) -> None:
        """Show a line of a script before its answer; JSON has it in the answer."""
        if not self.json:
            self.print(f"ptinspect> {escape(line)}\n", "title")

    def error(self, name: str, error: PtinspectError, line: str = "", place: str = "") -> None:
        """Print what went wrong: in JSON on standard output, else one or two lines on standard error."""
        place = getattr(error, "place", "") or place
        self.failure(name, error.kind, error.message, hint=error.hint, line=line, place=place)

    def failure(
        self, name: str, kind: str, message: str, *, hint: str = "", line: str = "", place: str = ""
    ) -> None:
        """Print a failure of any kind; `place` is `file:line` of a script."""
        message = "\n".join(escape(part) for part in message.splitlines()) or kind
        if self.json:
            from ptinspect.output import json as json_output

            where = f"{place}: " if place else ""
            self.write(
                self.out, json_output.failure(name, kind, where + message, hint, line, place=place) + "\n"
            )
            return

        colour = self.colour(self.err)
        width = terminal_size().columns if self.err.isatty() else 1 << 16
        said = [
            part for line in f"{place or 'ptinspect'}: {message}".split("\n") for part in wrap(line, width)
        ]
        told = (
            [part for line in hint.split("\n") for part in wrap(f"  {escape(line)}", width)] if hint else []
        )
        lines = [
            *(paint(part, "bad", colour) for part in said),
            *(paint(part, "dim", colour) for part in told),
        ]
        self.write(self.err, "".join(f"{line}\n" for line in lines))

    @contextlib.contextmanager
    def into(self, *, shell: str = "", file: str = "", append: bool = False) -> Iterator[None]:
        """Write what is printed here to a command of the shell's, or to a file in one step.

        The user is asked before a file is overwritten. Raises UserError if that is not wanted, the file
        cannot be written, or the command ends with a failure of the shell's.
        """
        if not shell and not file:
            yield
            return
        from pathlib import Path

        path = Path(os.path.expanduser(file))  # noqa: PTH111 (~nobody stays)
        there = not append and os.path.isfile(path)  # noqa: PTH113 (it raises nothing)
        asks = there and self.options.flag("confirm") and not self.json
        if asks and not self.confirm(f"{path} is there already: overwrite it?"):
            raise UserError(f"{path} stays as it was", ">> appends; set confirm off never asks")
        before, pages = self.out, self.pages
        self.out, self.pages = io.StringIO(), False
        try:
            yield
            text = self.out.getvalue()
        finally:
            self.out, self.pages = before, pages
        if shell:
            self._through(shell, text)
            return
        try:
            with open_input(path) if append else io.BytesIO() as kept:
                text = kept.read().decode() + text
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise UserError(f"cannot append to {path}: {error}") from error
        from ptinspect.output.files import write_text

        write_text(path, text)

    def _through(self, shell: str, text: str) -> None:
        """Give a text to a command of the shell's, which prints on the terminal."""
        import subprocess

        from ptinspect.processes import ctrl_c_left_to_child

        inherits = self.out is sys.stdout
        self.out.flush()
        with ctrl_c_left_to_child():
            child = subprocess.Popen(
                shell, shell=True, stdin=subprocess.PIPE, stdout=None if inherits else subprocess.PIPE
            )
            said, _ = child.communicate(text.encode("utf-8", "replace"))
        if not inherits:
            self.out.write(said.decode("utf-8", "replace"))
        if child.returncode == NO_COMMAND:
            raise UserError(f"the shell has no command {shell.split(maxsplit=1)[0]!r}", "regs | grep TTBR")

    def aside(self, line: str) -> None:
        """Print a line of the guest's console, above the prompt if there is one; any thread may."""
        if self.json:
            return

        with self._turn:
            text = paint(f"| {line}", "dim", self.colour(self.out)) + "\n"
            if self.above is None or not self.above(text):
                self.end_progress()
                self.out.write(text)
                self.out.flush()

    def say(self, text: str) -> None:
        """Print a line that belongs to no answer, on standard error."""
        self.write(self.err, text + "\n")

    def start(self) -> None:
        """Begin to count the time of a command, or of many that are shown as one."""
        if self.taker is not None:
            return
        self._started = time.monotonic()
        self._shown = 0.0

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far the work is: only after a second, only on a terminal, a few times a second."""
        now = time.monotonic()
        if (
            not self.err.isatty()
            or now - self._started < PROGRESS_AFTER
            or now - self._shown < PROGRESS_EVERY
        ):
            return
        self._shown = now
        part = f" {100 * done // total}%" if total else f" {done}" if done else ""
        with self._turn:
            self.err.write(f"\r\x1b[K{escape(text)[:60]}…{part}")
            self.err.flush()
            self._visible = True

    def waiting(self, text: str) -> None:
        """Show what is waited for, unless it or some progress is shown."""
        if not self._visible:
            self.progress(text, 0, 0)

    def step(self, line: str, report: Report) -> None:
        """Show a command that runs as part of another one and its answer; JSON has the whole's only."""
        if self.json:
            return

        self.echo(line)
        self.report("", report, line, page=False)
        self.print("\n")
        self.start()

    def end_progress(self) -> None:
        """Remove the progress line."""
        if self._visible:
            self.err.write("\r\x1b[K")
            self.err.flush()
            self._visible = False

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question on the terminal; no where there is none."""
        self.end_progress()
        if self.json or not (sys.stdin and sys.stdin.isatty() and self.err.isatty()):
            return False
        if not self.options.flag("confirm"):
            self.say(f"{escape(question)} yes (the option confirm is off)")
            return True
        self.err.write(f"{escape(question)} [y/N] ")
        self.err.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")
