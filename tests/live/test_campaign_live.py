"""A campaign of fresh guests among which some panic, die, hang, or take their ptinspect with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from session import fresh, launched, need_guest

from ptinspect import api
from ptinspect.guest.guest import Guest
from ptinspect.guest.injection import losing_kernel
from ptinspect.guest.opening import Machine
from ptinspect.output.text import render
from ptinspect.processes import poll

ARGUMENTS = "panic=-1 oops=panic"
"""A kernel that panics ends QEMU at once."""
TO_KPTI = "until kpti_install_ng_mappings --timeout 300\n"
LOOK = (
    "poke descriptor ${entry} ${value} --yes\n"
    + "snap at\nsave at at.npz\nstack\nkpti status\nexpect stack free >= 4096\n"
)
RUNS = {
    1: LOOK,
    2: "gdb set {int}$pc = 0\ncontinue --timeout 300\n",
    3: LOOK,
    4: "monitor quit\nstack\n",
    5: "gdb set {int}$pc = 0x14000000\ncontinue --timeout 2\n",
    6: "snap at\ncontinue --timeout 600\n",
    7: LOOK.replace("${value}", "0") + "expect stack free >= 64K\n",
}
"""What each run does at the start of the rewrite. `udf` kills the kernel there, `b .` makes it hang."""
OUTCOMES = {1: "pass", 2: "crash", 3: "pass", 4: "crash", 5: "hang", 6: "error", 7: "fail"}
PAGE = 0xFFFF_0000_1000_0000
"""A page in the linear map, whose entry the last run loses."""
MARK = ("PTINSPECT_TEST_MARK", f"campaign-{os.getpid()}")


def left() -> set[int]:
    """The QEMU and GDB processes that descend from this test and still run."""
    found = set()
    mark = "=".join(MARK).encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if (b"qemu-system" in words or b"gdb" in words.split(b"\0")[0]) and mark in environment:
            found.add(int(path.name))
    return found


def kill(folder: Path) -> None:
    """Kill the ptinspect that works in a directory, once its guest runs."""
    answers = folder / "answers.jsonl"
    poll(lambda: answers.exists() and b'"snap"' in answers.read_bytes(), 600)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cwd").readlink() == folder and b"-x" in (path / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(path.name), signal.SIGKILL)


def entry_of(page: int) -> tuple[str, str]:
    with launched("5.10-cloud", f"--append-more '{ARGUMENTS}'") as live:
        live(TO_KPTI)
        last = live(f"walk {page:#x}")["steps"][-1]
        return f"pa:{last['descriptor_pa']}", last["raw"]


def test_a_campaign_survives_its_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_guest("5.10-cloud")
    monkeypatch.chdir(tmp_path)
    entry, value = entry_of(PAGE)
    monkeypatch.setenv(*MARK)
    for number, text in RUNS.items():
        (tmp_path / f"{number}.pti").write_text(TO_KPTI + text)
    (tmp_path / "s.pti").write_text("source ${home}/${run}.pti\n")
    killer = threading.Thread(target=kill, args=(tmp_path / "d/runs/00006",), daemon=True)
    killer.start()
    with fresh() as live:
        report = live.report(
            f"campaign s.pti --runs {len(RUNS)} --matrix kernel=5.10-cloud 'append={ARGUMENTS}' "
            f"--var entry={entry} --var value={value} --timeout 1200 --directory d"
        )
    # the one whose ptinspect was killed is being ended by the kernel
    assert poll(lambda: not left(), 120), "no QEMU and no GDB outlives its run"
    records = [json.loads(line) for line in (tmp_path / "d/results.jsonl").read_text().splitlines()[1:]]
    assert {record["run"]: record["outcome"] for record in records} == OUTCOMES, render(report)
    assert report.exit_code == 1
    oops = records[1]
    assert "Undefined instruction" in oops["panic"] or "undefined instruction" in oops["panic"], oops
    assert all((tmp_path / f"d/runs/0000{n}/console.log").stat().st_size for n in (1, 2, 4, 5, 6, 7))
    assert not (tmp_path / "d/runs/00003").exists(), "only the first that passed keeps its files"
    assert (tmp_path / "d/runs/00005/failed.npz").exists(), "the hanging guest was captured as it stood"
    differences = {item["run"]: item for item in report.result["differences"]}
    lost = differences[7]["difference"]
    assert (lost["path"], lost["good"], lost["bad"], lost["runs"]) == ("after", value, "0x0", 2), differences
    (pair,) = differences[7]["snapshots"]
    assert pair["name"] == "at.npz" and pair["changes_total"] == 1
    assert pair["first"].startswith(f"lost at {PAGE:#x}"), pair


def test_a_run_that_failed_is_walked_back_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three guests loses its stack's entry by itself; its recording tells which store did it."""
    monkeypatch.chdir(tmp_path)
    healthy = need_guest("5.10-cloud").kernel
    made = losing_kernel(Guest(), Machine(guest="5.10-cloud"), tmp_path / "losing")
    script = "until handle_bad_stack driver_init --timeout 1000\nexpect stack free >= 8K\n"
    (tmp_path / "s.pti").write_text(script)
    line = f"campaign s.pti --runs 3 --matrix kernel={healthy},losing mem=256 --timeline failed --directory d"
    with fresh() as live:
        report = live.report(f"{line} --timeout 1200")
    assert (report.result["passed"], report.exit_code) == (2, 1), render(report)
    (failed,) = report.result["failures"]
    assert (failed["outcome"], failed["recordings"]) == ("fail", ["d/runs/00002/boot"])
    assert len(list((tmp_path / "d/runs").glob("*/boot"))) == 1
    with api.Guest.open_timeline(failed["recordings"][0]) as guest:
        end = guest.timeline().here.end
        guest.goto("end")
        told = guest.command("why")
        ((place, known),) = guest.who(told["far"], level="pmd")
        store, entry = guest.view.pa_of_link(made.store), place.pa
        assert guest.timeline().here.position == end, "who stands where it stood"
        (last,) = known.writes
        guest.goto(last.position)
        assert guest.session.memory.read(entry, 8) == bytes(8)
        stop = guest.step_back()
        assert (stop.pc, guest.timeline().here.position) == (store, last.position - 1)
        assert int.from_bytes(guest.session.memory.read(entry, 8), "little") == last.before
        guest.stop_at("kpti_install_ng_mappings")
        assert guest.go_back().pc == guest.symbol("kpti_install_ng_mappings")
        assert guest.timeline().here.position < last.position
    assert (last.pc, last.after, place.level) == (store, 0, 2)
    assert told["code"] == "lost-entry" and told["written"]["pc"] == hex(store)
