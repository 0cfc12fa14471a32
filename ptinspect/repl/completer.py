"""Completion of commands, options, symbols, registers, snapshot names and files, each with a word of help."""

from __future__ import annotations

import argparse
import bisect
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from ptinspect.commands.framework.arguments import completion_kind
from ptinspect.commands.framework.candidates import Candidate, candidates, symbol_meaning
from ptinspect.commands.framework.command import Command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.session.expect import expect_words
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError
from ptinspect.output.model import escape

LIMIT = 60
"""Symbols offered at once."""
FILES = 200
"""Files offered at once."""
END = "\U0010ffff"
"""Sorts after every letter of a name."""
_PLAIN = re.compile(r"[^\s'\"\\#]+")


@dataclass(frozen=True)
class Typed:
    """What stands before the cursor."""

    words: tuple[str, ...]
    """The whole words before the one at the cursor, their quotes removed."""
    raw: str
    """The piece at the cursor as typed."""
    text: str
    """What the piece means: quotes and backslashes removed."""
    quote: str
    """The quote that is still open, or nothing."""

    def written(self, text: str, *, whole: bool = True) -> str:
        """Return `text` as it is to be typed instead of the piece; `whole` closes its quote."""
        quote = self.quote or ("" if _PLAIN.fullmatch(text) else "'" if "'" not in text else '"')
        if quote == "'" and "'" in text:
            quote = '"'
        if quote == '"':
            text = text.replace("\\", "\\\\").replace('"', '\\"')
        return quote + text + (quote if whole else "")


def typed(line: str) -> Typed:
    """Split the text before the cursor the way a shell does, with the last word as it stands."""
    words: list[str] = []
    start, text, quote, inside = 0, "", "", False
    position = 0
    while position < len(line):
        letter = line[position]
        position += 1
        if not inside and letter.isspace():
            start = position
            continue
        inside = True
        if letter == "\\" and quote != "'":
            text += line[position : position + 1]
            position += 1
        elif quote:
            quote, text = ("", text) if letter == quote else (quote, text + letter)
        elif letter in "'\"":
            quote = letter
        elif letter.isspace():
            words.append(text)
            start, text, inside = position, "", False
        else:
            text += letter
    return Typed(tuple(words), line[start:], text, quote)


