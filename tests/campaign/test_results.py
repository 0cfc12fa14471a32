"""Files of results that somebody else wrote, or that a machine left behind half written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptinspect.campaign import passing_runs, results
from ptinspect.campaign.passing_runs import Good, Step, first_difference
from ptinspect.campaign.plan import Plan, cells_of
from ptinspect.campaign.results import Record, Results, append, begin, load, mend
from ptinspect.campaign.runner import left
from ptinspect.campaign.statistics import merge
from ptinspect.commands.session.campaign_view import campaign_report
from ptinspect.errors import UserError
from ptinspect.output.text import render

PLAN = Plan("s.pti", "0", 4, cells_of(["smp=1,2"]))


def record(run: int, outcome: str, attempt: int = 1, **fields: Any) -> Record:
    cell = dict(PLAN.all_runs()[run - 1].cell.values)
    return Record(run, cell, attempt, outcome, seconds=float(run), **fields)


def written(folder: Path, *records: Record) -> Path:
    folder.mkdir(exist_ok=True)
    begin(folder, PLAN, (1, 1), {"cores": 2})
    for each in records:
        append(folder, each)
    return folder / results.FILE


def test_what_is_written_is_read(tmp_path: Path) -> None:
    records = (record(1, "pass", deepest=700), record(2, "fail", message="a\nb\x1b", final=False))
    written(tmp_path, *records)
    read = load(tmp_path)
    assert (read.plan, read.records, read.shard, read.cut) == (PLAN, records, (1, 1), False)
    assert read.host == {"cores": 2}


def test_half_a_last_line_is_left_out_said_and_mended(tmp_path: Path) -> None:
    path = written(tmp_path, record(1, "pass"), record(2, "pass"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    read = load(tmp_path)
    assert (len(read.records), read.cut) == (1, True)
    report = campaign_report(merge([read]), [])
    assert "the last line was half written" in render(report)
    mend(tmp_path)
    append(tmp_path, record(3, "pass"))
    assert [each.run for each in load(tmp_path).records] == [1, 3]


DAMAGE: Mapping[str, tuple[bytes, str]] = {
    "no JSON": (b"{nonsense}\n", ":3: no JSON"),
    "no object": (b"[1]\n", ":3: no JSON object"),
    "deep": (b"[" * 200_000 + b"\n", ":3: no JSON"),
    "long": (b'{"run": "' + b"x" * (results.MAX_LINE + 9) + b'"}\n', ":3: a line of more than"),
    "no fields": (b"{}\n", ":3: no result of a campaign"),
    "an outcome of its own": (b'{"run": 1, "cell": {}, "attempt": 1, "outcome": "fine"}\n', ":3: no result"),
    "a word for a number": (
        b'{"run": 1, "cell": {}, "attempt": 1, "outcome": "pass", "seconds": "1"}\n',
        ":3: no result",
    ),
    "a time without end": (
        b'{"run": 1, "cell": {}, "attempt": 1, "outcome": "pass", "seconds": NaN}\n',
        ":3: no result",
    ),
    "a depth that is text": (
        b'{"run": 1, "cell": {}, "attempt": 1, "outcome": "pass", "deepest": "1"}\n',
        ":3: no result",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_line_with_its_place(what: str, tmp_path: Path) -> None:
    path = written(tmp_path, record(1, "pass"))
    data, said = DAMAGE[what]
    with path.open("ab") as file:
        file.write(data)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert said in caught.value.message
    assert len(caught.value.message) < 400 and "\n" not in caught.value.message


def test_other_versions_formats_and_plans_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    header = json.loads(path.read_text())
    for change, said in (
        ({"version": 2}, "of version 2"),
        ({"format": "else"}, "no results of a campaign"),
        ({"plan": {**header["plan"], "runs": 10**9}}, "1000000000 runs"),
        ({"plan": None}, "the plan is not an object"),
        ({"shard": [0, "x"]}, "not a shard"),
    ):
        path.write_text(json.dumps({**header, **change}) + "\n")
        with pytest.raises(UserError, match=said):
            load(tmp_path)
    path.write_text("")
    with pytest.raises(UserError, match="no header"):
        load(tmp_path)


def test_what_is_left_after_a_stop_in_the_middle() -> None:
    runs = PLAN.all_runs()
    records = [record(1, "pass"), record(2, "fail", final=False), record(3, "error"), record(4, "hang")]
    assert left(PLAN, (1, 1), records) == [(runs[1], 2), (runs[2], 2)]
    assert left(PLAN, (1, 1), []) == [(run, 1) for run in runs]
    assert left(PLAN, (2, 2), []) == [(run, 1) for run in PLAN.all_runs((2, 2))]


def test_a_cell_counts_every_attempt_but_each_run_once() -> None:
    records = (
        record(1, "pass", deepest=700, least_free=9000, lost=0),
        record(2, "crash", final=False, deepest=1500, least_free=100),
        record(2, "pass", 2, deepest=600),
        record(3, "fail", lost=2),
        replace(record(4, "pass"), cell={"smp": "77"}),
    )
    merged = merge([Results(Path("d"), PLAN, (1, 1), records)])
    one, two = merged.rows
    assert (one.outcomes, one.deepest, one.least_free, one.lost) == ({"pass": 1, "fail": 1}, 700, 9000, 2)
    assert (two.outcomes, two.deepest, two.least_free) == ({"retried": 1, "missing": 1}, 1500, 100)
    assert (one.seconds, two.seconds) == ((1.0, 2.0, 3.0), (2.0, 2.0, 2.0))
    assert (merged.unknown, merged.failed, len(merged.missing)) == (1, 1, 1)
    text = render(campaign_report(merged, []))
    assert "1 results are of runs that the plan does not have" in text
    assert campaign_report(merged, []).exit_code == 1


def step(command: str, error: str = "", ok: bool = True, **values: Any) -> Step:
    return Step(command, f"{command} x", "s.pti:1", ok and not error, values, error)


def test_values_that_vary_among_passing_runs_say_nothing() -> None:
    good = Good("00001", 1, (step("stack", used=1, free=2), step("regs", x0=5)))
    good = passing_runs.common(good, [step("stack", used=1, free=3), step("regs", x0=5)])
    assert good.runs == 2
    assert first_difference(good, [step("stack", used=1, free=99), step("regs", x0=5)]) is None
    found = first_difference(good, [step("stack", used=1), step("regs", x0=True)])
    assert found is not None and (found.path, found.good, found.bad) == ("x0", 5, True)
    found = first_difference(good, [step("stack", used=1), step("regs")])
    assert found is not None and found.bad == "(absent)"
    found = first_difference(good, [step("stack", used=1)])
    assert found is not None and (found.line, found.bad) == ("regs x", "not reached")
    found = first_difference(good, [step("stack", error="gone")])
    assert found is not None and (found.path, found.bad) == ("", "gone")
    found = first_difference(good, [step("summary")])
    assert found is not None and (found.path, found.good, found.bad) == ("command", "stack", "summary")


def test_a_check_that_did_not_hold_is_told_by_its_value() -> None:
    good = Good("00001", 1, (step("expect", ok=True, left=9, right=5),))
    values: dict[str, Any] = {"ok": False, "left": 3, "right": 5}
    found = first_difference(good, [Step("expect", "expect x", "", False, values)])
    assert found is not None and (found.path, found.good, found.bad) == ("left", 9, 3)


def test_what_was_kept_of_passing_runs_may_be_damaged(tmp_path: Path) -> None:
    path = passing_runs.file_of(tmp_path, 0)
    path.parent.mkdir()
    for text in ("", "[", '{"version": 9}', '{"version": 1, "reference": "../../x", "runs": 1, "steps": []}'):
        path.write_text(text)
        assert passing_runs.load(tmp_path, 0) is None


def test_long_answers_are_compared_up_to_a_bound() -> None:
    answer = {"command": "map", "result": {"runs": [{"va": n} for n in range(100_000)]}}
    (found,) = passing_runs.steps_of([answer])
    assert len(found.values) <= passing_runs.MAX_VALUES
    assert found.values["runs.length"] == 100_000
