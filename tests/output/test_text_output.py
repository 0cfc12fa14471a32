from __future__ import annotations

import subprocess
import sys

import pytest

from ptinspect.output.model import Column, Note, Report, Styled, Table, escape
from ptinspect.output.text import plain, render, wants_colour, wrap

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


def test_a_word_too_long_to_be_folded_goes_below_its_row_alone() -> None:
    path = "/a" * 30
    table = Table((Column(""), Column("")), [("guest", "stopped"), ("kernel", path), ("note", "n " * 40)])
    assert render(Report({}, (table,)), width=50).splitlines() == [
        "guest   stopped",
        "kernel",
        f"    {path}",
        "note    " + " ".join("n" * 21),
        "        " + " ".join("n" * 19),
    ]


@pytest.mark.parametrize("width", range(1, 6))
def test_a_terminal_of_almost_no_width_shows_something(width: int) -> None:
    wide = Table((Column(""), Column("")), [("b", Styled("+", "bad")), ("a " * 9, "")])
    assert "+" in render(Report({}, (wide, TABLE, Note("word " * 9))), width=width)


def test_columns_that_do_not_fit_go_below_with_their_titles() -> None:
    columns = (Column("address"), Column("count", "right"), Column("region"), Column("raw"))
    rows = [("0x" + "f" * 16, "7", Styled("text", "good"), "0x" + "1" * 16), ("0x1", "8", "", "0x2")]
    report = Report({}, (Table(columns, rows, "Title"),))
    shown = render(report, width=40)
    assert shown.splitlines() == [
        "Title",
        "address             count  region",
        "0xffffffffffffffff      7  text",
        "    raw 0x1111111111111111",
        "0x1                     8",
        "    raw 0x2",
    ]
    assert plain(render(report, width=40, colour=True)) == shown
    assert max(map(len, render(report, width=30).splitlines())) <= 30
    assert render(report, width=60) == render(report)


def shown(table: Table, width: int) -> list[str]:
    return render(Report({}, (table,)), width=width).splitlines()


def test_a_column_apart_is_in_the_row_only_where_that_fits() -> None:
    columns = (Column("level"), Column("raw"), Column("attributes", apart=True))
    rows = [("pgd", "0x1", ""), ("pud", "0x3", Styled("nG AF", "changed"))]
    wide = ["level  raw  attributes", "pgd    0x1", "pud    0x3  nG AF"]
    below = ["level  raw", "pgd    0x1", "pud    0x3", "level  attributes", "pud    nG AF"]
    table = Table(columns, rows)
    assert shown(table, 22) == wide
    assert shown(table, 21) == shown(table, 0) == below, "a file has it below, however long its lines"
    assert shown(Table(columns, rows[:1]), 80) == shown(Table(columns, rows[:1]), 0) == below[:2]


def test_a_heading_stands_above_the_rows_that_have_it_where_there_is_no_room() -> None:
    columns = (Column("from"), Column("region", heading=True))
    rows = [("0x1", "linear map"), ("0x2", "linear map"), ("0x3", "text"), ("0x4", "linear map")]
    assert shown(Table(columns, rows), 16)[1] == "0x1   linear map"
    assert shown(Table(columns, rows), 15) == [
        "from", "linear map:", "0x1", "0x2", "text:", "0x3", "linear map:", "0x4"
    ]  # fmt: skip


def test_a_heading_stands_above_rows_that_do_not_fit_either() -> None:
    columns = (Column("from"), Column("nG"), Column("kind"), Column("region", heading=True))
    rows = [("0x1", "nG", "page", "text"), ("0x2", "", "block", "text")]
    lines = shown(Table(columns, rows), 12)
    assert lines == [
        "from  nG",
        "text:",
        "0x1   nG",
        "    kind",
        "      page",
        "0x2",
        "    kind",
        "      block",
    ]
    assert shown(Table(columns, rows), 7)[:4] == ["from", "text:", "0x1", "    nG"], "it is said once"


def test_what_all_rows_have_in_common_is_said_once_if_the_rest_fits_then() -> None:
    columns = (Column("pid"), Column("end mark"), Column("note"), Column("how"))
    rows = [("1", "intact", "", "saved"), ("2", "intact", "", "live")]
    assert len(shown(Table(columns, rows), 26)) == 3
    once = ["pid  how", "1    saved", "2    live", "in all rows: end mark", "  intact"]
    assert shown(Table(columns, rows), 22) == once
    assert "in all rows" not in "".join(shown(Table(columns, rows[:1]), 22))
    bad = [(pid, Styled("GONE", "bad"), *others) for pid, _, *others in rows]
    assert "".join(shown(Table(columns, bad), 22)).count("GONE") == 2, "what is bad stays where it is"


