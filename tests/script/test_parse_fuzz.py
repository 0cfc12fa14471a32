"""Whatever a script holds: it is understood, or refused with its place, and soon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes import context
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.commands.framework.preflight import Preflight
from ptinspect.errors import UserError
from ptinspect.script.parse import parse, parse_line
from ptinspect.script.record import lines_of
from ptinspect.script.statements import ScriptError, Statement

REGISTRY = context().registry
SIGNS = [*"${}:;#'\"\\=-", "\n", "\n    ", "\n\t", "    ", " ", ":-", "\0", "\r", "\u2028", "é"]
WORDS = ["repeat ", "on stop ", "on failure", "var ", "source ", " as ", "off", "any", "a", "3", "version"]
PIECES = st.sampled_from([*SIGNS, *WORDS, "expect "])


def inside(statements: Iterator[Statement]) -> Iterator[Statement]:
    for statement in statements:
        yield statement
        yield from inside(iter(getattr(statement, "body", ())))


@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_text(text: str) -> None:
    try:
        statements = list(parse("s", text.split("\n")))
    except ScriptError as error:
        assert error.place.startswith("s:")
        return
    assert all(each.place.startswith("s:") for each in inside(iter(statements)))
    again = [line for statement in statements for line in lines_of(statement)]
    if not any("\n" in line or line.endswith("\\") for line in again):
        lines = [line for statement in parse("s", again) for line in lines_of(statement)]
        assert lines == again
    try:
        Preflight(REGISTRY, {}).check(statements)
    except ScriptError as error:
        assert error.place


LONG = 1 << 19


@pytest.mark.parametrize(
    "text",
    [
        "on stop a" + " " * LONG + "b",
        "on stop" + " :" * LONG,
        "on stop a:b" * (LONG >> 3),
        "repeat 3" + " " * LONG + "x",
        "repeat " + "a" * LONG,
        "var a" + " " * LONG + "b",
        "repeat 2: a" + "#a" * LONG,
        "repeat 2: a" + " ;" * LONG,
        "version " + "${" * LONG,
        "on failure" + " " * LONG + "x",
    ],
    ids=range(10),
)
def test_long_lines_take_no_longer_than_they_are(text: str) -> None:
    try:
        Preflight(REGISTRY, {}).check([parse_line(text)])
    except UserError as error:
        assert error.message
