"""gdbscripts/ptinspect.py in a GDB that ptinspect did not start, on a real guest."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from session import fresh, need_guest, of_somebody_else
from users_gdb import SCRIPTS, SOURCE, need_gdb, typed

from ptinspect.link.gdb.program import find_gdb
from ptinspect.link.qemu.machine import Qemu

GUEST = "5.10-cloud"


def gdbs() -> list[str]:
    """Return every GDB that can be had here: the system's, and the one of the `gdb` extra."""
    beside = Path(sys.executable).with_name("gdb")
    return [name for name in ("gdb-multiarch", str(beside)) if shutil.which(name)]


@pytest.fixture(params=gdbs() or ["gdb-multiarch"], ids=lambda name: Path(name).name)
def gdb(request: pytest.FixtureRequest) -> str:
    return find_gdb(need_gdb(request.param)).path


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    with of_somebody_else(GUEST, memory=256, smp=2) as started:
        yield started


def theirs(folder: Path) -> Path:
    """Write a script with names of its own in the namespace that all scripts of a GDB share, as gef has."""
    sources = [path.read_text() for path in SCRIPTS.glob("*.py")]
    nodes = [node for source in sources for node in ast.parse(source).body]
    names = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    imported = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names |= {alias.asname or alias.name for node in imported for alias in node.names}
    names -= {"gdb", "gdb.disassembler", *(path.stem for path in SCRIPTS.glob("*.py"))}
    assert {"Path", "Frame", "json", "quiet", "wire"} <= names
    path = folder / "theirs.py"
    path.write_text(f"names = {sorted(names)}\nglobals().update(dict.fromkeys(names, 'theirs'))\n")
    return path


