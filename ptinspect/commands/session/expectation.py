"""Expectations: `PATH OP VALUE` on the JSON results of commands."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptinspect.errors import UserError

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
    if step.isdigit():
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
