"""The interactive loop: read a line, run it, print the answer; no error and no bug ends it."""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.patch_stdout import patch_stdout

from ptinspect import __version__
from ptinspect.commands.framework.context import Context
from ptinspect.commands.stack.stack import watched
from ptinspect.errors import EXIT_OK, PtinspectError, TargetError, UserError
from ptinspect.guest.condition import condition
from ptinspect.output.model import escape
from ptinspect.output.text import brief
from ptinspect.repl.completer import CommandCompleter
from ptinspect.repl.line_history import LineHistory, expand, history_file, open_history
from ptinspect.repl.player import Player
from ptinspect.repl.printer import Printer
from ptinspect.repl.typed_line import EXPRESSION, Typed, commands, without_prompt
from ptinspect.script.parse import parse, parse_line
from ptinspect.script.statements import Line
from ptinspect.text import counted


class Toolbar:
    """Say target, state, pc, CPU and MMU; the guest is asked once per stop."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: tuple[object, str] | None = None

    def __call__(self) -> str:
        """Return the text to show now."""
        session = self._ctx.guest.session
        if session is None:
            kept = counted(len(self._ctx.guest.snapshots), "snapshot")
            return f" no guest{f' · {kept}' if self._ctx.guest.snapshots else ''}"
        state = self._ctx.guest.state
        key = (id(session), session.stop_token, state, session.current_cpu if state == "stopped" else 0)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._stopped() if state == "stopped" else state)
        qemu = self._ctx.guest.qemu
        ours = qemu is not None and session.address == str(qemu.gdb_socket)
        parts = [self._known[1], "" if ours else escape(session.address)]
        if self._ctx.follower is not None:
            parts.append("console")
        return " " + " · ".join(part for part in parts if part)

    def _stopped(self) -> str:
        try:
            now = condition(self._ctx.guest)
        except PtinspectError as error:
            return f"stopped · {escape(error.message)}"
        place = "" if now.pc is None else brief(self._ctx.guest.place(now.pc))
        place = place.replace(" (", " ").removesuffix(")")
        mmu = "" if now.mmu_on is None else f" · MMU {'on' if now.mmu_on else 'off'}"
        depth = watched(self._ctx.guest)
        return f"stopped · cpu {now.cpu} EL{now.el}{mmu} · {place}{f' · {depth}' if depth else ''}"


INTERRUPT_SECONDS = 15.0
"""Time that a running guest gets to stop after Ctrl-C."""


class Loop:
    """Read commands from the terminal until Ctrl-D or `quit`."""

    def __init__(
        self,
        ctx: Context,
        printer: Printer,
        *,
        player: Player | None = None,
        greets: bool = True,
        history: History | None = None,
        source: Input | None = None,
        screen: Output | None = None,
    ) -> None:
        self.ctx = ctx
        self.printer = printer
        self.player = player or Player(ctx, printer)
        self.toolbar = Toolbar(ctx)
        self._greets = greets
        self._repeat = ""
        self._watched: object = None
        self._at_prompt = False
        self._breakable = False
        self._screen = threading.Lock()
        printer.above = self._above
        printer.pages = True
        self._kept = history is None
        self._history = LineHistory(
            open_history(history_file(), self._size) if history is None else history, self._size
        )
        ctx.history = self._history.lines
        self._prompt: PromptSession[str] = PromptSession(
            history=self._history,
            completer=CommandCompleter(ctx),
            complete_in_thread=True,
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            bottom_toolbar=self.toolbar,
            refresh_interval=1.0,
            enable_history_search=True,
            enable_suspend=True,
            input=source,
            output=screen,
        )

    @property
    def _size(self) -> int:
        """How many lines of the history are kept."""
        return int(self.ctx.options.number("history"))

    def run(self) -> int:
        """Run until the user leaves; always 0: failed commands were reported when they failed."""
        if self._greets:
            self.printer.say(f"ptinspect {__version__}: 'help' lists the commands, Ctrl-D leaves")
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            while not self.ctx.leave:
                try:
                    text = self._read()
                except KeyboardInterrupt:
                    self._cleared()
                    continue
                except EOFError:
                    break
                self.execute(text)
        finally:
            signal.signal(signal.SIGINT, before)
        if self._kept:
            open_history(history_file(), self._size)
        if fate := self.ctx.guest.fate:
            self.printer.say(fate)
        return 0

    def _cleared(self) -> None:
        """Say, after Ctrl-C at the prompt, that a guest in the background has not heard of it."""
        if self.ctx.guest.state == "running":
            self.printer.say("the guest is running: 'interrupt' stops it")

    def _read(self) -> str:
        """Read a line; what happens to the guest meanwhile is printed above the prompt."""
        session = self.ctx.guest.session
        if session is not None and session is not self._watched:
            session.on_event(self._event)
            self._watched = session
        with patch_stdout(raw=True):
            with self._screen:
                self._at_prompt = True
            colour = self.printer.colour(self.printer.out)
            try:
                return self._prompt.prompt(
                    self.ctx.options.text("prompt"),
                    color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
                )
            finally:
                with self._screen:
                    self._at_prompt = False

    def _above(self, text: str) -> bool:
        """Print above the prompt, from any thread; False if there is no prompt now."""
        with self._screen:
            if self._at_prompt:
                sys.stdout.write(text)
            return self._at_prompt

    def _event(self, name: str, fields: Mapping[str, object]) -> None:
        """Take an event of the session, in any thread: nothing may be asked of the guest here."""
        if name == "waiting":
            self.printer.waiting("running; Ctrl-C stops it")
        if not self._at_prompt or name not in ("stopped", "lost"):
            return
        session = self.ctx.guest.session
        if name == "stopped" and session is not None:
            said = f"the guest stopped: {session.stop.words}"
        else:
            said = f"the guest is lost: {fields.get('reason', '')}"
        sys.stdout.write(f"{escape(said)}\n")
        self._prompt.app.invalidate()

    def execute(self, text: str) -> None:
        """Run what was typed, or pasted, or repeat the last stepping command if it is empty."""
        pasted = [without_prompt(line) for line in text.strip("\r\n").splitlines()]
        if len(pasted) > 1:
            self._pasted(pasted)
            return
        line = self._called_back("".join(pasted).strip()) or self._repeat
        if line and not line.startswith("#"):
            self._noticing(lambda: self._execute(line), line)

    def _noticing(self, work: Callable[[], object], line: str = "") -> None:
        """Do what a line asks for, and remember it where an empty line repeats it; a bug ends nothing."""
        self._repeat, self.player.asked = "", None
        try:
            work()
        except Exception as error:  # noqa: BLE001 (the bug net)
            self._bug(error)
        command = self.player.asked
        if command is not None and command.repeats:
            self._repeat = command.again or line

    def _pasted(self, lines: Sequence[str]) -> None:
        """Run the lines of a block that was pasted, one after the other as if they were typed."""
        self._repeat = ""
        statements = parse("pasted", lines)
        while True:
            try:
                statement = next(statements, None)
            except UserError as error:
                self.printer.error("", error)
                return
            if statement is None or self.ctx.leave:
                return
            if isinstance(statement, Line):
                self._history.keep(statement.text)
                self.printer.say(escape(f"ptinspect> {statement.text}"))
                self._noticing(partial(self._execute, statement.text))
            else:
                play = partial(self.player.play, [statement])
                self._noticing(partial(self._breakable_by_ctrl_c, play))

    def _execute(self, line: str) -> None:
        try:
            for part in commands(line, self._own):
                if self.ctx.leave or not self._breakable_by_ctrl_c(partial(self._command, part)):
                    return
        except UserError as error:
            self.printer.error("", error, line)

    def _own(self, line: str) -> str:
        """Return the signs `;`, `|` and `>` where they belong to the arguments of a line's command."""
        try:
            statement = parse_line(line)
            command = self.ctx.registry.split(line).command if isinstance(statement, Line) else None
        except UserError:
            return ""
        if command is None or command.passthrough:
            return ";|>"
        if command.name == "condition":  # it is C to its end, as what follows if is
            return "|>"
        return EXPRESSION if command.raw or command.clause else ""

    def _command(self, typed: Typed) -> int:
        with self.printer.into(shell=typed.shell, file=typed.file, append=typed.append):
            return self.player.play([parse_line(typed.text)])

    def _breakable_by_ctrl_c(self, work: Callable[[], int]) -> bool:
        """Do something that Ctrl-C can break into; tell whether it went well."""
        stops = None if self.ctx.guest.session is None else self.ctx.guest.session.stop
        try:
            with self._interrupts():
                return work() == EXIT_OK
        except KeyboardInterrupt:
            self._interrupted(stops)
            return False

    def _called_back(self, text: str) -> str:
        """Return the line that is meant, and keep it; one that the history gave is shown first."""
        try:
            line = self._for_the_shell(text) or expand(text, self._history.lines)
        except UserError as error:
            self.printer.error("", error, text)
            self._repeat = ""
            return ""
        if line != text:
            self.printer.say(escape(line))
        if line and not line.startswith("#"):
            self._history.keep(line)
        return line

    def _for_the_shell(self, text: str) -> str:
        """Return the command that runs `!cmd`; nothing if that is no command of the shell's, but a line.

        A line of the history that begins so is meant first, then a command of ptinspect's.
        """
        command = text.removeprefix("!")
        if command == text or not re.match(r"\s*[\w./~]", command) or re.match(r"-?\d", command):
            return ""
        if command[0].isspace():
            return f"shell {command.strip()}"
        if any(line.startswith(command.split()[0]) for line in self._history.lines):
            return ""
        try:
            self.ctx.registry.resolve(command.split())
        except UserError:
            return f"shell {command}"
        return ""

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Make the next Ctrl-C break into what is done here; later ones wait for the next prompt."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False
            signal.signal(signal.SIGINT, before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._breakable:
            self._breakable = False
            raise KeyboardInterrupt

    def _interrupted(self, before: object) -> None:
        """Stop the guest if it runs: that is what Ctrl-C means then. `before` is its last stop before."""
        session = self.ctx.guest.session
        state = "" if session is None else session.state.name
        if session is None or (state == "STOPPED" and session.stop is before) or state == "DEAD":
            self.printer.say("cancelled")
            return
        try:
            stop = session.interrupt(INTERRUPT_SECONDS)  # further Ctrl-C make no difference
        except TargetError as error:
            self.printer.error("interrupt", error)
        else:
            self.printer.say(f"stopped: cpu {stop.cpu} at {brief(self.ctx.guest.place(stop.pc))}")

    def _bug(self, error: Exception) -> None:
        """Report a bug and stay up."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        if self.ctx.debug:
            sys.stderr.write("".join(traceback.format_exception(error)))
        self.printer.failure(
            "",
            "bug",
            f"a bug in ptinspect: {type(error).__name__}: {error} ({where})",
            hint="" if self.ctx.debug else "ptinspect --debug shows the traceback",
        )
