from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ptinspect.errors import UserError
from ptinspect.script.parse import MAX_BYTES, MAX_LINES, parse, parse_line, read_script, split
from ptinspect.script.statements import Line, OnStop, Repeat, Source, Var
from ptinspect.script.variables import definition, expand, needed, used, words


def parsed(text: str) -> list[object]:
    return list(parse("s", text.splitlines()))


def test_lines_have_places_and_comments_are_left_out() -> None:
    assert parsed("# a comment\n\n\tversion\n        foo bar # not cut here\n") == [
        Line("version", "s:3"),
        Line("foo bar # not cut here", "s:4"),
    ]


def test_a_backslash_continues_a_line() -> None:
    text = "launch --memory 512 \\\n    --smp 2 \\\n  -- -d int\nversion\nx a\\\\\n"
    assert parsed(text) == [
        Line("launch --memory 512 --smp 2 -- -d int", "s:1"),
        Line("version", "s:4"),
        Line("x a\\\\", "s:5"),
    ]


def test_blocks_by_indentation_and_on_one_line() -> None:
    text = """\
var n = 3
repeat ${n} as i:
    stepi

    repeat 2: x $pc; regs pc
  # a comment, indented as it likes
    version
on stop pa:0x1000: snap "a;b"; continue
on stop any: off
source other.pti
version
"""
    assert parsed(text) == [
        Var("n", "3", "s:1"),
        Repeat(
            "${n}",
            "i",
            (
                Line("stepi", "s:3"),
                Repeat("2", "", (Line("x $pc", "s:5"), Line("regs pc", "s:5")), "s:5"),
                Line("version", "s:7"),
            ),
            "s:2",
        ),
        OnStop("pa:0x1000", (Line('snap "a;b"', "s:8"), Line("continue", "s:8")), "s:8"),
        OnStop("any", (), "s:9"),
        Source("other.pti", "s:10"),
        Line("version", "s:11"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repeat 3:\nversion\n", "s:1: nothing belongs to this"),
        ("repeat 3:\n", "s:1: nothing belongs to this"),
        ("repeat 3:\n    version\n  version\n", "s:3: indented otherwise"),
        ("repeat 3:\n  version\n    version\n", "s:3: indented otherwise"),
        ("repeat 3\n  version\n", "s:1: 'repeat 3' lacks its colon"),
        ("on stop\n", "s:1: 'on stop' lacks its colon"),
        ("var a b\n", "s:1: 'var a b' is not complete"),
        ("source\n", "s:1: 'source' is not complete"),
        ("version\n  version\n", "s:2: indented, but it belongs to no block"),
        ("  version\nversion\n", "s:2: indented less than the first line"),
        ("repeat 3: version\n  version\n", "s:2: indented, but it belongs to no block"),
        ("repeat 3 as 1x: version\n", "s:1: '1x' is not a name"),
        ("var a-b = 3\n", "s:1: 'a-b' is not a name"),
        ("version \\\n", "s:1: the last line ends with a backslash"),
        ("repeat 1: " * 9 + "version", "s:1: more than 8 blocks"),
        ("version\n" * (MAX_LINES + 1), f"s:{MAX_LINES + 1}: more than {MAX_LINES} lines"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(text)
    assert str(caught.value).startswith(message)


def test_a_pipe_is_parsed_line_by_line() -> None:
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in ("version\n", "repeat 2:\n", "  version\n", "status\n", "quit\n"):
            taken.append(line)
            yield line

    statements = parse("stdin", lines())
    assert next(statements) == Line("version", "stdin:1")
    assert len(taken) == 1
    assert next(statements) == Repeat("2", "", (Line("version", "stdin:3"),), "stdin:2")
    assert len(taken) == 4


def test_a_typed_line() -> None:
    assert parse_line(" version ") == Line("version", "")
    assert parse_line("repeat 2: stepi") == Repeat("2", "", (Line("stepi"),))
    with pytest.raises(UserError, match=r"^nothing belongs to this"):
        parse_line("repeat 2:")


def test_a_script_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the script"):
        read_script(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read the script"):
        read_script(tmp_path / "a\0b")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_script(tmp_path / "b")
    (tmp_path / "big").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_script(tmp_path / "big")


def test_semicolons_within_quotes_divide_nothing() -> None:
    assert split('a \'b;c\' ; d\\;e; "f;\\";g"') == ["a 'b;c'", "d\\;e", '"f;\\";g"']
    assert split("a; b # c; d") == ["a", "b"]
    assert split("a#b; c") == ["a#b", "c"]


VALUES = {"mem": "1024", "odd": "a b'c", "back": 'x"\\y', "cell.cpu": "max"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("launch --memory ${mem}", ["launch", "--memory", "1024"]),
        ("save x ${odd}/f.npz", ["save", "x", "a b'c/f.npz"]),
        ('save x "${odd}/${back}"', ["save", "x", "a b'c/x\"\\y"]),
        ("echo '${mem}' $sp $${mem} \\${mem}", ["echo", "${mem}", "$sp", "${mem}", "${mem}"]),
        ("x ${none:-a b} ${mem:-2} ${none:-}", ["x", "a b", "1024", ""]),
        ("x ${cell.cpu}", ["x", "max"]),
    ],
)
def test_a_variable_is_one_word_wherever_it_stands(text: str, expected: list[str]) -> None:
    assert words(text, VALUES) == expected


def test_uses_that_cannot_be_replaced() -> None:
    with pytest.raises(UserError, match=r"\$\{none\} has no value"):
        expand("x ${none}", VALUES)
    with pytest.raises(UserError, match="names no variable"):
        expand("x ${a b}", VALUES)
    with pytest.raises(UserError, match="characters"):
        expand("${a}" * 100, {"a": "x" * 1000})
    with pytest.raises(UserError, match="No closing quotation"):
        words("x 'a", {})
    with pytest.raises(UserError, match="gives no variable a value"):
        definition("mem")
    assert definition("a=b=c") == ("a", "b=c")
    assert needed("${a} ${b:-} '${c}' $${d}") == {"a"}
    assert used("${a} ${b:-} '${c}' $${d} ${a}") == ("a", "b")


def test_the_lines_of_a_file_are_those_of_an_editor(tmp_path: Path) -> None:
    path = tmp_path / "s.pti"
    path.write_bytes("\ufeffversion\r\nsnap a\u2028b\x0cc\rstatus\n".encode())
    assert read_script(path, "s") == (
        Line("version", "s:1"),
        Line("snap a\u2028b\x0cc", "s:2"),
        Line("status", "s:3"),
    )
