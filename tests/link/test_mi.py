from __future__ import annotations

import pytest

from ptinspect.errors import MiError
from ptinspect.link.gdb.mi import (
    Line,
    c_string,
    parse_payload,
    quote,
    split_line,
    string_field,
    unescape,
    well_formed,
)


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (b'12^done,value="5"', Line(12, "^", "done", b'value="5"')),
        (b'*stopped,reason="x"', Line(None, "*", "stopped", b'reason="x"')),
        (b'~"a,b\\n"', Line(None, "~", "", b'"a,b\\n"')),
    ],
)
def test_records(line: bytes, record: Line) -> None:
    assert split_line(line) == record


@pytest.mark.parametrize("line", [b"", b"(gdb) ", b"Segmentation fault", b"12 ^done"])
def test_what_is_no_record_has_no_kind(line: bytes) -> None:
    assert split_line(line).kind == ""


def test_c_strings() -> None:
    assert c_string(rb'"a\tb\n\"q\" \\ \303\251"') == 'a\tb\n"q" \\ é'
    assert c_string(rb'"\377"') == "\N{REPLACEMENT CHARACTER}"


def test_quote_is_undone_by_unescape() -> None:
    text = 'echo "a\\n"\tb'
    assert unescape(quote(text)[1:-1].encode()).decode() == text


def test_string_field_takes_the_first_field_only() -> None:
    assert string_field(b'data="abc",more="d"', b"data") == b"abc"
    assert string_field(b'more="d",data="abc"', b"data") is None
    assert string_field(b'data="abc', b"data") is None


@pytest.mark.parametrize(
    "body",
    [
        b'a="1"',
        b'a={b="}",c=[]}',
        b'a=[{x="1"},{x="\\""}]',
        b'a=["1","2"],b="x=y"',
        b"",
        b'a="[{",b={c="}\\"]",d=[]},e=[{f="x"},g={}],h=["x","y"]',
    ],
)
def test_whole_records_are_well_formed(body: bytes) -> None:
    assert well_formed(body)


@pytest.mark.parametrize(
    "body", [b'a=[{x="1"', b"a=", b'a="1', b'a={b="1"]', b'a="1"}', b'a=[b=,c="1"]', b'a="\\"', b"a=\\n"]
)
def test_cut_records_are_not(body: bytes) -> None:
    assert not well_formed(body)
    with pytest.raises(MiError):
        parse_payload(Line(1, "^", "done", body))


def test_payload_of_a_small_record() -> None:
    line = split_line(b'1^done,bkpt={number="1",addr="0x10",thread="2",thread="2"},l=["a","b"]')
    payload = parse_payload(line)
    assert payload["bkpt"]["addr"] == "0x10"
    assert payload["l"] == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [
        b'"a=[,=\\"x"',
        b'a="x"b="y"',
        b'a="x",,b="y"',
        b'a=[{b="x"]',
        b"a=[",
        b'a={"x"}',
        b"a=",
        b'"x"',
        b'a="x",',
        b'a=[b="x"="y"]',
        b'"=""[=[=[\\"x"b="a{b"',
        b"a=" + b"[" * 50 + b"]" * 50,
    ],
)
def test_what_is_no_list_of_results(body: bytes) -> None:
    """pygdbmi's parser does not return from some of these."""
    assert not well_formed(body)
