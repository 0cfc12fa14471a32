"""Scripts that fail, each in its own way, without a guest: exit code, message, JSON and report."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ptinspect", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(stdin, timeout=60)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "s.pti"


def file_of(script: Path, data: bytes) -> str:
    script.write_bytes(data)
    return str(script)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version\nrepeat 3\n", "{s}:2: 'repeat 3' lacks its colon"),
        (b"version\non stop\n", "{s}:2: 'on stop' lacks its colon"),
        (b"version\nsnap 'a\n", "{s}:2: snap 'a: No closing quotation"),
        (b"version\nvar a b\n", "{s}:2: 'var a b' is not complete"),
        (b"version\nnonsense\n", "{s}:2: no command 'nonsense'"),
        (b"version\nrepeat 2:\n  help\n  frobnicate\n", "{s}:4: no command 'frobnicate'"),
        (b"version\nsnap ${name}\n", "{s}:2: ${{name}} has no value"),
        (b"repeat 2:\n    version\n  version\n", "{s}:3: indented otherwise than the line above"),
        (b"version\n    version\n", "{s}:2: indented, but it belongs to no block"),
        (
            b"  version\n# x\nversion\n",
            "{s}:3: indented less than the first line\n  begin what is in no block",
        ),
        (b"on stop any: version\n  version\n", "{s}:2: indented, but it belongs to no block\n  indent only"),
        (b"version\nrepeat 2:\nversion\n", "{s}:2: nothing belongs to this"),
        (b"version\nhelp \\", "{s}:2: the last line ends with a backslash"),
        (b"version\nsource none.pti\n", "{s}:2: cannot read the script none.pti: No such file"),
        (b"version\nsource @none\n", "{s}:2: no script @none"),
        (b"version\n\xff\xfe\n", "ptinspect: {s} is not a text file (UTF-8)"),
        (b"#" * (1 << 20) + b"\n", "ptinspect: the script {s} is larger than 1 MiB"),
        (b"version\n" * 20_001, "{s}:20001: more than 20000 lines"),
    ],
)
def test_nothing_runs_of_a_script_that_makes_no_sense(script: Path, data: bytes, message: str) -> None:
    code, out, err = run("-x", file_of(script, data))
    assert (code, out) == (2, "")
    assert err.startswith(message.format(s=script))
    assert len(err.splitlines()) <= 2


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    assert run("-x", "/no/such/script")[0::2] == (
        2,
        "ptinspect: cannot read the script /no/such/script: No such file or directory\n",
    )
    assert run("-x", str(tmp_path))[2].startswith(f"ptinspect: cannot read the script {tmp_path}: Is a dir")
    assert run("-x", "@kpti")[2].startswith("ptinspect: no script @kpti\n  did you mean @kpti-")
    assert run("--var", "x", "version")[0::2] == (
        2,
        "ptinspect: 'x' gives no variable a value\n  --var NAME=VALUE, as in --var mem=1024\n",
    )


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("version\nexpect version.version == 0\n", 1, "{s}:2: does not hold: version.version == 0"),
        ("version\nrepeat 2:\n    expect version.python contains x\n", 1, "{s}:3: does not hold"),
        ("version\nwalk 0x10\n", 2, "{s}:2: walk: not attached"),
        ("version\nrepeat x: version\n", 2, "{s}:2: 'x' is not a number"),
        ("version\nattach :1 --timeout 1\n", 4, "{s}:2: "),
        ("version\ndecode 0x1 --level 9\n", 2, "{s}:2: "),
        ("version\nsave none none.npz\n", 2, "{s}:2: no snapshot"),
    ],
)
def test_the_first_failure_ends_a_script(script: Path, text: str, code: int, message: str) -> None:
    found, out, err = run("-x", file_of(script, f"{text}help walk\n".encode()))
    assert found == code
    assert err.startswith(message.format(s=script)), err
    assert "Python" in out and "usage: walk" not in out


def test_a_pipe_that_is_no_text_or_ends_within_a_block() -> None:
    code, _, err = run(stdin=b"version\n\xff\nversion\n")
    assert (code, err) == (2, "ptinspect: standard input is no text (UTF-8)\n")
    code, out, err = run(stdin=b"version\nrepeat 2:\n")
    assert (code, out.count("Python")) == (2, 1)
    assert err.startswith("stdin:2: nothing belongs to this")


def test_a_report_that_cannot_be_written(script: Path) -> None:
    code, out, err = run("--junit", "/no/such/dir/x.xml", "-x", file_of(script, b"version\n"))
    assert (code, out) == (2, "")
    assert err.startswith("ptinspect: cannot write /no/such/dir/x.xml")


def test_failures_in_json_and_in_the_report(script: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    path = file_of(script, b"version\nrepeat 2 as n:\n    decode 0x${n} --level 9\nwalk 0x1\x01\n")
    code, out, err = run("--json", "--keep-going", "--junit", str(report), "-x", path)
    assert (code, err) == (2, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["command"], line["ok"], line["place"]) for line in lines] == [
        ("version", True, f"{path}:1"),
        ("decode", False, f"{path}:3"),
        ("decode", False, f"{path}:3"),
        ("walk", False, f"{path}:4"),
    ]
    assert lines[1]["line"] == "decode 0x1 --level 9"
    assert all(line["error"]["message"].startswith(line["place"] + ": ") for line in lines[1:])
    root = ET.parse(report).getroot()
    assert root.attrib["tests"] == "4" and root.attrib["errors"] == "3"
    names = [case.attrib["name"] for case in root.iter("testcase")]
    assert names[1:] == [
        f"{path}:3 decode 0x1 --level 9",
        f"{path}:3 decode 0x2 --level 9",
        f"{path}:4 walk 0x1\N{REPLACEMENT CHARACTER}",
    ]


def test_the_time_for_the_whole_run(script: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    path = file_of(script, b"var n = 1000000\nrepeat ${n}:\n    version\n")
    code, _, err = run("--timeout", "1", "--junit", str(report), "-x", path)
    assert code == 3
    assert err.splitlines()[-1].endswith(": the time limit of 1 s for the whole run is over")
    assert ET.parse(report).getroot().attrib["errors"] == "1"


def test_the_time_is_over_before_a_stub_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        code, _, err = run("--timeout", "1", "--gdb", address, "status")
    assert code == 3
    assert "the time limit of 1 s for the whole run is over" in err


def test_a_script_that_is_not_run_is_reported_too(script: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    path = file_of(script, b"version\nnonsense\n")
    assert run("--junit", str(report), "-x", path)[:2] == (2, "")
    (case,) = ET.parse(report).getroot().iter("testcase")
    assert case.attrib["name"] == f"{path}:2"
    assert case[0].attrib["message"] == f"{path}:2: no command 'nonsense'"


def test_a_report_of_what_failed_before_on_failure_ran(script: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    path = file_of(script, b"version\nwalk 0x10\n")
    assert run("--on-failure", "status", "--junit", str(report), "-x", path)[0] == 2
    root = ET.parse(report).getroot()
    assert (root.attrib["tests"], root.attrib["errors"]) == ("2", "1")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
    ],
)
def test_signals_say_where_they_came(
    script: Path, tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    report = tmp_path / "r.xml"
    path = file_of(script, b"repeat 1000000:\n    version\n")
    process = start("--junit", str(report), "-x", path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.decode() == f"{path}:2: {said}\n"
    assert int(ET.parse(report).getroot().attrib["tests"]) >= 1
