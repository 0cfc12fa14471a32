"""What happens at stops: which actions are for one, and how those that repeat themselves are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError
from ptinspect.guest import expression
from ptinspect.output.model import Note, Report
from ptinspect.repl.printer import Printer
from ptinspect.script.statements import Line, OnStop, Statement
from ptinspect.text import counted
from ptinspect.typed import Any, TextIO


def action_for(ctx: Context, actions: Mapping[str, OnStop], result: Mapping[str, Any]) -> OnStop | None:
    """Return the action for a stop: for its breakpoint, its address, or any.

    Raises PtinspectError if the address of an action cannot be known any more.
    """
    pc = result.get("pc")
    if result.get("state") != "stopped" or not isinstance(pc, str):
        return None
    for where, action in actions.items():
        if where.isdecimal() and int(where) == result.get("breakpoint"):
            return action
        if where != "any" and not where.isdecimal() and int(pc, 16) in stop_addresses(ctx, where):
            return action
    return actions.get("any")


def stop_addresses(ctx: Context, where: str) -> set[int]:
    """Return the addresses that an action is for, as far as they are known; none for `any` and numbers.

    Raises PtinspectError.
    """
    if where == "any" or where.isdecimal():
        return set()
    from ptinspect.guest.names import GuestNames

    address = expression.address(where)
    if address.names_symbol and ctx.guest.kernel is None:
        raise UserError(
            f"on stop {where}: nobody knows where that is without the kernel file",
            "launch, or kernel FILE, before it; ptinspect --kernel FILE; or a number: 0x…",
        )
    from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints
    from ptinspect.guest.breakpoints.followed_addresses import of_kernel

    if ctx.guest.kernel is not None and of_kernel(ctx.guest, address):
        return symbol_breakpoints(ctx.guest).addresses(address)
    return {address.value(GuestNames(ctx.guest))}


def goes_on(ctx: Context, body: tuple[Statement, ...]) -> bool:
    """Tell whether the last of the actions lets the guest go on."""
    return bool(body) and _continues(ctx, body[-1])


def check_actions(ctx: Context, body: tuple[Statement, ...]) -> None:
    """Raise UserError if the guest would go on in the middle of the actions."""
    if any(_continues(ctx, statement) for statement in body[:-1]):
        raise UserError("'continue' among the actions at a stop", "it can only be the last of them")


def _continues(ctx: Context, statement: Statement) -> bool:
    if not isinstance(statement, Line):
        return False
    try:
        return ctx.registry.split(statement.text).command.name == "continue"
    except UserError:  # it has a variable for a name, or is no command
        return False


_NO_ANSWER = ("cpu", "hits")
"""Fields of a stop that make no other answer of it."""


@dataclass
class Fold:
    """Show what comes of the stops that actions let go on; those that say what the last one said are counted.

    A stop says the same if it differs in CPU and number of hits at most, and its actions print the same.
    """

    printer: Printer
    wanted: bool = True
    """False shows all."""
    _noted: list[str] = field(default_factory=list)
    """What the actions have printed."""
    _held: list[tuple[TextIO, str]] | None = None
    """What is printed only if it is new; None while all is printed at once."""
    _last: dict[str, object] = field(default_factory=dict)
    """What a stop said last, by the place that its actions are for."""
    _same: dict[str, list[int]] = field(default_factory=dict)
    """The CPUs of the stops that said the same since, by the place that the actions are for."""

    @contextmanager
    def folding(self) -> Iterator[None]:
        """Take what is printed; at the end all of it is shown that is not to be left out."""
        if self.printer.taker is not None or not self.wanted:
            self.wanted = False
            yield
            return
        self.printer.taker = self._take
        try:
            yield
        finally:
            self.printer.taker = None
            self.show()

    @contextmanager
    def acting(self, where: str, stop: Report) -> Iterator[None]:
        """Compare what the actions for `where` print at a stop, and the stop, with the last time."""
        self._noted.clear()
        yield
        if not self.wanted:
            return
        more = [note.text for note in stop.body[1:] if isinstance(note, Note)]
        answer = (
            {key: value for key, value in stop.result.items() if key not in _NO_ANSWER},
            more,
            [*self._noted],
        )
        if self._held is not None and self._last.get(where) == answer:
            self._held = []
            self._same.setdefault(where, []).append(stop.result.get("cpu", 0))
            self.printer.progress("stops with the same answer", sum(map(len, self._same.values())), 0)
        else:
            self.show()
        self._last[where] = answer

    def hold(self) -> None:
        """Hold back what is printed from here on, until it is known whether it is new."""
        if self.wanted:
            self._held = self._held or []

    def show(self) -> None:
        """Print how many stops were left out, and what is held back."""
        held, self._held = self._held or (), None
        same, self._same = self._same, {}
        for where, cpus in same.items():
            self.printer.print(f"{_left_out(where, cpus)}\n", "dim")
        for stream, text in held:
            self.printer.write(stream, text)

    def _take(self, stream: TextIO, text: str) -> bool:
        self._noted.append(text)
        if self._held is None:
            return False
        if stream is self.printer.err:  # something went wrong
            self.show()
            return False
        self._held.append((stream, text))
        return True


def _left_out(where: str, cpus: Sequence[int]) -> str:
    """Say how many stops are not shown."""
    at = "" if where == "any" else f" at {'breakpoint ' if where.isdecimal() else ''}{where}"
    different = sorted(set(cpus))
    on = f" (cpus {', '.join(map(str, different))})" if len(different) > 1 else ""
    return f"… {counted(len(cpus), 'more stop')}{at} with the same answer{on}"
