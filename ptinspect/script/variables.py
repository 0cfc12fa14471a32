"""Variables of scripts: `${NAME}` and `${NAME:-DEFAULT}`, replaced by one word each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

from ptinspect.errors import UserError

NAME = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*"
"""What may be the name of a variable."""
_USE = r"\$\{([^{}]*)\}"
LONGEST = 65536
"""Longest line of a script, characters."""


def definition(text: str) -> tuple[str, str]:
    """Split `NAME=VALUE`. Raises UserError if it is none."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(NAME, name.strip()):
        raise UserError(f"{text!r} gives no variable a value", "--var NAME=VALUE, as in --var mem=1024")
    return name.strip(), value


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace the variables in a line; `$${` stands for `${` itself.

    A value is always one word, whatever is in it: it is quoted as the place where it stands wants it.
    Within single quotes nothing is replaced. Raises UserError if a variable has no value.
    """
    return _replace(text, lambda use: _value(use, variables))


def words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Replace the variables in a text and split it as commands are, without comments. Raises UserError."""
    try:
        return shlex.split(expand(text, variables), comments=True)
    except ValueError as error:
        raise UserError(f"{text}: {error}", "close the quotes") from error


def needed(text: str) -> frozenset[str]:
    """Return the variables that a line cannot do without. Raises UserError if a use is malformed."""
    return frozenset(name for name, default in _uses(text) if default is None)


def used(text: str) -> tuple[str, ...]:
    """Return the variables in a line, those with a default too. Raises UserError if a use is malformed."""
    return tuple(dict.fromkeys(name for name, _ in _uses(text)))


def _uses(text: str) -> list[tuple[str, str | None]]:
    """Return name and default of each use in a line."""
    found: list[tuple[str, str | None]] = []

    def note(use: str) -> str:
        found.append(_parts(use))
        return ""

    _replace(text, note)
    return found


def _parts(use: str) -> tuple[str, str | None]:
    """Split what stands between the braces into the name and the default."""
    name, colon, default = use.partition(":-")
    if not re.fullmatch(NAME, name):
        raise UserError(f"${{{use}}} names no variable", "${NAME}, ${NAME:-DEFAULT}; $${ is ${ itself")
    return name, default if colon else None


def _value(use: str, variables: Mapping[str, str]) -> str:
    name, default = _parts(use)
    value = variables.get(name, default)
    if value is None:
        raise UserError(
            f"${{{name}}} has no value",
            f"--var {name}=VALUE gives one, 'var {name} = VALUE' in the script too",
        )
    return value


def _replace(text: str, value_of: Callable[[str], str]) -> str:
    """Replace every use, tracking quotes as a shell does."""
    if "${" not in text:
        return text
    parts: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        use = re.compile(_USE).match(text, at) if quote != "'" else None
        if text.startswith("$${", at) and quote != "'":
            parts.append("${")
            at += 3
        elif use is not None:
            value = value_of(use[1])
            parts.append(_in_double_quotes(value) if quote else shlex.quote(value))
            at = use.end()
        elif char == "\\" and quote != "'":
            parts.append(text[at : at + 2])
            at += 2
        else:
            if char in "'\"" and quote in ("", char):
                quote = "" if quote else char
            parts.append(char)
            at += 1
    out = "".join(parts)
    if len(out) > LONGEST:
        raise UserError(f"a line of {len(out)} characters", f"at most {LONGEST}")
    return out


def _in_double_quotes(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
