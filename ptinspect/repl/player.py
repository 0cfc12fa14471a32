"""Play statements: replace their variables, run their lines, repeat their blocks, act at stops."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.command import Call, Command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.preflight import MAX_DEPTH, Preflight
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TARGET, PtinspectError, UserError
from ptinspect.repl.printer import Printer
from ptinspect.repl.runner import Attempt, attempt
from ptinspect.script.outcome import AFTERWARDS, Outcome, junit
from ptinspect.script.statements import Line, OnFailure, OnStop, Repeat, Source, Statement, Var
from ptinspect.script.variables import expand, words
from ptinspect.typed import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

LEAST_SECONDS = 0.1
"""What a command that goes on gets, however little is left of its time."""


MOST_ROUNDS = 1_000_000
MOST_STOPS = 100_000
"""Stops that `on stop` handles for one command of the script."""
MOST_OUTCOMES = 100_000
"""Outcomes that are kept for a report."""


class TimeUp(KeyboardInterrupt):
    """Say that the time for the whole script is over; commands end as they do at Ctrl-C."""


@dataclass
class Player:
    """Run statements one after the other. Keeps variables and actions between calls."""

    ctx: Context
    printer: Printer
    variables: dict[str, str] = field(default_factory=dict)
    """Values by name."""
    keep_going: bool = False
    """Go on after a failure; the exit code is that of the first."""
    outcomes: list[Outcome] | None = None
    """What came of each command, if somebody wants to know."""
    echo: bool = False
    """Show the lines of scripts as they run."""
    ended: Callable[[], int] = int
    """Returns the exit code of a signal that ended a command early, though it had an answer; else 0."""
    at: Line = field(default_factory=lambda: Line(""))
    """The line that runs, or ran last."""
    command: Command | None = None
    """The command that it names; None if there is none."""
    asked: Command | None = None
    """The command that the line played last names, whatever ran after it at a stop; None if there is none."""
    _actions: dict[str, OnStop] = field(default_factory=dict)
    _last_acts: tuple[Statement, ...] = ()
    """What `on failure` is to run."""
    _depth: int = 0
    _late: str = ""
    _said: str = ""
    """What went wrong last."""

    def play(self, statements: Iterable[Statement]) -> int:
        """Run statements until one fails, and return its exit code; 0 if none did.

        What is no PtinspectError is a bug and goes to the caller, as Ctrl-C does.
        """
        try:
            return self._play(statements)
        except TimeUp:
            if self._depth:
                raise
            return self.time_over()

    def _play(self, statements: Iterable[Statement]) -> int:
        first = EXIT_OK
        source = iter(statements)
        while not self.ctx.leave:
            try:
                statement = next(source, None)
            except UserError as error:  # a script that comes through a pipe is parsed as it is read
                return self._failed(Line(""), error)
            if statement is None:
                break
            code = self._noted(statement) if self._depth == 0 else self._guarded(statement)
            if self.ended():
                return self.ended()
            if code != EXIT_OK and self._depth == 0:
                self._after_failure()
            first = first or code
            if code != EXIT_OK and (not self.keep_going or self._late):
                break
        return first

    def _after_failure(self) -> None:
        """Run what `on failure` asks for, once; what fails there changes nothing any more."""
        acts, self._last_acts = self._last_acts, ()
        if not acts or self._late or self.ctx.interactive:
            return
        before, self.keep_going = self.keep_going, True
        try:
            self._nested(acts)
        finally:
            self.keep_going = before

    @contextmanager
    def within(self, seconds: float | None) -> Iterator[None]:
        """Give everything that is played a time limit."""
        if seconds is None:
            yield
            return

        def ring(number: int, frame: FrameType | None) -> NoReturn:
            self._late = f"the time limit of {seconds:g} s for the whole run is over"
            raise TimeUp

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _noted(self, statement: Statement) -> int:
        """Run one statement and take note of it for `record`."""
        self._said, self.asked = "", None
        code = EXIT_INTERRUPTED
        try:
            code = self._guarded(statement)
        finally:
            if not isinstance(statement, Line) or self.asked is None or self.asked.recorded:
                self._note(statement, code)
        return code

    def _note(self, statement: Statement, code: int) -> None:
        said = self._said or ("interrupted" if code == EXIT_INTERRUPTED else "")
        try:
            self.ctx.record.note(statement, code, said, self.variables)
        except UserError as error:
            self.printer.error("record", error)

    def afterwards(self, commands: Iterable[str], seconds: float) -> None:
        """Run commands after a failure, as long as there is a guest to ask; what they say fails nothing."""
        from ptinspect.script.parse import parse_line

        kept, self.outcomes, self._late = self.outcomes, None, ""
        try:
            with self.within(seconds):
                if self.ctx.guest.state == "running":
                    attempt(self.ctx, self.printer, Line("interrupt", AFTERWARDS))
                for text in commands:
                    if self.ctx.guest.state in ("none", "dead"):
                        return
                    self._guarded(replace(parse_line(text), place=AFTERWARDS))
        except (PtinspectError, TimeUp):
            return
        finally:
            self.outcomes = kept

    def _guarded(self, statement: Statement) -> int:
        """Run one statement; what is wrong with it is printed with its place."""
        try:
            code = self._one(statement)
        except PtinspectError as error:
            return self._failed(statement, error)
        except TimeUp:
            code = EXIT_OK
        return self.time_over(statement) if self._late and code == EXIT_OK else code

    def time_over(self, statement: Statement | None = None) -> int:
        """Say at which statement the time for the whole run was over, and return the exit code for it."""
        statement = statement or self.at
        text = getattr(statement, "text", "")
        self.printer.failure("", "timeout", self._late, line=text, place=statement.place)
        name = self.name if isinstance(statement, Line) else ""
        self._keep(Outcome(name, text, statement.place, EXIT_TARGET, self._late))
        return EXIT_TARGET

    def _one(self, statement: Statement) -> int:
        match statement:
            case Line():
                return self._line(statement)
            case Var(name, value):
                given = words(value, self.variables)
                if len(given) > 1:
                    raise UserError(f"var {name}: more than one word", "put the value into quotes")
                self.variables.setdefault(name, given[0] if given else "")
                return EXIT_OK
            case Source(path):
                return self._source(path)
            case Repeat():
                return self._repeat(statement)
            case OnFailure(body):
                self._last_acts = body
                return EXIT_OK
            case OnStop(where, body):
                from ptinspect.repl.stop_actions import check_actions, stop_addresses

                where = self._words(where)
                stop_addresses(self.ctx, where)
                check_actions(self.ctx, body)
                self._actions.pop(where, None)
                if body:
                    self._actions[where] = replace(statement, where=where)
                return EXIT_OK

    def _words(self, text: str) -> str:
        return " ".join(words(text, self.variables))

    def _failed(self, statement: Statement, error: PtinspectError) -> int:
        text = getattr(statement, "text", "")
        self.printer.error("", error, text, statement.place)
        self._keep(Outcome("", text, statement.place, error.exit_code, error.message))
        return error.exit_code

    def _keep(self, outcome: Outcome) -> None:
        self._said = outcome.message if outcome.code else self._said
        if self.outcomes is not None and len(self.outcomes) < MOST_OUTCOMES:
            self.outcomes.append(outcome)

    @property
    def name(self) -> str:
        """The name of the command that runs, or ran last; nothing if there is none of that name."""
        return "" if self.command is None else self.command.name

    def _found(self, command: Command) -> None:
        self.command = command
        if not self._depth:
            self.asked = command

    def _run(self, line: Line, call: Call | None = None, *, written: str = "") -> Attempt:
        """Run a line, which stands in the script as `written` if that is something else."""
        self.at, self.command = line, None if call is None else call.command
        began = time.monotonic()
        try:
            if self.echo and line.place:
                self.printer.echo(written or line.text)
            asks = self.ctx.interactive and not line.place
            made = attempt(self.ctx, self.printer, line, call, found=self._found, asks=asks)
        except (KeyboardInterrupt, SystemExit) as end:
            if not isinstance(end, TimeUp):
                code = end.code if isinstance(end, SystemExit) else EXIT_INTERRUPTED
                code = code if isinstance(code, int) else EXIT_INTERRUPTED
                seconds = time.monotonic() - began
                self._keep(Outcome(self.name, line.text, line.place, code, "interrupted", seconds))
            raise
        self._keep(made.outcome)
        return made

    def _line(self, line: Line) -> int:
        line = replace(line, text=expand(line.text, self.variables))
        began = time.monotonic()
        made = self._run(line)
        if made.call is None or not made.call.command.runs or not self._actions:
            return made.outcome.code
        return self._act(made, made.call, began + self.ctx.time_limit(made.call.arguments.get("timeout")))

    def _act(self, made: Attempt, call: Call, end: float) -> int:
        """Run the actions for where the guest has stopped, and for where it stops when they go on."""
        from ptinspect.repl.stop_actions import Fold, action_for, goes_on

        first = EXIT_OK
        text = made.outcome.line if call.name == "until" else "continue"
        again = call if call.name == "until" else self.ctx.registry.parse(text)
        fold = Fold(self.printer, self.ctx.options.flag("fold") and not self.printer.json)
        with fold.folding():
            for _ in range(MOST_STOPS):
                outcome, stop = made.outcome, made.report
                action = (
                    None if outcome.code or stop is None else action_for(self.ctx, self._actions, stop.result)
                )
                if stop is None or action is None:
                    return first or outcome.code
                on = goes_on(self.ctx, action.body)
                if on and outcome.name == "finish":
                    raise UserError("'finish' cannot go on after actions at a stop", "until ADDR can")
                with fold.acting(action.where, stop):
                    code = self._nested(action.body[:-1] if on else action.body)
                first = first or code
                arrived = outcome.name == "until" and stop.result.get("reached", True)
                if not on or arrived or self.ctx.leave or (code != EXIT_OK and not self.keep_going):
                    return first
                left = max(end - time.monotonic(), LEAST_SECONDS)
                fold.hold()
                line = Line(text, action.body[-1].place)
                made = self._run(line, again.using(timeout=left), written="continue")
        raise UserError(f"the guest stopped {MOST_STOPS} times", "let an action end without 'continue'")

    def _nested(self, statements: tuple[Statement, ...]) -> int:
        if self._depth >= MAX_DEPTH:
            raise UserError(f"more than {MAX_DEPTH} scripts or actions at stops within each other")
        self._depth += 1
        try:
            return self.play(statements)
        finally:
            self._depth -= 1

    def _source(self, path: str) -> int:
        given = words(path, self.variables)
        if len(given) != 1:
            raise UserError("source takes one file", "source session.pti")
        from ptinspect.script.shipped import open_script

        statements = open_script(given[0])
        self.check(statements)
        return self._nested(statements)

    def _repeat(self, block: Repeat) -> int:
        count = arguments.whole(0, MOST_ROUNDS)(self._words(block.count))
        before = self.variables.get(block.counter)
        first = EXIT_OK
        for number in range(1, count + 1):
            if block.counter:
                self.variables[block.counter] = str(number)
            code = self._nested(block.body)
            first = first or code
            if self.ctx.leave or (code != EXIT_OK and (not self.keep_going or self._late)):
                break
        if block.counter:
            self.variables.pop(block.counter, None)
            if before is not None:
                self.variables[block.counter] = before
        return first

    def check(self, statements: Iterable[Statement]) -> None:
        """Look at statements before any runs. Raises ScriptError for the first that cannot work."""
        known: dict[str, str | None] = dict(self.variables)
        Preflight(self.ctx.registry, known, self._depth).check(statements)


@contextmanager
def reported(player: Player, path: Path | None, name: str) -> Iterator[None]:
    """Write the report at the end, however that comes; None: no report.

    Raises UserError before the work begins if it cannot be written.
    """
    if path is None:
        yield
        return
    from ptinspect.output.files import write_text

    write_text(path, junit(name, ()))
    player.outcomes = []
    try:
        yield
    finally:
        write_text(path, junit(name, player.outcomes or ()))


def refused(path: Path | None, name: str, error: UserError) -> None:
    """Write the report of a script that was not run: the one that is there may be an older one."""
    if path is not None:
        from ptinspect.output.files import write_text

        place = str(getattr(error, "place", ""))
        write_text(path, junit(name, [Outcome("", "", place, error.exit_code, error.message)]))
