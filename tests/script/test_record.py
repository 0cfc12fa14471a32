"""Scripts made of what was run: what they hold is what was run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptinspect.errors import UserError
from ptinspect.script.parse import parse
from ptinspect.script.record import Record, definition_of, lines_of
from ptinspect.script.statements import Line, OnFailure, OnStop, Repeat, Source, Statement, Var
from ptinspect.script.variables import words

LINES = st.sampled_from(["version", "x/8gx pa:0x1000", "snap 'a; b'", "walk ${a}", "gdb p 1 # 2"]).map(Line)
STATEMENTS: st.SearchStrategy[Statement] = st.recursive(
    LINES
    | st.builds(Var, st.sampled_from(["a", "b.c"]), st.sampled_from(["1", "'a b'", ""]))
    | st.builds(Source, st.just("@kpti-diff")),
    lambda inner: (
        st.builds(
            Repeat,
            st.just("3"),
            st.sampled_from(["", "n"]),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
        )
        | st.builds(OnFailure, st.lists(inner, max_size=3).map(tuple))
        | st.builds(OnStop, st.just("any"), st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=8,
)


def without_places(statement: Statement) -> Statement:
    match statement:
        case Line(text):
            return Line(text)
        case Var(name, value):
            return Var(name, value)
        case Source(path):
            return Source(path)
        case Repeat(count, counter, body):
            return Repeat(count, counter, tuple(map(without_places, body)))
        case OnStop(where, body):
            return OnStop(where, tuple(map(without_places, body)))
        case OnFailure(body):
            return OnFailure(tuple(map(without_places, body)))


@given(st.lists(STATEMENTS))
def test_what_is_written_is_read_as_the_same(statements: list[Statement]) -> None:
    text = [line for statement in statements for line in lines_of(statement)]
    assert [without_places(each) for each in parse("s", text)] == statements


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"])))
def test_a_definition_gives_this_very_value(value: str) -> None:
    (statement,) = parse("s", [definition_of("x", value)])
    assert isinstance(statement, Var)
    assert words(statement.value, {}) == [value]


def test_what_succeeded_is_kept_and_what_failed_is_a_comment(tmp_path: Path) -> None:
    record, path = Record(), tmp_path / "s.pti"
    record.note(Line("version"), 0, "", {})
    record.begin(path, ["again"], everything=True, force=False)
    record.note(Line("walk ${at} ${l:-3}"), 0, "", {"at": "a b", "other": "1"})
    record.note(Line("x ${at}"), 0, "", {"at": "a b"})
    record.note(Var("mem", "1"), 0, "", {"mem": "512"})
    record.note(Repeat("2", "n", (Line("x ${n}"),)), 2, "no such\nthing", {"n": "1"})
    record.note(Line("gdb echo \\"), 0, "", {})
    record.note(Line("x ${new}"), 0, "", {"new": "a\nb"})
    record.end()
    record.end()
    record.note(Line("version"), 0, "", {})
    assert path.read_text().splitlines() == [
        "# again",
        "version",
        "var at = 'a b'",
        "walk ${at} ${l:-3}",
        "x ${at}",
        "var mem = 512",
        "# exit code 2: no such",
        "# repeat 2 as n:",
        "#     x ${n}",
        "# a script cannot hold this:",
        "# gdb echo \\",
        "# a script cannot hold this:",
        "# x ${new}",
    ]
    assert record.written == 7
    list(parse("s", path.read_text().splitlines()))


def test_variables_of_a_script_that_was_called_are_kept(tmp_path: Path) -> None:
    record, path = Record(), tmp_path / "s.pti"
    record.begin(path, ["again"], everything=False, force=False)
    record.note(Source("@kpti-diff"), 0, "", {"mem": "512", "cpu": ""})
    assert path.read_text().splitlines()[1:] == ["var mem = 512", "var cpu = ''", "source @kpti-diff"]


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    record, path = Record(), tmp_path / "s.pti"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        record.begin(path, ["again"], everything=False, force=False)
    with pytest.raises(UserError, match="cannot write"):
        record.begin(tmp_path / "none" / "s", [], everything=False, force=False)
    with pytest.raises(UserError, match="cannot write"):
        record.begin(tmp_path / "a\0b", [], everything=False, force=False)
    assert path.read_text() == "mine"
    record.begin(path, ["again"], everything=False, force=True)
    with pytest.raises(UserError, match="already"):
        record.begin(tmp_path / "other", [], everything=False, force=False)
    record.end()
