"""Completion of commands, options, symbols, registers, snapshot names and files."""

from __future__ import annotations

import argparse
import bisect
import shlex
from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from ptinspect.commands.argtypes import completion_kind
from ptinspect.commands.context import Context
from ptinspect.commands.registry import Command
from ptinspect.errors import PtinspectError

LIMIT = 60
"""Symbols offered at once."""

REGISTERS: tuple[str, ...] = (*(f"x{n}" for n in range(31)), "sp", "pc")


class CommandCompleter(Completer):
    """Complete a command line from the registry's own parsers."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._paths = PathCompleter(expanduser=True)
        self._symbols: tuple[object, list[str]] = (None, [])

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Return what may stand at the cursor."""
        words, current = split_words(document.text_before_cursor)
        yield from self._names(words, current)
        try:
            command, used = self._ctx.registry.resolve(words)
        except PtinspectError:
            return
        if not command.passthrough:
            yield from self._arguments(command, words[used:], current, complete_event)

    def _names(self, words: list[str], current: str) -> Iterator[Completion]:
        seen = set()
        for command in self._ctx.registry:
            if len(command.words) > len(words) and list(command.words[: len(words)]) == words:
                word = command.words[len(words)]
                if word.startswith(current) and word not in seen:
                    seen.add(word)
                    last = len(command.words) == len(words) + 1
                    meta = command.summary if last else f"{word} …"
                    yield Completion(word, -len(current), display_meta=meta)

    def _arguments(
        self, command: Command, before: list[str], current: str, event: CompleteEvent
    ) -> Iterator[Completion]:
        actions = command.parser().actions()
        options = {name: a for a in actions for name in a.option_strings}
        pending = options.get(before[-1]) if before else None
        if pending is not None and pending.nargs != 0:
            yield from self._values(pending, current, event)
            return
        if current.startswith("-"):
            for name, action in options.items():
                if name.startswith(current):
                    yield Completion(name, -len(current), display_meta=action.help or "")
            return
        following = _positional(actions, before, options)
        if following is not None:
            yield from self._values(following, current, event)

    def _values(self, action: argparse.Action, current: str, event: CompleteEvent) -> Iterator[Completion]:
        if action.choices is not None:
            yield from _matching((str(choice) for choice in action.choices), current)
            return
        kind = completion_kind(action)
        if kind == "address":
            yield from self._address(current)
        elif kind == "command":
            yield from self._names([], current)
        elif kind == "snapshot":
            yield from _matching(self._ctx.snapshots, current)
        if kind in ("file", "snapshot"):
            yield from self._paths.get_completions(Document(current, len(current)), event)

    def _address(self, current: str) -> Iterator[Completion]:
        cut = max(current.rfind(c) for c in "+.:") + 1
        part = current[cut:]
        if part.startswith("$"):
            yield from _matching((f"${name}" for name in self._registers()), part)
            return
        yield from (Completion(name, -len(part)) for name in self._matching_symbols(part))

    def _registers(self) -> list[str]:
        session = self._ctx.session
        if session is None or session.state.name != "STOPPED":
            return list(REGISTERS)
        try:
            return [*REGISTERS, *session.cpu_state(session.current_cpu).system]
        except PtinspectError:
            return list(REGISTERS)

    def _matching_symbols(self, prefix: str) -> list[str]:
        kernel = self._ctx.kernel_if_open
        if kernel is None or not prefix:
            return []
        if self._symbols[0] is not kernel:
            self._symbols = (kernel, sorted(kernel.symbols))
        names = self._symbols[1]
        first = bisect.bisect_left(names, prefix)
        last = bisect.bisect_left(names, prefix + "\U0010ffff", first)
        return names[first : min(last, first + LIMIT)]


def split_words(text: str) -> tuple[list[str], str]:
    """Split the text before the cursor into whole words and the one being typed."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    if not text or text[-1].isspace():
        return words, ""
    return words[:-1], words[-1] if words else ""


def _matching(names: Iterable[str], current: str) -> Iterator[Completion]:
    return (Completion(name, -len(current)) for name in names if name.startswith(current))


def _positional(
    actions: list[argparse.Action], before: list[str], options: dict[str, argparse.Action]
) -> argparse.Action | None:
    """Return the positional argument that comes next."""
    positionals = [a for a in actions if not a.option_strings]
    taken = 0
    skip = False
    for word in before:
        if skip:
            skip = False
        elif word in options:
            skip = options[word].nargs != 0
        else:
            taken += 1
    if taken < len(positionals):
        return positionals[taken]
    last = positionals[-1] if positionals else None
    return last if last is not None and last.nargs in ("*", "+", argparse.REMAINDER) else None
