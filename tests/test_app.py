"""The process: arguments, exit codes, what goes to which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import declare

from ptinspect import __version__, app
from ptinspect.commands.framework.command import argument
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry, build_registry
from ptinspect.errors import ConnectError, MemoryReadError
from ptinspect.output.model import Note, Report

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptinspect", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("line", "code"), [("decode 3 -l 3", 0), ("decode 3", 2)])
def test_an_output_may_be_closed(line: str, code: int, closed: str) -> None:
    shell = ["sh", "-c", f"{sys.executable} -m ptinspect {line} {closed}"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert done.returncode == code
    assert b"Traceback" not in done.stdout + done.stderr


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"ptinspect {__version__}\n")


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in build_registry():
        assert f"  {command.name} " in done.stdout
    assert "70 a bug" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["version"], 0, __version__),
        (["nonsense"], 2, "no command 'nonsense'"),
        (["decode", "0x3"], 2, "--level"),
        (["decode", "0x3", "--level", "9"], 2, "is not a level"),
        (["walk", "0x10"], 2, "not attached"),
        (["--no-such-option"], 2, "unrecognized"),
        (["--kernel", "/no/such/file", "version"], 2, "no file"),
        (["--kernel", "/", "version"], 2, "/ is a directory"),
        (["--kernel", "/dev/null", "version"], 2, "can be read only once"),
        (["--kernel", "a" * 300, "version"], 2, "cannot read aaa"),
        (["launch", "5.10-cloud"], 2, "no file 5.10-cloud"),
        (["-x", "/no/such/script"], 2, "cannot read the script"),
        (["walk", "0x10", "--snap", "none"], 2, "no snapshot and no file"),
        (["-c", "version", "-c", "nonsense", "-c", "version"], 2, "nonsense"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, word: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert word in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert 1 <= len(done.stderr.splitlines()) <= 4


@pytest.mark.parametrize(
    ("command", "code"), [("version", 0), ("shell exit 3", 1), ("nonsense", 125), ("walk 0x10", 125)]
)
def test_what_git_bisect_is_told(command: str, code: int) -> None:
    assert run("--bisect", "-c", command).returncode == code
    assert app.for_bisect(130) == 130


def test_wrong_options_are_json_too() -> None:
    done = run("--json", "--no-such-option")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "usage"


def test_a_script_and_commands_in_the_order_given(tmp_path: Path) -> None:
    script = tmp_path / "s.pti"
    script.write_text("# first\ndecode 0x3 --level 3\n")
    done = run("-c", "version", "-x", str(script), "help", "walk")
    assert done.returncode == 0
    order = [done.stdout.index(word) for word in ("Python", "at level 3", "walk: Show")]
    assert order == sorted(order)


def test_the_lines_of_a_script_are_shown_and_those_of_others_are_not(tmp_path: Path) -> None:
    script = tmp_path / "s.pti"
    script.write_text("decode 0x3 \\\n    --level 3\nwalk 0x10\n")
    shown = run("-c", "version", "-x", str(script))
    quiet = run("-q", "-c", "version", "-x", str(script))
    lines = shown.stdout.splitlines()
    echoes = ["ptinspect> decode 0x3 --level 3", "ptinspect> walk 0x10"]
    assert [line for line in lines if "ptinspect>" in line] == echoes
    assert [line for line in lines if line not in echoes] == quiet.stdout.splitlines()
    assert shown.stderr == quiet.stderr
    assert "ptinspect>" not in run(stdin=script.read_text()).stdout


def test_commands_from_a_pipe() -> None:
    done = run(stdin="version\n# comment\nnonsense\nversion\n")
    assert done.returncode == 2
    assert done.stdout.count("ptinspect 0") == 1
    assert done.stderr.startswith("stdin:3: ")


def test_no_colours_in_a_pipe_unless_asked_for() -> None:
    assert "\x1b" not in run("help").stdout
    assert "\x1b" in run("--color", "help").stdout


def test_a_reader_that_has_left_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ptinspect", "help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


class Closing:
    """A session or a QEMU that notes what was done with it."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name
        self.keep = False
        self.stop_token = 0

    def notices(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self.log.append(self.name)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a command `probe` that runs a function into the registry; return the list of what was closed."""
    closed: list[str] = []

    def install(action: Any) -> list[str]:
        def build() -> Registry:
            registry = Registry()

            def handler(ctx: Context) -> Report:
                ctx.guest.session, ctx.guest.qemu = Closing(closed, "session"), Closing(closed, "qemu")  # type: ignore[assignment]
                answer = action()
                return answer if isinstance(answer, Report) else Report({})

            declare(
                registry,
                "probe",
                handler,
            )
            declare(
                registry,
                "attach",
                lambda ctx, address: fail(ConnectError("refused")),
                arguments=(argument("address"),),
            )
            return registry

        monkeypatch.setattr("ptinspect.commands.framework.registry.build_registry", build)
        return closed

    return install


def fail(error: BaseException) -> Report:
    raise error


@pytest.mark.parametrize(
    ("action", "code", "word"),
    [
        (lambda: Report({}, (Note("fine"),)), 0, "fine"),
        (lambda: Report({}, (Note("differs"),), exit_code=1), 1, "differs"),
        (lambda: fail(MemoryReadError(16, 8, "not RAM")), 3, "not RAM"),
        (lambda: fail(KeyboardInterrupt()), 130, "interrupted"),
        (
            lambda: fail(ZeroDivisionError("oh")),
            70,
            "a bug in ptinspect: ZeroDivisionError: oh (test_app.py:",
        ),
    ],
)
def test_the_guest_is_left_however_it_ends(
    probe: Any, capsys: pytest.CaptureFixture[str], action: Any, code: int, word: str
) -> None:
    closed = probe(action)
    assert app.main(["probe"]) == code
    assert closed == ["session", "qemu"]
    shown = capsys.readouterr()
    assert word in shown.out + shown.err
    assert ("Traceback" in shown.err) == (code == 70)


def test_a_bug_is_one_json_line(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    probe(lambda: fail(KeyError("x")))
    assert app.main(["--json", "probe"]) == 70
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "bug"


def test_termination_closes_the_guest(probe: Any) -> None:
    closed = probe(lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        app.main(["probe"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert closed == ["session", "qemu"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stub_that_cannot_be_reached(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    closed = probe(lambda: Report({}))
    assert app.main(["--gdb", ":1", "probe"]) == 4
    assert "refused" in capsys.readouterr().err
    assert closed == []


def test_arguments_keep_their_words() -> None:
    registry = build_registry()
    assert app.join(registry, ["snap", "x", "--note", "two words; # no comment"]) == (
        "snap x --note 'two words; # no comment'"
    )
    assert app.join(registry, ["gdb", "p $x0 + 1"]) == "gdb p $x0 + 1"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("rows = [", "is not a TOML file"),
        ("rows = -1", "rows: '-1' is not a number"),
        ('rose = 1\ncolour = "on"', "rose: no such option"),
    ],
)
def test_a_broken_configuration_is_one_line_and_the_defaults_hold(
    written: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(written)
    monkeypatch.setenv("PTINSPECT_CONFIG", str(path))
    done = run("--json", "show", "rows")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert said in done.stderr
    assert json.loads(done.stdout)["result"]["options"][0]["value"] == 0


@pytest.mark.parametrize(
    ("arguments", "no_colour", "coloured"),
    [
        (["help", "version"], "", True),
        (["--plain", "help", "version"], "", False),
        (["help", "version"], "1", False),
        (["--color", "help", "version"], "1", True),
        (["-c", "set colour on", "-c", "help version"], "1", True),
        (["--color", "-c", "set colour off", "-c", "help version"], "", False),
    ],
)
def test_colours_as_the_latest_word_has_it(
    arguments: list[str], no_colour: str, coloured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('colour = "on"')
    monkeypatch.setenv("PTINSPECT_CONFIG", str(path))
    monkeypatch.setenv("NO_COLOR", no_colour)
    assert ("\x1b[" in run(*arguments).stdout) is coloured


@pytest.mark.parametrize("arguments", ["--version", "--help", "--json version", "scripts"])
def test_output_that_cannot_be_written_is_one_line(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ptinspect", *arguments.split()],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "ptinspect: cannot write the output: No space left on device\n"


def test_nothing_to_read_commands_from() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "ptinspect"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no standard input" in done.stderr


def test_nothing_else_is_in_the_place_of_a_closed_input() -> None:
    code = "import os, sys; from ptinspect import __main__ as m; m._open_streams(); print(os.open('/', 0))"
    for words, status, out, err in (
        (["-c", code], 0, "3\n", ""),
        (["-m", "ptinspect", "oops", "-"], 2, "", "there is no standard input"),
    ):
        shell = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, *words]
        done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (status, out)
        assert err in done.stderr


def test_input_that_cannot_be_read_is_one_line() -> None:
    with Path("/proc/self/mem").open() as unreadable:
        done = subprocess.run(
            [sys.executable, "-m", "ptinspect"], check=False, stdin=unreadable, capture_output=True, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "ptinspect: cannot read standard input: Input/output error\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["oops", "a" * 5000], ["oops", "a\nb"], ["oops", "~no-such-user/x"], ["diff", "~no-such-user/x", "y"],
        ["load", "~no-such-user/x"], ["export", "~no-such-user/x", "-o", "x.csv"], ["-x", "~no-such-user/x"],
        ["stack", "diff", "~no-such-user/x", "b"], ["import", "~no-such-user/x"], ["import", "a" * 5000],
        ["oops", "a\udcffb"], ["--kernel", "a\udcffb", "version"], ["--gdb", "a\nshell false", "status"],
        ["--gdb", "a\udcff/b", "status"], ["demo", "--directory", "/dev/null/x"],
    ],
)  # fmt: skip
def test_a_path_that_can_be_none_is_one_line_and_no_bug(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode in (2, 3, 4), done.stderr
    assert "Traceback" not in done.stderr and "a bug" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_directory_that_was_removed(tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    for arguments, code in ((["decode", "3", "--level", "3"], 0), (["diff", "a", "b"], 2)):
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, "-m", "ptinspect", *arguments],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code, done.stderr


def test_a_fifo_that_nobody_writes_to_is_no_reason_to_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = str(tmp_path / "fifo")
    for arguments in (["oops", path], ["-x", path], ["diff", path, path], ["stack", "diff", path, path],
                      ["import", path], ["load", path], ["--kernel", path, "version"]):  # fmt: skip
        assert run(*arguments).returncode in (0, 2), arguments


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Internal error: Oops: 0000000096000005 [#1] SMP\n")
    done = run("oops", str(log), "-o", "/dev/null")
    assert Path("/dev/null").is_char_device(), "the device was replaced by a file"
    assert done.returncode == 2 and "suffix" in done.stderr
    done = run("--junit", "/dev/full", "-c", "version")
    assert Path("/dev/full").is_char_device()
    assert done.returncode == 2 and "cannot write /dev/full" in done.stderr


TWICE = """
import os, signal, sys, threading, time
from ptinspect import app
from ptinspect.commands.framework.context import Context
from ptinspect.repl.player import Player

def close(self):
    for _ in range(5):
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(0.01)
    print("left in order", flush=True)

def play(self, statements):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(20)

Context.close, Player.play = close, play
sys.exit(app.main(["-c", "version"]))
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("later", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_further_signals_do_not_abort_the_orderly_end(first: int, later: int) -> None:
    command = [sys.executable, "-c", TWICE, str(int(first)), str(int(later))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 128 + first
    assert done.stdout == "left in order\n" and "Traceback" not in done.stderr