def test_rows_stand_side_by_side_as_far_as_there_is_room() -> None:
    table = Table((Column(""), Column("")), [(f"x{n}", f"0x{n}") for n in range(5)], across=3)
    wide = ["x0  0x0  x2  0x2  x4  0x4", "x1  0x1  x3  0x3"]
    assert shown(table, 0) == shown(table, 25) == wide
    assert shown(table, 24) == ["x0  0x0  x3  0x3", "x1  0x1  x4  0x4", "x2  0x2"]
    assert shown(table, 15) == [f"x{n}  0x{n}" for n in range(5)]


def test_a_column_without_title_and_cells_takes_no_room() -> None:
    name = f"({'b' * 20})"
    table = Table((Column("#"), Column("pc"), Column("")), [("0", "0x1 (a)", ""), ("1", f"0x2 {name}", "")])
    assert shown(table, 28) == ["#  pc", "0  0x1 (a)", "1  0x2", f"   {name}"]


def test_one_long_word_in_front_does_not_move_all_the_others() -> None:
    rows = [("--a", "meaning " * 6), ("--regime el1|el2|ttbr0_el1", "whose rules " * 4)]
    lines = shown(Table((Column("argument"), Column("meaning")), rows), 40)
    assert lines[1].startswith("--a  ") and lines.count("--regime el1|el2|ttbr0_el1") == 1
    assert len({line.index("meaning") for line in lines if "meaning" in line}) == 1
    assert {line.index("whose") for line in lines if "whose" in line} >= {lines[0].index("meaning")}
    assert max(map(len, lines)) <= 40


def test_a_few_words_in_parentheses_stay_together() -> None:
    assert wrap("the root of this one (guest, cpu 0) is", 30) == [
        "the root of this one",
        "  (guest, cpu 0) is",
    ]
    long = f"a ({'many words ' * 4})"
    assert wrap(long, 30)[0].startswith("a (many")


def test_what_goes_on_in_a_list_of_one_column_is_indented() -> None:
    table = Table((Column(""),), [("one two three",), (Styled("four", "bad"),)])
    assert shown(table, 8) == ["one two", "  three", "four"]
    assert shown(table, 0) == ["one two three", "four"]


def test_a_spare_column_is_left_out_where_there_is_no_room() -> None:
    columns = (Column("a"), Column("sp", spare=True), Column("b"))
    report = Report({}, (Table(columns, [("x" * 10, "y" * 10, "z" * 10)]),))
    assert render(report, width=34).split() == ["a", "sp", "b", "x" * 10, "y" * 10, "z" * 10]
    assert render(report, width=33).split() == ["a", "b", "x" * 10, "z" * 10]
    two = (Column("a"), Column("sp", spare=True), Column("free", spare=True))
    table = Table(two, [("x" * 10, "y" * 10, "z" * 10)])
    assert [shown(table, width)[0].split() for width in (34, 33, 21)] == [
        ["a", "sp", "free"],
        ["a", "free"],
        ["a"],
    ]


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


def test_tabulate_is_whole_for_others_in_the_same_process() -> None:
    """What it needs for HTML and for data classes is imported when it is asked for these."""
    code = """if True:
        import sys
        from ptinspect.output.model import Column, Report, Table
        from ptinspect.output.text import render
        assert render(Report({}, (Table((Column("a"),), [("1",)]),))) == "a\\n1\\n"
        assert not {"dataclasses", "html", "importlib.metadata", "wcwidth"} & set(sys.modules)
        from dataclasses import dataclass
        from tabulate import tabulate
        @dataclass
        class Row:
            count: int
        assert tabulate([Row(1)], headers="keys", tablefmt="plain") == "  count\\n      1"
        assert "&lt;" in tabulate([["<"]], tablefmt="html")
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_beginning_of_a_function_needs_no_offset() -> None:
    said = "0xffff800010081000 (_stext+0x0); veth_xmit+0x0 [veth]; a+0x0/0xb0; a+0x04; 5 +0x0"
    kept = "0xffff800010081000 (_stext); veth_xmit [veth]; a+0x0/0xb0; a+0x04; 5 +0x0"
    table = Table((Column("place"), Column("n", "right")), [(Styled("f+0x0", "bad"), "1"), ("f+0x4", "2")])
    assert render(Report({}, (Note(said), table))) == f"{kept}\nplace  n\nf      1\nf+0x4  2\n"
