"""The lines of `help campaigns` for Slurm, GNU parallel and pytest-xdist, as they stand there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import missing
from session import need_guest
from slurm import slurm

from ptinspect.processes import poll

ROOT = Path(__file__).parents[2]
TOPIC = (ROOT / "ptinspect/topics/campaigns.txt").read_text("utf-8")
RUNS, SHARDS = 16, 8
FAILS = 7
"""The run that fails, whoever runs it."""
GATE = 9
"""The second run of the first shard: it waits, with a guest, until the test opens the gate."""
LAUNCH = "launch --guest 5.10-cloud --memory 128\n"
SECONDS = 300.0


def line(engine: str) -> str:
    """Return the line of the topic that begins with a word, with fewer runs."""
    (found,) = [each.strip(" $") for each in TOPIC.splitlines() if each.strip().startswith(f"$ {engine} ")]
    return found.partition("  # ")[0].replace("--runs 400", f"--runs {RUNS}")


def program_text() -> str:
    """Return the test of the topic, with fewer runs."""
    text = TOPIC.partition("where test_shards.py is\n")[2].partition("\n--resume")[0]
    return textwrap.dedent(text).replace("--runs 400", f"--runs {RUNS}")


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """The scripts of a campaign in a directory; `ptinspect` in PATH."""
    need_guest("5.10-cloud")
    for n in range(1, RUNS + 1):
        gate = f"{LAUNCH}record ${{home}}/gate --force\nrecord off\n" if n == GATE else ""
        text = f"decode 0x{n:x}783 --level 3\nexpect decode output_address != {FAILS << 12:#x}\n{gate}"
        (tmp_path / f"{n}.pti").write_text(text)
    (tmp_path / "s.pti").write_text("source ${home}/${run}.pti\n")
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/ptinspect"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m ptinspect "$@"\n')
    wrapper.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "SLURM"))}
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join((str(tmp_path / "bin"), beside, os.environ["PATH"]))
    return {**kept, "PATH": path, "PARALLEL_HOME": str(tmp_path / "bin"), "PYTHONPATH": beside}


def start(text: str, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "engine.log").open("ab") as log:
        return subprocess.Popen(
            ["bash", "-c", f"exec {text}"], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip


def until(ready: Any, what: str) -> None:
    assert poll(ready, SECONDS, 0.05), f"in vain waited until {what}"


def wait_at_gate(folder: Path) -> None:
    """Wait until the first shard has done a run, and is in the midst of the next."""
    answers = folder / f"out/1/runs/{GATE:05}/answers.jsonl"
    until(lambda: answers.exists() and b'"launch"' in answers.read_bytes(), "the first shard is at the gate")
    assert numbers(folder / "out/1"), "a run has been recorded"


def of_shard(folder: Path) -> tuple[set[int], set[int]]:
    """Return the processes of the first shard: its campaign, and what works in its directory."""
    campaigns, others = set(), set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            place, words = (path / "cwd").readlink(), (path / "cmdline").read_bytes().split(b"\0")
            if place == folder and b"campaign" in words and b"out/1" in words:
                campaigns.add(int(path.name))
            if place.is_relative_to(folder / "out/1"):
                others.add(int(path.name))
    return campaigns, others


def kill_shard(folder: Path) -> None:
    """Kill the first shard's campaign alone; what it started has to end with it."""
    (victim,), others = of_shard(folder)
    assert len(others) >= 3, "ptinspect, QEMU and GDB"
    os.kill(victim, signal.SIGKILL)
    until(lambda: not others & of_shard(folder)[1], "nothing is left of the shard")


def open_gate(folder: Path) -> int:
    return os.open(folder / "gate", os.O_RDWR | os.O_NONBLOCK)


def numbers(shard: Path) -> list[int]:
    """Return the runs that have ended."""
    try:
        lines = (shard / "results.jsonl").read_text().splitlines()[1:]
    except OSError:
        return []
    return [json.loads(each)["run"] for each in lines]


