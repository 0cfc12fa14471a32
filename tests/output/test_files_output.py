from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ptinspect.errors import UserError
from ptinspect.output import json as json_output
from ptinspect.output.files import write
from ptinspect.output.model import Column, Note, Report, Styled, Table

REPORT = Report(
    {"count": 2, "rows": [{"va": "0x1000"}]},
    (
        Note("Heading", "title"),
        Table(
            (Column("va"), Column("note", "right")), [("0x1000", 'a "b", c|d'), (Styled("x", "bad"), "")], "T"
        ),
        Table((Column("z"),), [], empty="none"),
    ),
)


def test_json_file(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == REPORT.result


def test_csv_file(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "r.CSV")
    rows = list(csv.reader((tmp_path / "r.CSV").open(newline="")))
    assert rows == [["va", "note"], ["0x1000", 'a "b", c|d'], ["x", ""], [], ["z"]]


def test_markdown_file(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text() == (
        '## Heading\n\n### T\n\n| va | note |\n| --- | ---: |\n| 0x1000 | a "b", c\\|d |\n| x |  |\n\nnone\n'
    )


def test_text_file_has_no_colours(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "r.txt")
    assert (tmp_path / "r.txt").read_text().splitlines()[0] == "Heading"


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown suffix '\.doc'"):
        write(REPORT, tmp_path / "r.doc")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write(REPORT, tmp_path / "no" / "r.json")


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "r.txt"
    target.write_text("old")
    write(REPORT, target)
    assert target.read_text().startswith("Heading")
    assert [p.name for p in tmp_path.iterdir()] == ["r.txt"]


def test_answers_are_one_line_of_json() -> None:
    report = Report({"n": np.int64(3), "list": np.array([1, 2])}, exit_code=1)
    line = json_output.answer("diff", report, "diff a b")
    assert "\n" not in line
    assert json.loads(line) == {
        "command": "diff",
        "ok": False,
        "result": {"n": 3, "list": [1, 2]},
        "line": "diff a b",
    }


def test_failures_are_one_line_of_json() -> None:
    line = json_output.failure("walk", "memory", "two\nlines", "hint")
    assert "\n" not in line
    assert json.loads(line)["error"] == {"kind": "memory", "message": "two\nlines", "hint": "hint"}