def run(gdb: str, qemu: Qemu, folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a GDB of the user's, from a file that it sources, beside another script's names."""
    kernel, script = need_guest(GUEST).kernel, theirs(folder)
    lines = [
        f"source {script}",
        f"target remote {qemu.gdb_socket}",
        SOURCE,
        f"source {script}",
        f"pt kernel {kernel}",
        *commands,
        "python print('names kept:', all(globals()[each] == 'theirs' for each in names))",
        "echo done\\n",
    ]
    (folder / "session.gdb").write_text("\n".join(lines) + "\n")
    done = typed(gdb, f"source {SCRIPTS / 'attach.gdb'}", "source session.gdb", folder=folder)
    assert "names kept: True\ndone\n" in done.stdout, done.stdout + done.stderr
    return done


def answers(text: str) -> list[dict[str, Any]]:
    """Return what `pt --json` printed."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_the_main_job_is_the_same_as_without(gdb: str, qemu: Qemu, tmp_path: Path) -> None:
    done = run(
        gdb,
        qemu,
        tmp_path,
        "pt --json kpti run",
        "pt --json summary",
        "pt --json walk $sp",
        "pt --json stack",
        "pt save after after.npz",
        "pt --json diff before after",
        "pt --json cpus",
        "show scheduler-locking",
    )
    assert "attach.gdb" not in done.stderr
    assert 'Mode for locking scheduler during execution is "step"' in done.stdout
    said = answers(done.stdout)
    assert [answer["ok"] for answer in said] == [True] * 6, said
    file = tmp_path / "after.npz"
    summary, walk = said[1]["result"], said[2]["result"]
    with fresh() as offline:
        assert offline(f"summary --snap {file}")["levels"] == summary["levels"]
        assert offline(f"walk {walk['va']} --snap {file}")["steps"] == walk["steps"]
    assert walk["outcome"] == "mapped"
    marked = sum(level["table_descriptors_marked"] for level in summary["levels"])
    assert said[4]["result"]["only_bit11"] is True
    assert sum(level["marked"] for level in said[4]["result"]["levels"]) == marked > 100
    assert said[3]["result"]["cpus"][0]["task"]["comm"].startswith("migration/")
    assert len(said[5]["result"]["cpus"]) == 2
    assert "breakpoint 1" not in done.stdout.lower(), "stops on the way are not told"


def test_breakpoints_are_gdbs_own_and_its_stops_are_followed(gdb: str, qemu: Qemu, tmp_path: Path) -> None:
    done = run(
        gdb,
        qemu,
        tmp_path,
        f"source {SCRIPTS / 'kpti.gdb'}",
        "continue",
        "pt snap entry",
        "delete 1 2",
        "continue",
        "pt --json status",
        "pt snap end",
        "thread",
        "pt stack --cpu all",
        "thread",
        "pt --json diff entry end",
        "pt --json status",
        "pt --json break",
        "info breakpoints",
    )
    stop, diff, status, breakpoints = (answer["result"] for answer in answers(done.stdout))
    assert stop["reason"] == "breakpoint-hit" and stop["cpu"] == 0
    assert done.stdout.count("[Current thread is 1 (") == 2, "the user's choice of a CPU is kept"
    assert diff["only_bit11"] is True
    assert sum(level["changed"] for level in diff["levels"]) > 60_000
    assert status["state"] == "stopped"
    numbers = [row["id"] for row in breakpoints["breakpoints"]]
    assert 2 not in numbers and len(numbers) >= 2
    for row in breakpoints["breakpoints"]:
        assert re.search(rf"^{row['id']} +hw breakpoint +keep y +0x0*{row['address'][2:]}", done.stdout, re.M)


def test_errors_are_one_line_and_gdb_goes_on(gdb: str, qemu: Qemu, tmp_path: Path) -> None:
    done = run(
        gdb,
        qemu,
        tmp_path,
        "pt wolk",
        "print $pt_exit",
        "pt launch",
        "print $pt_exit",
        "pt walk nosuchsymbol",
        "print $pt_exit",
        "pt until pa:0x40000004 --timeout 300",
        "print $pt_exit",
        "pt until panic --timeout 1",
        "print $pt_exit",
        "stepi",
        "pt --json regs pc",
    )
    assert re.findall(r"^\$\d+ = (\d+)$", done.stdout, re.M) == ["2", "2", "2", "0", "3"]
    assert "Traceback" not in done.stdout + done.stderr
    assert "no command 'wolk'" in done.stderr
    assert "start QEMU yourself" in done.stderr
    assert "did not stop within 1 s" in done.stderr
    assert answers(done.stdout)[-1]["ok"] is True


def test_a_gdb_without_a_target_and_without_ptinspect_says_so(gdb: str, tmp_path: Path) -> None:
    def said(python: str) -> str:
        done = typed(gdb, SOURCE, "pt walk 0", folder=tmp_path, python=python)
        return done.stdout + done.stderr

    assert "not attached to a guest" in said(sys.executable)
    assert "no Python with ptinspect was found" in said("/bin/false")


def test_the_short_name_stays_another_scripts(gdb: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.py"
    theirs.write_text(
        "import gdb\n"
        "class Theirs(gdb.Command):\n"
        "    def __init__(self): super().__init__('pt', gdb.COMMAND_DATA)\n"
        "    def invoke(self, argument, from_tty): print('theirs')\n"
        "Theirs()\n"
    )

    def said(*lines: str) -> str:
        done = typed(gdb, *lines, folder=tmp_path)
        assert done.returncode == 0
        told.append(done.stderr)
        return done.stdout

    told: list[str] = []
    both = said(f"source {theirs}", SOURCE, "pt version", "ptinspect version")
    assert "the command pt is another script's" in both and "\ntheirs\nptinspect 0" in both
    first, *again = said(SOURCE, SOURCE, "pt version").splitlines()
    assert first.startswith("ptinspect: for short pt") and again[0].startswith("ptinspect 0"), again
    later = said(SOURCE, f"source {theirs}", "ptinspect version", "pt version", "ptinspect version")
    assert later.splitlines()[1].startswith("ptinspect 0") and "\ntheirs\nptinspect 0" in later
    assert told[-1].count("the command pt is another script's") == 1, "it is said once"