def joined(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the report of the topic's last line, by its own text."""
    done = subprocess.run(
        ["bash", "-c", line("ptinspect campaign report").replace("campaign.html", "campaign.json")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return dict(json.loads((folder / "campaign.json").read_text()))


def what_counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a report what does not depend on who ran it."""
    failures = [{key: each[key] for key in ("run", "outcome", "message")} for each in report["failures"]]
    cells = [(each["name"], each["outcomes"]) for each in report["cells"]]
    names = (
        "digest",
        "runs",
        "done",
        "missing",
        "passed",
        "retried",
        "failed",
        "duplicates",
        "cut",
        "unknown",
    )
    return {**{name: report[name] for name in names}, "failures": failures, "cells": cells}


@pytest.fixture(scope="session")
def alone() -> dict[str, Any]:
    """What one machine alone says, found out by the first test that asks."""
    return {}


def check(folder: Path, environment: Mapping[str, str], alone: dict[str, Any]) -> None:
    """Hold what the shards came to against one machine alone: the same scripts, no shards, no deaths."""
    report = joined(folder, environment)
    ended = [run for n in range(1, SHARDS + 1) for run in numbers(folder / f"out/{n}")]
    assert sorted(ended) == list(range(1, RUNS + 1)), "every run once: what was done was not done again"
    assert len(report["shards"]) == SHARDS
    if not alone:
        words = ["ptinspect", "campaign", "s.pti", "--runs", str(RUNS), "--directory", "alone"]
        gate = open_gate(folder)
        jobs = str(min(2, len(os.sched_getaffinity(0))))
        done = subprocess.run(
            [str(folder / "bin/ptinspect"), *words[1:], "--jobs", jobs], cwd=folder, env=environment,
            timeout=SECONDS, capture_output=True, check=False,
        )  # fmt: skip
        os.close(gate)
        assert done.returncode == 1, done
        (folder / "out").rename(folder / "shards")
        (folder / "out").mkdir()
        (folder / "alone").rename(folder / "out/alone")
        alone.update(what_counts(joined(folder, environment)))
    assert what_counts(report) == alone
    (failure,) = report["failures"]
    assert (failure["run"], failure["outcome"]) == (FAILS, "fail")


def test_slurm_runs_again_what_dies_with_its_node(
    tmp_path: Path, environment: Mapping[str, str], alone: dict[str, Any]
) -> None:
    with slurm(tmp_path / "slurm", environment) as cluster:
        done = start(line("sbatch"), tmp_path, cluster.environment)
        assert done.wait(SECONDS) == 0, (tmp_path / "engine.log").read_text()
        wait_at_gate(tmp_path)
        # Slurm 22.05 may end a job again that was about to begin when its node died, once it has begun anew
        until(lambda: len(cluster.jobs()) == 1, "only the first shard is left")
        cluster.lose_node()
        before = numbers(tmp_path / "out/1")
        gate = open_gate(tmp_path)
        cluster.start_node()
        cluster.wait(SECONDS)
        os.close(gate)
        assert numbers(tmp_path / "out/1")[: len(before)] == before
        until(lambda: len(cluster.on_node()) == 1, "only slurmd is left on the node")
    check(tmp_path, environment, alone)


def test_parallel_runs_again_what_dies(
    tmp_path: Path, environment: Mapping[str, str], alone: dict[str, Any]
) -> None:
    if shutil.which("parallel") is None:
        missing("GNU parallel (setup --tests)")
    engine = start(line("parallel"), tmp_path, environment)
    try:
        wait_at_gate(tmp_path)
        kill_shard(tmp_path)
        gate = open_gate(tmp_path)
        assert engine.wait(SECONDS) == 1, "one shard has a run that failed, and it is the only one"
        os.close(gate)
    finally:
        engine.kill()
        engine.wait()
    check(tmp_path, environment, alone)


def test_xdist_runs_again_what_failed(
    tmp_path: Path, environment: Mapping[str, str], alone: dict[str, Any]
) -> None:
    (tmp_path / "test_shards.py").write_text(program_text())
    text = line("pytest").replace("-n 8", "-n 2")
    engine = start(text, tmp_path, environment)
    try:
        wait_at_gate(tmp_path)
        kill_shard(tmp_path)
        assert engine.wait(SECONDS) == 1
    finally:
        engine.kill()
        engine.wait()
    gate = open_gate(tmp_path)
    assert start(f"{text} --lf", tmp_path, environment).wait(SECONDS) == 1
    os.close(gate)
    log = (tmp_path / "engine.log").read_text()
    assert "2 failed, 6 passed" in log, log  # the one that died, and the one with the run that fails
    assert "1 failed, 1 passed" in log, log
    check(tmp_path, environment, alone)
