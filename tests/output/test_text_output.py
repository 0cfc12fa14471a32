from __future__ import annotations

import pytest

from ptinspect.output.model import Column, Note, Report, Styled, Table, escape
from ptinspect.output.text import plain, render, wants_colour

TABLE = Table(
    (Column("name"), Column("count", "right"), Column("words")),
    [("a", "1", "one two three four five six seven"), (Styled("b", "bad"), "200", "x")],
    "Title",
)


def test_a_table_is_aligned() -> None:
    assert render(Report({}, (TABLE,))) == (
        "Title\nname  count  words\na         1  one two three four five six seven\nb       200  x\n"
    )


def test_colours_do_not_move_columns() -> None:
    report = Report({}, (TABLE, Note("note", "good")))
    coloured = render(report, colour=True)
    assert "\x1b[31;1mb\x1b[0m" in coloured
    assert "\x1b[32mnote\x1b[0m" in coloured
    assert plain(coloured) == render(report)


def test_the_last_column_is_folded_to_the_width() -> None:
    lines = render(Report({}, (TABLE,)), width=40).splitlines()
    assert max(len(line) for line in lines) <= 40
    assert " ".join(" ".join(lines).split()).endswith("one two three four five six seven b 200 x")


def test_paragraphs_are_wrapped_only_with_a_width() -> None:
    words = "  " + "word " * 40
    report = Report({}, (Note(words),))
    assert render(report) == words + "\n"
    lines = render(report, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == words.strip()


def test_a_table_without_rows_says_so() -> None:
    table = Table((Column("a"),), [], "Title", empty="no snapshots")
    assert render(Report({}, (table,))) == "Title\nno snapshots\n"


def test_a_table_without_titles_has_no_empty_line() -> None:
    assert render(Report({}, (Table((Column(""), Column("")), [("a", "b")]),))) == "a  b\n"


def test_numbers_stay_as_they_are() -> None:
    table = Table((Column("n"),), [("0x10",), ("1e5",), ("007",)])
    assert render(Report({}, (table,))).split() == ["n", "0x10", "1e5", "007"]


@pytest.mark.parametrize(
    ("environment", "terminal", "choice", "wanted"),
    [
        ({}, True, None, True),
        ({}, False, None, False),
        ({"NO_COLOR": "1"}, True, None, False),
        ({"NO_COLOR": ""}, True, None, True),
        ({"TERM": "dumb"}, True, None, False),
        ({"NO_COLOR": "1"}, False, True, True),
        ({}, True, False, False),
    ],
)
def test_colour(environment: dict[str, str], terminal: bool, choice: bool | None, wanted: bool) -> None:
    assert wants_colour(environment, terminal, choice) is wanted


def test_escape_keeps_the_guest_from_the_terminal() -> None:
    assert escape("a\x1b[2J\r\n\x07\x9bé") == "a\\x1b[2J\\r\\n\\x07\\x9bé"
