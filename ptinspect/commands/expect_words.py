"""What may follow `expect`: names of commands, fields of their last answers, operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ptinspect.commands.context import Context
from ptinspect.commands.registry import EXPECTABLE, RESULTS
from ptinspect.output.model import escape

OPERATORS: Mapping[str, str] = {
    "==": "equal",
    "!=": "different",
    "<": "less",
    "<=": "at most",
    ">": "more",
    ">=": "at least",
    "in": "one of values with commas between",
    "contains": "a text or a list has it",
}


def expect_words(ctx: Context, before: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return what may stand behind the words `before`, each with a word about it; the guest is not asked."""
    kept = ctx.memo.get(RESULTS)
    known: dict[str, object] = dict.fromkeys(EXPECTABLE)
    if isinstance(kept, dict):
        known |= {name: result for name, (_, result) in kept.items()}
    for name in sorted(known):
        words = name.split()
        if list(before) == words[: len(before)] and len(words) > len(before):
            yield words[len(before)], f"answer of {name}" if known[name] is not None else f"runs {name}"
    for used in range(min(2, len(before)), 0, -1):
        name = " ".join(before[:used])
        if name in known:
            yield from _fields(known[name], before[used:])
            return


def _fields(value: object, steps: Sequence[str]) -> Iterator[tuple[str, str]]:
    for step in steps:
        if isinstance(value, list):
            value = value[int(step)] if step.isdigit() and int(step) < len(value) else next(iter(value), None)
        if isinstance(value, Mapping) and not step.isdigit():
            if step not in value:
                return
            value = value[step]
    if isinstance(value, list):
        value = next(iter(value), None)
    if isinstance(value, Mapping):
        yield from ((str(key), _short(found)) for key, found in value.items())
    elif value is not None:
        yield from OPERATORS.items()


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} entries"
    if isinstance(value, Mapping):
        return "fields"
    return escape(f"{value}")[:40] or "empty"
