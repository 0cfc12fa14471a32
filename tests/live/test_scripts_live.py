"""Scripts on real kernels: those that ship, that of the README, a recorded one, and how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from session import launched, need_guest

from ptinspect import app
from ptinspect.guest.injection import lost, poke
from ptinspect.repl.player import Player
from ptinspect.repl.printer import Printer
from ptinspect.script.parse import parse
from ptinspect.script.shipped import open_script, shipped_scripts
from ptinspect.script.statements import Line

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = [
    ("check-boot", "5.10-cloud"),
    ("kpti-diff", "6.12-16k"),
    ("kpti-verdict", "5.10-cloud"),
    ("lost-entry", "5.10-cloud"),
    ("ng-levels", "6.12-cloud"),
    ("stack-depth", "5.10-cloud"),
]


def main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run ptinspect with --json; return its exit code and what it printed."""
    code = app.main(["--json", *arguments])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_script_that_ships_is_run_here() -> None:
    assert {name for name, _ in RUNS} == {script.name for script in shipped_scripts()}


@pytest.mark.parametrize(("name", "guest"), RUNS)
def test_a_script_that_ships(
    name: str, guest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_guest(guest)
    report = tmp_path / "r.xml"
    given = [f"guest={guest}", "seconds=3", f"out={tmp_path}"]
    options = [word for text in given for word in ("--var", text)]
    code, lines = main(capsys, *options, "--junit", str(report), "-x", f"@{name}")
    assert code == 0, lines[-1]
    assert all(line["ok"] for line in lines)
    assert lines[0]["command"] == "launch"
    assert f"--guest {guest}" in lines[0]["line"]
    assert all(line["place"].startswith(f"@{name}:") for line in lines)
    assert ET.parse(report).getroot().attrib | {"time": ""} == {
        "name": f"@{name}",
        "tests": str(len(lines)),
        "failures": "0",
        "errors": "0",
        "skipped": "0",
        "time": "",
    }
    if name == "kpti-diff":
        assert sorted(path.name for path in tmp_path.glob("*.npz")) == [
            "after.npz",
            "before.npz",
            "during.npz",
        ]


def test_the_rewrite_begins_on_the_boot_cpu_whoever_comes_first() -> None:
    with launched("6.12-cloud", "--smp 4") as live:
        points = {b["id"]: b["point"] for b in live("kpti break")["breakpoints"]}
        assert points[1] == "entry"
        stop = live("continue --timeout 300")
        while points[stop["breakpoint"]] == "kpti_install_ng_mappings":  # once per CPU
            stop = live("continue --timeout 300")
        assert (stop["cpu"], stop["breakpoint"]) == (0, 1)
        assert live("kpti status")["state"] == "before"


def test_the_hunt_catches_a_lost_entry_and_keeps_what_was_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launched("5.10-cloud") as live:
        player = Player(live.ctx, Printer(json=True), {"out": str(tmp_path)}, outcomes=[])
        script = open_script("@lost-entry")
        at = next(i for i, s in enumerate(script) if isinstance(s, Line) and s.text.startswith("stack guard"))
        assert player.play(script[:at]) == 0
        pa, value = lost(live.ctx.guest.view, live.ctx.guest.stopped.cpu_state(0).sp)
        poke(live.ctx.guest, pa, value)
        capsys.readouterr()
        assert player.play(script[at:]) == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert player.play(parse("s", ["expect guard quiet"])) == 1
        assert player.play(parse("s", ["expect guard.why.code == lost-entry"])) == 0
        assert player.play(open_script("@kpti-diff")) == 1  # at once: the rewrite is over
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["left"] == "after"
    assert [(line["command"], line["ok"]) for line in lines] == [
        ("stack guard", False),
        ("save", True),
        ("save", True),
        ("console", True),
    ]
    assert lines[0]["result"]["why"]["code"] == "lost-entry"
    assert lines[0]["result"]["why"]["descriptor"]["descriptor_pa"] == f"{pa:#x}"
    assert (tmp_path / "lost-before.npz").is_file() and (tmp_path / "lost-after.npz").is_file()


def test_a_session_that_was_recorded_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_guest("5.10-cloud")
    path = tmp_path / "session.pti"
    typed = [
        f"record {path}",
        "launch --guest ${guest}",
        "kpti run",
        "walk nonsense",
        "summary --snap during",
        "expect summary.level3.leaves_ng > 0",
        "expect summary.level3.leaves_ng == summary.level3.leaves",
        "summary --snap after",
        "expect summary.level3.leaves_ng == summary.level3.leaves",
        "repeat 3 as n: stepi; regs pc",
    ]
    code, lines = main(
        capsys, "--keep-going", "--var", "guest=5.10-cloud", *[w for line in typed for w in ("-c", line)]
    )
    assert code == 2
    assert [line["line"] for line in lines if not line["ok"]] == [typed[3], typed[6]]
    assert [line for line in path.read_text().splitlines() if not line.startswith("#")] == [
        "var guest = 5.10-cloud",
        *typed[1:3],
        *typed[4:6],
        *typed[7:9],
        "repeat 3 as n:",
        "    stepi",
        "    regs pc",
    ]
    again_code, again = main(capsys, "-x", str(path))
    assert again_code == 0
    assert [line["command"] for line in again] == [
        *["launch", "kpti run", "summary", "expect", "summary", "expect"],
        *["stepi", "regs"] * 3,
    ]
    assert again[-1]["result"] == lines[-1]["result"]


def test_the_script_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_guest("5.10-cloud")
    text = (ROOT / "README.md").read_text("utf-8")
    text = text.split("<!-- script -->\n", 1)[1].split("<!-- end of script -->", 1)[0]
    path = tmp_path / "forks.pti"
    path.write_text(text)
    code, lines = main(capsys, "-x", str(path), "--var", "mem=512")
    assert code == 0, lines[-1]
    assert lines[0]["line"] == "launch --unless-attached --memory 512 --smp 1"
    assert sum(line["line"] == "expect stack free >= 8K" for line in lines) > 10  # kernel threads
    assert [line["command"] for line in lines[-7:]] == [*["stepi", "regs"] * 3, "expect"]


def start(script: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start a script whose first command launches a guest; return what that answered too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ptinspect", "--json", *options, "-x", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def wait_until_it_runs(process: subprocess.Popen[str], first: dict[str, Any]) -> None:
    """Wait for the first output of the guest that was launched."""
    console = Path(first["result"]["console"])
    while process.poll() is None and not console.stat().st_size:
        time.sleep(0.05)


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_running_guest_goes_with_its_script(
    tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    need_guest("5.10-cloud")
    script = tmp_path / "s.pti"
    script.write_text("launch\nrepeat 2:\n    continue --timeout 300\n")
    process, first = start(script)
    wait_until_it_runs(process, first)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (code, "")
    last = json.loads(out)
    assert (last["error"]["kind"], last["error"]["message"]) == ("interrupted", f"{script}:3: {said}")
    assert not alive(first["result"]["pid"])


def test_a_qemu_that_is_killed(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    script = tmp_path / "s.pti"
    script.write_text("launch\non failure: status\ncontinue --timeout 300\nregs pc\n")
    process, first = start(script)
    wait_until_it_runs(process, first)
    os.kill(first["result"]["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (3, "")
    lost, status = (json.loads(line) for line in out.splitlines())
    assert lost["error"]["kind"] == "lost"
    assert lost["error"]["message"].startswith(f"{script}:3: ")
    assert status["result"]["state"] == "dead"


def test_a_guest_that_dies_and_one_that_does_not_stop_in_time(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    script = tmp_path / "s.pti"
    # it waits for its root, so that it is alive when the time is over
    launch = "launch --no-initrd --append-more 'panic=-1 rootdelay=5'"
    lines = [launch, "continue --timeout 0.2", "interrupt", "continue"]
    script.write_text("\n".join(lines))
    report = tmp_path / "r.xml"
    process, _ = start(script, "--keep-going", "--junit", str(report))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3
    late, _, lost = (json.loads(line) for line in out.splitlines())
    assert late["error"]["message"] == f"{script}:2: the guest did not stop within 0.2 s"
    assert (lost["error"]["kind"], lost["place"]) == ("lost", f"{script}:4")
    assert "QEMU's last words: " in lost["error"]["hint"]
    assert ET.parse(report).getroot().attrib["errors"] == "2"


def test_the_time_for_the_whole_run_is_over(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    script = tmp_path / "s.pti"
    script.write_text("launch\non stop any: continue\ncontinue\nregs\n")
    for limit in (3, 30, 300):
        process, first = start(script, "--timeout", str(limit))
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 3
        over = f"the time limit of {limit} s for the whole run is over"
        if first["ok"]:
            break
        assert first["error"]["message"] == f"{script}:1: {over}", "a busy machine"
    assert json.loads(out)["error"]["message"] == f"{script}:3: {over}"
    assert not alive(first["result"]["pid"])
