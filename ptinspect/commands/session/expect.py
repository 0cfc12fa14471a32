"""`expect`: hold a value of a command's JSON result against what it should be."""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ptinspect.commands.framework.command import Call, Command, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import RESULTS
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.output.model import Note, Report, escape

NUMBER = re.compile(r"([+-]?)(0x[0-9a-f]+|[0-9]+)([km]?)", re.IGNORECASE)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
LEVEL = re.compile(r"level(-?[0-9])")
WORDS: Mapping[str, object] = {"true": True, "false": False, "null": None, "none": None}

ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
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
"""What may stand between path and value, and what it asks."""


_JOINED = re.compile(r"[\w.\[\]]*(?:[=!<>]=|<>|=[<>]?)[\w.]*")
"""What is meant as an operator, and is none: `=`, or one without spaces around it."""


@dataclass(frozen=True)
class Expectation:
    """Say what is expected."""

    left: tuple[str, ...]
    """Command words and fields on the left."""
    operation: str
    """One of OPERATORS, or empty for `PATH` alone: the value is to be true."""
    right: tuple[str, ...]
    """What stands on the right: one word, or several (command words and fields; the list of `in`)."""


def parse(words: Sequence[str]) -> Expectation:
    """Split the words of an expectation. Raises UserError if there is not one operator with two sides."""
    places = [i for i, word in enumerate(words) if word in OPERATORS]
    if not places:
        if not words:
            raise UserError("nothing is expected", "expect stack free >= 4096")
        if odd := next(filter(_JOINED.fullmatch, words), ""):
            hint = f"operators, with spaces around them: {' '.join(OPERATORS)}"
            raise UserError(f"an expectation is PATH OPERATOR VALUE: {odd!r} is none of these", hint)
        return Expectation(tuple(words), "", ())
    at = places[0]
    if len(places) > 1 or at == 0 or at == len(words) - 1:
        raise UserError("an expectation is PATH OPERATOR VALUE", f"operators: {' '.join(OPERATORS)}")
    return Expectation(tuple(words[:at]), words[at], tuple(words[at + 1 :]))


def fields_of(words: Sequence[str]) -> list[str]:
    """Return the steps of a path in either spelling: `stack free` and `stack.free`, `a[0]` and `a.0`."""
    return [part for word in words for part in re.split(r"[.\[\]]+", word) if part]


def number(text: str) -> int | None:
    """Read a number: decimal or hexadecimal, with K (1024) or M after it; None if it is not one."""
    found = NUMBER.fullmatch(text)
    if found is None:
        return None
    value = int(found[2], 0 if found[2][:2].lower() == "0x" else 10) * UNITS[found[3].lower()]
    return -value if found[1] == "-" else value


def literal(text: str) -> object:
    """Read a value as typed: a number, true, false, null, else the text itself."""
    value = number(text)
    return WORDS.get(text.lower(), text) if value is None else value


def plain(value: object) -> object:
    """Make a JSON value comparable: hexadecimal strings become numbers."""
    if isinstance(value, str) and value[:2].lower() == "0x":
        found = number(value)
        return value if found is None else found
    return value


def resolve(result: object, steps: Sequence[str], name: str, cpu: int = 0) -> object:
    """Follow a path through a result.

    `cpu` is the vCPU whose entry a list of vCPUs stands for where the path names none. Raises
    UserError if there is no such field, which lists those that there are.
    """
    at, path = result, name
    for step in steps:
        at = _step(at, step, path, cpu)
        path = f"{path}.{step}"
    return at


def _step(at: object, step: str, path: str, cpu: int) -> object:
    if isinstance(at, Mapping):
        if step in at:
            return at[step]
        inner = [value for key, value in at.items() if key in ("levels", "cpus") and isinstance(value, list)]
        for value in inner:
            found = _entry(value, step, cpu)
            if found is not None:
                return found[0]
        raise UserError(f"{path} has no field {step!r}", f"there are: {', '.join(map(str, at)) or 'none'}")
    if isinstance(at, list):
        found = _entry(at, step, cpu)
        if found is not None:
            return found[0]
        known = [str(e["name"]) for e in at if isinstance(e, Mapping) and "name" in e][:8]
        hint = f"by number 0 to {len(at) - 1}" if at else "it is empty"
        raise UserError(f"{path} has no entry {step!r}", ", ".join([hint, *known]))
    raise UserError(f"{path} is {at!r}: it has no field {step!r}")


