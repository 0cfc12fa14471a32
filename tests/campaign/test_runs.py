"""Whole campaigns with a program that stands for ptinspect: every way in which a run can end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptinspect.campaign import child, runner
from ptinspect.campaign.results import load
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.session import campaign_plan
from ptinspect.errors import TargetError, UserError
from ptinspect.output.model import Report
from ptinspect.output.text import render
from ptinspect.processes import has_ended, poll

FAKE = Path(__file__).with_name("fake_ptinspect.py")
JOBS = min(2, len(os.sched_getaffinity(0)))
Campaign = Callable[[str], Report]


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(campaign_plan, "PROGRAM", (sys.executable, str(FAKE)))
    monkeypatch.setattr(campaign_plan, "GRACE", 0.0)
    monkeypatch.setattr(child, "TERM_SECONDS", 0.2)
    monkeypatch.setattr(child, "MAX_OUTPUT", 1 << 20)
    (tmp_path / "s.pti").write_text("stack\nregs\n")
    ctx = Context(build_registry())

    def run(line: str) -> Report:
        return ctx.registry.run(ctx, f"campaign {line}")

    return run


def outcomes(report: Report) -> dict[str, dict[str, int]]:
    return {cell["name"]: cell["outcomes"] for cell in report.result["cells"]}


def test_each_way_to_end_has_its_name(campaign: Campaign, tmp_path: Path) -> None:
    kinds = "pass,fail,unable,crash,wedged,late,hang,die,bug,garbage,huge,connect,flaky"
    report = campaign(
        f"s.pti --runs 13 --matrix var.kind={kinds} --retries 1 --timeout 6 --directory d --jobs 1"
    )
    assert report.exit_code == 1
    expected = dict.fromkeys(("fail", "unable"), "fail") | dict.fromkeys(("pass", "garbage"), "pass")
    expected |= dict.fromkeys(("late", "hang"), "hang") | dict.fromkeys(("die", "huge", "connect"), "error")
    expected |= {"crash": "crash", "wedged": "crash", "bug": "bug", "flaky": "retried"}
    assert outcomes(report) == {f"var.kind={kind}": {name: 1} for kind, name in expected.items()}
    result = report.result
    assert (result["passed"], result["retried"], result["failed"], result["missing"]) == (2, 1, 10, 0)
    failures = {item["cell"].partition("=")[2]: item for item in result["failures"]}
    assert all(len(item["attempts"]) == 2 for item in failures.values()), "no retry is hidden"
    assert failures["hang"]["message"].endswith("its last answer was to: regs")
    assert failures["crash"]["panic"] == "No working init found."
    assert (failures["fail"]["where"], failures["fail"]["verdict"]) == ("s.pti:4", "")
    assert "stack free >= 8192" in failures["fail"]["message"]
    assert failures["die"]["message"] == "the process was ended by signal 9"
    assert "\x1b" not in render(report)
    retry = result["retries"][0]
    assert (retry["cell"], retry["attempts"]) == ("var.kind=flaky", ["fail", "pass"])
    assert not list((tmp_path / "tmp").iterdir()), "what a killed ptinspect left behind is gone"
    assert (tmp_path / "d/runs/00004/console.log").read_bytes().startswith(b"[    1.0] Kernel panic")


def test_only_the_first_that_passed_keeps_its_files(campaign: Campaign, tmp_path: Path) -> None:
    report = campaign("s.pti --runs 3 --matrix var.kind=pass --directory d")
    assert (report.exit_code, report.result["passed"]) == (0, 3)
    assert [path.name for path in (tmp_path / "d/runs").iterdir()] == ["00001"]
    (cell,) = report.result["cells"]
    assert (cell["deepest"], cell["least_free"], cell["lost"]) == (103, 5000, None)
    assert cell["seconds"]["min"] <= cell["seconds"]["median"] <= cell["seconds"]["max"]
    campaign("s.pti --runs 3 --matrix var.kind=pass --directory e --keep-all")
    assert len(list((tmp_path / "e/runs").iterdir())) == 3


def test_only_recordings_of_what_failed_are_kept(campaign: Campaign, tmp_path: Path) -> None:
    kinds = ["pass", "fail", "crash", "late", "bug", "die", "flaky"]
    line = f"s.pti --runs 7 --matrix var.kind={','.join(kinds)} --retries 1 --directory 'd e'"
    report = campaign(f"{line} --timeline failed")
    kept = {path.parent.name for path in (tmp_path / "d e/runs").glob("*/boot")}
    failed = {f"0000{n}" for n in (2, 3, 4, 5)}
    assert kept == failed | {f"{name}-2" for name in failed} | {"00007"}
    recordings = {item["run"]: item["recordings"] for item in report.result["failures"]}
    assert recordings == {6: []} | {
        n: [f"d e/runs/0000{n}/boot", f"d e/runs/0000{n}-2/boot"] for n in (2, 3, 4, 5)
    }
    assert report.result["retries"][0]["recordings"] == ["d e/runs/00007/boot"]
    assert "run 3, recorded: timeline open 'd e/runs/00003/boot'" in render(report)
    assert (tmp_path / "d e/runs/00003/console.log").read_bytes().startswith(b"[    1.0] Kernel panic")
    assert not list((tmp_path / "tmp").iterdir()), "what a killed ptinspect left behind is gone"
    assert load(tmp_path / "d e").plan.timeline == "failed"
    with pytest.raises(UserError, match="another campaign: other timeline"):
        campaign(f"{line} --resume")
    shutil.rmtree(tmp_path / "d e/runs/00002/boot")
    again = campaign("--resume 'd e'")
    first = next(item for item in again.result["failures"] if item["run"] == 2)
    assert first["recordings"] == ["d e/runs/00002-2/boot"], "what is not there is not offered"
    assert json.loads((tmp_path / "d e/runs/00006-3/seen.json").read_text())["words"].count("-c") == 1


def test_what_cannot_be_recorded_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "own.pti").write_text("launch --memory 512\n")
    for line, said in (
        ("own.pti", "launches its guests itself"),
        ("s.pti --matrix smp=1,2", "one CPU only, not smp=2"),
    ):
        with pytest.raises(UserError, match=said):
            campaign(f"{line} --runs 1 --timeline failed --directory d")
    assert not (tmp_path / "d").exists()


def test_a_run_gets_its_cell_as_launch_arguments_and_as_variables(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "Image").write_text("")
    campaign(
        "s.pti --runs 1 --matrix kernel=Image cpu=a57 mem=512 smp=2 'append=a b' var.kind=pass "
        "--var x=1 --directory d --timeout 9"
    )
    seen = json.loads((tmp_path / "d/runs/00001/seen.json").read_text())
    words = seen["words"]
    assert seen["cwd"] == str(tmp_path / "d/runs/00001")
    assert Path(seen["path"].split(os.pathsep)[0], "ptinspect/__main__.py").is_file()
    line = words[words.index("-c") + 1]
    options = "--cpu cortex-a57 --memory 512 --smp 2 --append-more 'a b'"
    assert line == f"launch {tmp_path / 'Image'} {options}"
    given = {words[n + 1] for n, word in enumerate(words) if word == "--var"}
    assert {"cpu=cortex-a57", "mem=512", "smp=2", "append=a b", "kind=pass", "x=1", "run=1"} <= given
    assert words[words.index("--timeout") + 1] == "9"
    assert words[-2:] == ["-x", str(tmp_path / "s.pti")]


@pytest.mark.parametrize(
    "script", ["repeat 2: launch --memory ${mem}\n", "source ${home}/called.pti\n"], ids=["itself", "called"]
)
def test_a_script_that_launches_is_left_to_do_so(campaign: Campaign, tmp_path: Path, script: str) -> None:
    (tmp_path / "own.pti").write_text(script)
    (tmp_path / "called.pti").write_text("launch\n")
    campaign("own.pti --runs 1 --matrix mem=512 var.kind=pass --directory d")
    assert "-c" not in json.loads((tmp_path / "d/runs/00001/seen.json").read_text())["words"]


def test_the_first_difference_is_one_that_passing_runs_share(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "s.pti").write_text("regs\n")
    campaign("s.pti --runs 4 --matrix var.kind=pass --directory d")
    # one cell of both: the failing run is told by its number
    source = FAKE.read_text().replace(
        'given["kind"], int', '("fail" if int(given["run"]) == 3 else "pass"), int'
    )
    (tmp_path / "fake.py").write_text(
        source.replace('return {**KINDS', 'kind == "pass" and say("regs", result={"x0": "0x0", "x1": "0x7"}, '
                       'line="regs x1", place="s.pti:3")\n    return {**KINDS')
    )  # fmt: skip
    campaign_plan.PROGRAM = (sys.executable, str(tmp_path / "fake.py"))
    report = campaign("s.pti --runs 5 --directory e")
    (found,) = report.result["differences"]
    assert (found["run"], found["outcome"]) == (3, "fail")
    difference = found["difference"]
    assert (difference["line"], difference["path"]) == ("regs x1", "x1")
    assert (difference["good"], difference["bad"], difference["runs"]) == ("0x7", "0x8", 4)
    shown = render(report).split("first differences\n")[1].splitlines()[1]
    assert shown.split() == ["3", "regs", "x1", "(s.pti:3):", "x1", "0x7", "(4)", "0x8"]


def test_nothing_can_be_run_is_said_soon_and_can_be_tried_again(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no run can be made: no QEMU") as caught:
        campaign("s.pti --runs 50 --matrix var.kind=connect --directory d")
    assert caught.value.exit_code == 3
    assert len(load(tmp_path / "d").records) == 3
    with pytest.raises(TargetError, match="no run can be made"):
        campaign("--resume d")
    assert [record.attempt for record in load(tmp_path / "d").records] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", ["full", "unsaved"])
def test_a_full_disk_is_an_error_and_no_failed_check(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def full(**_: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if kind == "full":
            patch.setattr(runner.tempfile, "TemporaryFile", full)
        script = f"s.pti --runs 3 --matrix var.kind=pass,{'fail' if kind == 'full' else kind}"
        with pytest.raises(UserError, match=r"run 2 had no room for its files in .*00002: No space left"):
            campaign(f"{script} --directory d --timeline failed")
    assert not list((tmp_path / "d/runs").glob("*/boot")), "a recording may be what has taken the room"
    assert [(each.run, each.outcome) for each in load(tmp_path / "d").records] == [(1, "pass")]
    if kind == "full":
        report = campaign("--resume d")
        assert (report.result["done"], report.result["passed"], report.result["missing"]) == (3, 2, 0)


def test_ctrl_c_keeps_what_there_is_and_resume_runs_the_rest(campaign: Campaign, tmp_path: Path) -> None:
    matrix = "--matrix var.kind=pass,fail,hang"
    results = tmp_path / "d/results.jsonl"

    def interrupt() -> None:
        while not results.exists() or len(results.read_bytes().splitlines()) < 3:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    report = campaign(f"s.pti --runs 6 {matrix} --timeout 600 --directory d")
    thread.join()
    assert (report.exit_code, report.result["interrupted"]) == (130, True)
    assert (report.result["done"], report.result["missing"]) == (2, 4)
    assert "campaign --resume d runs what is missing" in render(report)
    assert sorted(path.name for path in (tmp_path / "d/runs").iterdir()) == ["00001", "00002"]
    with results.open("ab") as file:
        file.write(b'{"run": 3, "cel')  # a machine that stopped in the middle of a line
    text = results.read_text()
    results.write_text(text.replace('"timeout": 600.0', '"timeout": 0.3'))
    report = campaign("--resume d")
    assert (report.result["done"], report.result["missing"], report.result["started"]) == (6, 0, 4)
    runs = [record.run for record in load(tmp_path / "d").records]
    assert sorted(runs) == list(range(1, 7)), "none twice"
    assert campaign("--resume d").result["started"] == 0


def test_what_a_killed_campaign_left_is_cleared_away(campaign: Campaign, tmp_path: Path) -> None:
    campaign("s.pti --runs 1 --matrix var.kind=pass --directory d")
    results = tmp_path / "d/results.jsonl"
    results.write_text(results.read_text().splitlines(keepends=True)[0])
    private = tmp_path / "tmp/ptinspect-abc"
    private.mkdir()
    (private / "console.log").write_text("")
    launched = json.dumps({"command": "launch", "result": {"console": str(private / "console.log")}})
    (tmp_path / "d/runs/00001/answers.jsonl").write_text(launched + "\n")
    (tmp_path / "d/runs/00001/old").write_text("")
    assert campaign("--resume d").result["passed"] == 1
    assert not private.exists()
    assert not (tmp_path / "d/runs/00001/old").exists()


def test_two_at_once_are_refused_and_so_is_another_campaign(campaign: Campaign, tmp_path: Path) -> None:
    first = campaign("s.pti --runs 1 --matrix var.kind=pass --directory d --resume")
    again = campaign("s.pti --runs 1 --matrix var.kind=pass --directory d --resume")
    assert (first.result["started"], again.result["started"], again.exit_code) == (1, 0, 0)
    with pytest.raises(UserError, match="holds a campaign already"):
        campaign("s.pti --runs 1 --matrix var.kind=pass --directory d")
    with pytest.raises(UserError, match="another campaign: other runs"):
        campaign("s.pti --runs 2 --matrix var.kind=pass --directory d --resume")
    with (tmp_path / "d/lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process runs the campaign"):
            campaign("--resume d")
    (tmp_path / "s.pti").write_text("stack\n")
    with pytest.raises(UserError, match="has changed since the campaign began"):
        campaign("--resume d")


CALLS = {
    "${home}/a.pti": "a.pti",
    "${home}/${kind}-${smp}.pti": "pass-2.pti",
    "${home}/${run}.pti": "2.pti",
    "${home}/${run}-${attempt}.pti": "2-2.pti",
}
"""What a script calls -> one of the files that these are."""


@pytest.mark.parametrize("how", ["plain", "nested", "in a block", "after a failure"])
@pytest.mark.parametrize("name", CALLS)
def test_a_change_of_any_script_that_is_called_is_noticed(
    campaign: Campaign, tmp_path: Path, name: str, how: str
) -> None:
    for file in ("a", "pass-1", "pass-2", "1", "2", "1-1", "1-2", "2-1", "2-2"):
        (tmp_path / f"{file}.pti").write_text("stack\n")
    call = f"source {name}\n"
    (tmp_path / "between.pti").write_text(call)
    forms = {
        "plain": call,
        "nested": "source ${home}/between.pti\n",
        "in a block": f"repeat 2: {call}",
        "after a failure": f"on failure: {call}",
    }
    (tmp_path / "s.pti").write_text(forms[how])
    line = "s.pti --runs 2 --retries 1 --matrix smp=1,2 var.kind=pass --directory d"
    whole = campaign(line).result
    assert (whole["passed"], whole["not_in_digest"]) == (2, [])
    assert campaign(f"{line} --resume").exit_code == campaign("--resume d").exit_code == 0
    (tmp_path / "d/runs/00001/unrelated.pti").write_text("")
    (tmp_path / CALLS[name]).write_text("regs\n")
    with pytest.raises(UserError, match="has changed since the campaign began"):
        campaign("--resume d")
    with pytest.raises(UserError, match="another campaign: other the script's text"):
        campaign(f"{line} --resume")
    campaign(line.replace("--directory d", "--directory e"))
    with pytest.raises(UserError, match="other the script's text"):
        campaign("report d e")


def test_two_scripts_that_change_places_are_another_campaign(campaign: Campaign, tmp_path: Path) -> None:
    one, two = tmp_path / "one.pti", tmp_path / "two.pti"
    one.write_text("stack\n")
    two.write_text("regs\n")
    (tmp_path / "s.pti").write_text("source ${home}/one.pti\nsource ${home}/two.pti\n")
    campaign("s.pti --runs 1 --matrix var.kind=pass --directory d")
    one.write_text("regs\n")
    two.write_text("stack\n")
    with pytest.raises(UserError, match="or one of the 2 scripts that it calls, has changed"):
        campaign("--resume d")


def test_a_script_whose_name_nobody_knows_beforehand_is_named(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "s.pti").write_text("repeat 2 as n: source ${home}/${n}.pti\n")
    report = campaign("s.pti --runs 1 --matrix var.kind=pass --directory d")
    (place,) = report.result["not_in_digest"]
    assert place.endswith("s.pti:1")
    assert "will not be noticed" in render(report)


def test_a_campaign_killed_at_its_first_line_begins_again(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/results.jsonl").write_text("")  # what a machine may leave that stopped
    (tmp_path / "d/home.json").write_text("{")
    line = "s.pti --runs 1 --matrix var.kind=pass --directory d --resume"
    assert campaign(line).result["passed"] == 1
    assert campaign("--resume d").result["done"] == 1, "home.json is whole as well"


def test_a_run_that_a_signal_ended_is_run_again(campaign: Campaign, tmp_path: Path) -> None:
    line = "s.pti --runs 2 --matrix var.kind=pass,ended --directory d --resume"
    report = campaign(line)
    assert outcomes(report)["var.kind=ended"] == {"error": 1}, "nothing failed"
    (failure,) = report.result["failures"]
    assert failure["message"] == "the process was ended by signal 15"
    assert campaign(line).result["started"] == 1


@pytest.mark.parametrize("at", ["append", "add"])
def test_a_campaign_killed_between_two_files_counts_no_run_twice(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    line = "s.pti --runs 3 --matrix var.kind=pass --directory d --resume"
    with monkeypatch.context() as patch:
        patch.setattr(runner if at == "append" else runner.passing_runs, at, killed)
        assert campaign(line).exit_code == 130
    assert campaign(line).result["passed"] == 3
    assert [record.run for record in load(tmp_path / "d").records] == [1, 2, 3]
    good = json.loads((tmp_path / "d/good/00000.json").read_text())
    assert good["runs"] == (3 if at == "append" else 2), "of the runs that were taken in, none twice"
    assert (tmp_path / "d/runs" / good["reference"]).is_dir(), "the files of the first are here"


def test_what_a_run_leaves_behind_ends_with_it(campaign: Campaign, tmp_path: Path) -> None:
    campaign("s.pti --runs 1 --matrix var.kind=orphan --directory d")
    pid = int((tmp_path / "d/runs/00001/orphan").read_text())
    assert poll(lambda: has_ended(pid), 20), "the orphan lives"


def test_wrong_usage_is_said_before_anything_runs(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "var.pti").write_text("regs ${nobody}\n")
    (tmp_path / "rel.pti").write_text("source s.pti\n")
    (tmp_path / "word.pti").write_text("regs\nnonsense\n")
    for line, said in (
        ("s.pti", "how many runs"),
        ("nowhere.pti --runs 1", "cannot read the script"),
        ("var.pti --runs 1", r"var.pti:1: \$\{nobody\} has no value"),
        ("word.pti --runs 1", "word.pti:2"),
        ("rel.pti --runs 1", "rel.pti:1: each run has a directory of its own"),
        ("s.pti --runs 1 --matrix memory=1", "no such key"),
        ("s.pti --runs 1 --shard 3/2", "not a shard"),
        ("s.pti --runs 1 --jobs 1000", "1000"),
        ("--resume nowhere", "no campaign"),
        ("--runs 4", "no SCRIPT"),
    ):
        with pytest.raises(UserError, match=said):
            campaign(f"{line} --directory d" if "--resume" not in line else line)
    assert not (tmp_path / "d").exists()
    with pytest.raises(UserError, match="no-such-guest"):
        campaign("s.pti --runs 1 --matrix kernel=no-such-guest --directory d")


def shards(campaign: Campaign, count: int) -> list[str]:
    matrix = "--matrix var.kind=pass,fail"
    for n in range(1, count + 1):
        campaign(f"s.pti --runs 8 {matrix} --jobs {JOBS} --shard {n}/{count} --directory shard-{n}")
    return [f"shard-{n}" for n in range(1, count + 1)]


def test_shards_make_one_report(campaign: Campaign, tmp_path: Path) -> None:
    names = shards(campaign, 3)
    whole = campaign(f"report {' '.join(names)}")
    assert (whole.result["done"], whole.result["missing"], whole.exit_code) == (8, 0, 1)
    assert outcomes(whole) == {"var.kind=pass": {"pass": 4}, "var.kind=fail": {"fail": 4}}
    part = campaign("report shard-1 shard-3")
    absent = len(load(tmp_path / "shard-2").records)
    assert (part.result["missing"], part.result["done"]) == (absent, 8 - absent)
    assert "shards that are here: 1/3, 3/3" in render(part)
    shutil.copytree("shard-2", "copy")
    twice = campaign(f"report {' '.join(names)} copy")
    assert twice.result["duplicates"] == sorted(record.run for record in load(tmp_path / "shard-2").records)
    assert twice.result["cells"] == whole.result["cells"], "they count once"
    campaign("s.pti --runs 9 --matrix var.kind=pass,fail --shard 1/3 --directory other")
    with pytest.raises(UserError, match="other is another campaign than shard-1: other runs"):
        campaign("report shard-1 other")


def test_the_report_is_written_as_a_page_and_as_data(campaign: Campaign, tmp_path: Path) -> None:
    names = " ".join(shards(campaign, 1))
    report = campaign(f"report {names} -o c.html --title '<b>mine</b>'")
    assert report.result["file"] == "c.html"
    text = (tmp_path / "c.html").read_text()
    assert "<b>mine" not in text and "what did not pass" in text
    campaign(f"report {names} -o c.json")
    data: dict[str, Any] = json.loads((tmp_path / "c.json").read_text())
    assert data["failed"] == 4
    ctx = Context(build_registry())
    made = ctx.registry.run(ctx, f"report both.html --campaign {names}")
    assert made.result["campaigns"] == ["campaign shard-1"]
    with pytest.raises(UserError, match="unknown suffix"):
        campaign(f"report {names} -o c.pdf")