class SymbolIndex:
    """Hold names sorted once; a look-up bisects."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)

    def with_prefix(self, prefix: str, limit: int) -> tuple[list[str], int]:
        """Return the first `limit` names that begin with `prefix`, and how many more there are."""
        first = bisect.bisect_left(self._names, prefix)
        last = bisect.bisect_left(self._names, prefix + END, first)
        shown = min(last, first + limit)
        return self._names[first:shown], last - shown


class CommandCompleter(Completer):
    """Complete a command line from the registry's own parsers; runs beside the prompt, asks no guest."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._index: tuple[object, SymbolIndex] = (None, SymbolIndex(()))
        self._of_modules: dict[str, str] = {}
        """The module of each name that is no symbol of the kernel's."""
        self._lock = threading.Lock()

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Return what may stand at the cursor."""
        now = typed(document.text_before_cursor)
        yield from self._names(list(now.words), now)
        try:
            words = self._ctx.registry.open_slash(list(now.words))
            command, used = self._ctx.registry.resolve(words)
            if command.name == "expect":
                yield from _matching(expect_words(self._ctx, words[used:]), now, now.text)
                words = words[used:]
                command, used = self._ctx.registry.resolve(words)
                if not command.expectable:
                    return
        except PtinspectError:
            return
        if not command.passthrough:
            yield from self._arguments(command, words[used:], now)

    def _names(self, words: list[str], now: Typed) -> Iterator[Completion]:
        found: dict[str, list[Command]] = {}
        for command in self._ctx.registry:
            if len(command.words) > len(words) and all(
                full.startswith(word) for full, word in zip(command.words, words, strict=False)
            ):
                found.setdefault(command.words[len(words)], []).append(command)
        for word, commands in found.items():
            if word.startswith(now.text):
                own = [c for c in commands if len(c.words) == len(words) + 1]
                further = ", ".join(c.words[len(words) + 1] for c in commands if c not in own)
                yield _offer(now, word, own[0].summary if own else further)

    def _arguments(self, command: Command, before: list[str], now: Typed) -> Iterator[Completion]:
        actions = command.parser().actions()
        options = {name: a for a in actions for name in a.option_strings}
        pending, given = _pending(before, options)
        if pending is not None:
            yield from self._values(pending, now, now.text)
            if pending.nargs not in ("*", "+", "?") or (pending.nargs == "+" and not given):
                return
        name, equals, value = now.text.partition("=")
        if equals and name in options:
            yield from self._values(options[name], now, value)
        elif now.text.startswith("-"):
            for name, action in options.items():
                again = isinstance(action, argparse._AppendAction)
                if name.startswith(now.text) and (again or not set(action.option_strings) & set(before)):
                    yield _offer(now, name, action.help or "")
        elif pending is None:
            following = _positional(actions, before, options)
            if following is not None:
                yield from self._values(following, now, now.text)

    def _values(self, action: argparse.Action, now: Typed, current: str) -> Iterator[Completion]:
        kind = completion_kind(action)
        if action.choices is not None:
            choices = ((str(choice), action.help or "") for choice in action.choices)
            yield from _matching(choices, now, current)
        elif kind == "command":
            yield from self._names(list(now.words[1:]), now)
        else:
            yield from _matching(candidates(self._ctx, kind, current, now.words), now, current)
        if kind in ("address", "root"):
            yield from self._address(now, current)
        elif kind in ("file", "snapshot", "script"):
            yield from files(now, current, {"snapshot": ".npz", "script": ".pti"}.get(kind, ""))

    def _address(self, now: Typed, current: str) -> Iterator[Completion]:
        """Complete the last term of an expression, inside quotes too."""
        cut = max(current.rfind(c) for c in "+-.: ") + 1
        part = current[cut:]
        if part.startswith("$"):
            for name, meaning in candidates(self._ctx, "register"):
                if f"${name}".lower().startswith(part.lower()):
                    yield Completion(f"${name}", -len(part), display_meta=meaning)
        elif part:
            yield from self._symbols(part)
        elif not current and now.raw == now.text:
            yield from (
                Completion(text, 0, display_meta=meaning)
                for text, meaning in (("$", "a register: $sp-16"), ("pa:", "a physical address: pa:0x…"))
            )

    def _symbols(self, prefix: str) -> Iterator[Completion]:
        kernel = self._ctx.guest.kernel_if_open
        if kernel is None:
            return
        modules = self._ctx.guest.module_symbols
        with self._lock:
            if self._index[0] != (kernel, *modules):
                self._of_modules = {
                    f"{name} [{module}]" if name in kernel.symbols else name: module
                    for module, table in modules.items()
                    for name in table.by_name
                }
                self._index = ((kernel, *modules), SymbolIndex([*kernel.symbols, *self._of_modules]))
        names, more = self._index[1].with_prefix(prefix, LIMIT)
        for name in names:
            module = self._of_modules.get(name)
            said = f"of module {module}" if module else symbol_meaning(self._ctx, kernel, name)
            yield Completion(name, -len(prefix), display_meta=said)
        if more:  # the part that all shown have in common may not be that of all there are
            yield Completion(prefix, -len(prefix), display="…", display_meta=f"{more} more: type on")


def files(now: Typed, current: str, suffix: str = "") -> Iterator[Completion]:
    """Return the files and directories that a path may mean; of files only those that end in `suffix`."""
    head, slash, tail = current.rpartition("/")
    try:
        with os.scandir(Path(head + slash).expanduser()) as entries:
            found = sorted((e.name, e.is_dir()) for e in entries if e.name.startswith(tail))
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return
    shown = 0
    for name, directory in found:
        if (name.startswith(".") and not tail) or not (directory or name.endswith(suffix)):
            continue
        if shown == FILES:
            return
        shown += 1
        text = now.text[: len(now.text) - len(current)] + head + slash + name
        yield Completion(
            now.written(text + "/", whole=False) if directory else now.written(text),
            -len(now.raw),
            display=escape(name) + ("/" if directory else ""),
            display_meta="directory" if directory else "file",
        )


def _offer(now: Typed, text: str, meaning: str) -> Completion:
    """Offer a word instead of the piece at the cursor."""
    return Completion(now.written(text), -len(now.raw), display=escape(text), display_meta=meaning)


def _matching(found: Iterable[Candidate], now: Typed, current: str) -> Iterator[Completion]:
    """Offer those that begin as what is typed; `current` may be the part after `--option=`."""
    ahead = now.text[: len(now.text) - len(current)]
    return (_offer_part(now, ahead, text, meaning) for text, meaning in found if text.startswith(current))


def _offer_part(now: Typed, ahead: str, text: str, meaning: str) -> Completion:
    whole = _offer(now, ahead + text, meaning)
    return Completion(whole.text, whole.start_position, display=escape(text), display_meta=meaning)


def _pending(before: list[str], options: dict[str, argparse.Action]) -> tuple[argparse.Action | None, int]:
    """Return the option whose value may come now, and how many values it has already."""
    for given, word in enumerate(reversed(before)):
        action = options.get(word)
        if action is not None:
            most = 1 if action.nargs in (None, "?") else action.nargs
            takes = given < most if isinstance(most, int) else True
            return (action, given) if takes else (None, 0)
    return None, 0


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