def _entry(entries: list[Any], step: str, cpu: int) -> tuple[object] | None:
    """Return the entry that a step names, or the field of the only one; None if there is none."""
    if step.isdecimal():
        return (entries[int(step)],) if int(step) < len(entries) else None
    level = LEVEL.fullmatch(step)
    named = [
        e
        for e in entries
        if isinstance(e, Mapping)
        and ((level is not None and e.get("level") == int(level[1])) or e.get("name") == step)
    ]
    if len(named) == 1:
        return (named[0],)
    own = [e for e in entries if isinstance(e, Mapping) and e.get("cpu") == cpu]
    chosen = entries if len(entries) == 1 else own
    if len(chosen) == 1 and isinstance(chosen[0], Mapping) and step in chosen[0]:
        return (chosen[0][step],)
    return None


def holds(left: object, operation: str, right: object) -> bool:
    """Compare two values. Raises UserError for values that have no order, or hold nothing."""
    left, right = plain(left), plain(right)
    if operation in ("==", "!="):
        same = left == right and isinstance(left, bool) == isinstance(right, bool)
        return same is (operation == "==")
    if operation in ("in", "contains"):
        item, container = (left, right) if operation == "in" else (right, left)
        if isinstance(container, str):
            return str(item) in container
        if isinstance(container, list | tuple):
            return item in [plain(value) for value in container]
        if isinstance(container, Mapping):
            return item in container
        raise UserError(f"{container!r} holds nothing that could be looked for")
    for value in (left, right):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{value!r} is not a number, so {operation} does not apply to it")
    return ORDERS[operation](left, right)


GUARD = "guard"
"""Name in Guest.kept of what the last guard said (commands/stack/guard.py writes it)."""

DETAILS = """\
PATH begins with a command's name (summary, stack, kpti status), followed by fields of what the command
prints with --json, with spaces or dots between. An entry of a list is meant by its number, by its
name, by levelN, or not at all where there is only one, or one of the current vCPU.
The command's last answer at this stop is used; else it runs. Options have it run in any case: expect summary
--snap before leaves_ng == 0. `diff` and `guard` (the last `stack guard`) mean the last answer always.
OP is one of == != < <= > >= in contains; without OP the value must be true. VALUE is a number (decimal,
0x…, with K or M), true, false, null, a text or another PATH; the values of `in` have commas between.
Exit code 1 where it does not hold."""


@dataclass(frozen=True)
class ExpectResult:
    """Whether it held, and the two values."""

    ok: bool
    expectation: str
    operator: str
    left: object
    right: object


@command(
    "expect",
    group="Session",
    summary="Fail unless a value of a command's answer is as expected",
    example="expect stack free >= 4096",
    result=ExpectResult,
    details=DETAILS,
    passthrough=True,
)
def _expect(ctx: Context, *, line: str) -> Report:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"{line}: {error}", "close the quotes") from error
    expected = parse(words)
    left = _value(ctx, expected.left)
    right, ok = _right(ctx, expected)
    ok = left is True if not expected.operation else ok and holds(left, expected.operation, right)
    shown = " ".join(words)
    values = f"{left!r}" if not expected.operation else f"{left!r} {expected.operation} {right!r}"
    result = ExpectResult(ok, shown, expected.operation or "is", left, right)
    text = escape(f"{'holds' if ok else 'does not hold'}: {shown} ({values})")
    return Report(result, (Note(text, "good" if ok else "bad"),), 0 if ok else 1)


def _right(ctx: Context, expected: Expectation) -> tuple[object, bool]:
    """Return what stands on the right, and True."""
    words = expected.right
    if not expected.operation:
        return True, True
    if expected.operation == "in" and (len(words) > 1 or "," in words[0]):
        return [literal(part) for word in words for part in word.split(",") if part], True
    steps = fields_of(words)
    if len(steps) > 1 and _source(ctx, steps) is not None:
        return _value(ctx, words), True
    if len(words) > 1:
        raise UserError(f"{' '.join(words)!r} is no value and no path", "put a text into quotes")
    return literal(words[0]), True


