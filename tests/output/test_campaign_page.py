"""A campaign on the HTML page: the same tables as in the terminal, a bar for each cell, and no markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_page import data_of, drawn

from ptinspect.commands.session.campaign_view import COLOURS, bars, picture
from ptinspect.output.html import Page
from ptinspect.output.model import Column, Note, Report, Styled, Table

EVIL = "<img src=x onerror=alert(1)><b>cell</b>"
COUNTS = {"1": {"pass": 3, "fail": 0}, EVIL: {"pass": 1, "hang": 2}, "512": {"crash": 1}}


def report() -> Report:
    cells = Table(
        (Column("cell"), Column("runs", "right"), Column("passed", "right")),
        [(EVIL, "3", Styled("1", "bad")), ("1", "3", "3")],
        "runs by cell",
    )
    body = (Note(f"7 runs, {EVIL}"), cells, Table((Column("empty"),), [], empty="nothing"), Note(""))
    return Report({}, body)


def test_tables_and_notes_are_those_of_the_report() -> None:
    drawing = picture(report(), "campaign", COUNTS)
    assert drawing["facts"] == [f"7 runs, {EVIL}"]
    (table,) = drawing["tables"]
    assert table["heads"] == ["cell", "runs", "passed"]
    assert table["rows"] == [[EVIL, "3", "1"], ["1", "3", "3"]]
    assert table["numeric"] == [1, 2]


def test_bars_lie_in_one_order_whatever_comes_first() -> None:
    drawing = bars({"a": {"odd": 1, "hang": 2, "pass": 1, "fail": 0}, "b": {"crash": 1}})
    assert [series["name"] for series in drawing] == ["pass", "crash", "hang", "odd"]
    assert [series["y"] for series in drawing] == [[1, 0], [0, 1], [2, 0], [1, 0]]
    assert drawing[0]["marker"]["color"] == COLOURS["pass"]
    assert bars({}) == []


def test_cells_with_long_equal_beginnings_stay_apart() -> None:
    (series,) = bars({"x" * 200 + end: {"pass": 1} for end in "ab"})
    assert len(set(series["x"])) == 2
    assert max(map(len, series["x"])) < 150


@pytest.mark.live
def test_a_browser_draws_bars_and_tables(tmp_path: Path) -> None:
    page = Page("campaigns", campaigns=[picture(report(), f"of {EVIL}", COUNTS)])
    path = tmp_path / "page.html"
    path.write_text(page.text())
    assert len(data_of(path)["campaigns"]) == 1
    script = """
    const home = document.getElementById("campaign0"), plot = home.querySelector(".js-plotly-plot");
    return { title: home.querySelector("h2").textContent, facts: home.querySelector(".facts").textContent,
      rows: [...home.querySelectorAll("tbody tr")].map((row) => [...row.children].map((c) => c.textContent)),
      axis: plot._fullLayout.xaxis.type, names: plot._fullData.map((s) => s.name),
      ticks: [...plot.querySelectorAll(".xtick")].map((t) => t.textContent),
      heights: plot._fullData.map((s) => [...s.y]), bars: plot.querySelectorAll(".bars .point path").length,
      colour: plot._fullData[0].marker.color, images: document.querySelectorAll("main img, main b").length };
    """
    said = drawn(path, tmp_path, script)
    assert (said["ready"], said.get("error")) == ("yes", None), said
    assert said["title"] == f"of {EVIL}"
    assert said["facts"] == f"7 runs, {EVIL}"
    assert said["rows"] == [[EVIL, "3", "1"], ["1", "3", "3"]]
    assert (said["axis"], said["names"]) == ("category", ["pass", "crash", "hang"])
    assert said["ticks"] == ["1", EVIL, "512"]
    assert said["heights"] == [[3, 1, 0], [0, 0, 1], [0, 2, 0]]
    assert said["bars"] >= 4
    assert said["images"] == 0