def _source(ctx: Context, steps: Sequence[str]) -> tuple[str, int] | None:
    """Return the command that a path begins with and how many steps name it."""
    if steps[0] == "guard":
        return "guard", 1
    for used in range(min(3, len(steps)), 0, -1):
        if tuple(steps[:used]) in ctx.registry.commands:
            return " ".join(steps[:used]), used
    return None


def _value(ctx: Context, words: Sequence[str]) -> object:
    steps = fields_of(words)
    source = _source(ctx, steps) if steps else None
    if source is None:
        raise UserError(f"{' '.join(words)!r} begins with no command's name", "expect stack free >= 4096")
    name, used = source
    cpu = (
        ctx.guest.session.current_cpu if ctx.guest.session is not None and ctx.guest.state == "stopped" else 0
    )
    rest = list(words[used:]) if list(words[:used]) == steps[:used] else steps[used:]
    asked = any(map(_is_option, rest))
    kept = None if asked and name != "guard" else _last_answer(ctx, name)
    command = None if name == "guard" else ctx.registry.commands[tuple(name.split())]
    if kept is not None and not (command and _means_argument(command, rest, kept, cpu)):
        return resolve(kept, fields_of(rest), name, cpu)
    assert command is not None
    if not command.expectable:
        said = f"expect does not run '{name}'" if asked else f"'{name}' has not run at this stop"
        raise UserError(said, f"run it first; run by expect itself: {', '.join(_expectable(ctx))}")
    arguments, fields = _divided(command, rest)
    call = Call(command, command.parse(arguments, ""))
    report = ctx.registry.run(ctx, call, kept=not arguments)
    return resolve(report.result, fields_of(fields), name, cpu)


def _is_option(word: str) -> bool:
    return word[:1] == "-" and number(word) is None


def _means_argument(command: Command, words: list[str], kept: Mapping[str, object], cpu: int) -> bool:
    """Tell whether the first word is no field of the last answer, but an argument: `walk $sp pa`."""
    with suppress(UserError):
        resolve(kept, fields_of(words)[:1], command.name, cpu)
        return False
    with suppress(UserError):
        return command.expectable and all(_divided(command, words))
    return False


def _divided(command: Command, words: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments for a command and the fields after them: no more arguments than it needs, and
    all options. Raises UserError for words that it does not take.
    """
    least = max((at for at, word in enumerate(words, 1) if _is_option(word)), default=0)
    for used in range(least, len(words)):
        with suppress(UserError):
            command.parse(words[:used], "")
            return words[:used], words[used:]
    command.parse(words, "")
    return words, []


def _last_answer(ctx: Context, name: str) -> Mapping[str, object] | None:
    """Return the last answer of a command at this stop; None if it has not run, or only elsewhere."""
    if name == "guard":
        found = ctx.guest.kept.get(GUARD)
        if not isinstance(found, Mapping):
            raise UserError("no 'stack guard' has run on this guest", "stack guard")
        return found
    kept = ctx.guest.kept.get(RESULTS)
    entry = kept.get(name) if isinstance(kept, dict) else None
    if entry is not None and (name == "diff" or entry[0] == ctx.guest.stop_token):
        return entry[1].result  # type: ignore[no-any-return]
    return None


def _expectable(ctx: Context) -> list[str]:
    """Return the names of the commands that only look, which expect may run."""
    return [command.name for command in ctx.registry if command.expectable]


def expect_words(ctx: Context, before: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what may follow the words `before`, each with a word about it; the guest is not asked."""
    kept = ctx.guest.kept.get(RESULTS)
    known: dict[str, object] = dict.fromkeys(_expectable(ctx))
    if isinstance(kept, dict):
        known |= {name: report.result for name, (_, report) in kept.items()}
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
            value = (
                value[int(step)] if step.isdecimal() and int(step) < len(value) else next(iter(value), None)
            )
        if isinstance(value, Mapping) and not step.isdecimal():
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
