from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import context, declare, kernel_tree

from ptinspect.errors import MemoryReadError, TargetLost, UserError
from ptinspect.output.model import Note, Report
from ptinspect.repl.printer import Printer
from ptinspect.repl.runner import attempt
from ptinspect.script.statements import Line


def run_line(ctx: Any, printer: Printer, line: Line) -> int:
    return attempt(ctx, printer, line).outcome.code


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def printer() -> Printer:
    return Printer(out=Screen(), err=Screen())


def out(printer: Printer) -> str:
    assert isinstance(printer.out, Screen)
    return printer.out.getvalue()


def err(printer: Printer) -> str:
    assert isinstance(printer.err, Screen)
    return printer.err.getvalue()


def test_the_user_is_asked_before_anything_is_overwritten(printer: Printer, tmp_path: Path) -> None:
    ctx = context(kernel_tree())
    asked: list[str] = []
    answers = iter((False, True, False))

    def confirm(question: str) -> bool:
        asked.append(question)
        return next(answers)

    ctx.interaction.confirm = confirm  # type: ignore[method-assign]
    file = tmp_path / "a.npz"
    attempt(ctx, printer, Line("snap a"), asks=True)
    attempt(ctx, printer, Line(f"save a {tmp_path}/a"), asks=True)
    assert file.is_file() and not asked
    file.write_bytes(b"mine")
    assert attempt(ctx, printer, Line(f"save a {tmp_path}/a"), asks=True).outcome.code == 2
    assert (asked.pop(), file.read_bytes()) == (f"{file} is there already: overwrite it?", b"mine")
    assert (
        err(printer)
        == f"ptinspect: {file} stays as it was\n  --force overwrites it; set confirm off never asks\n"
    )
    assert attempt(ctx, printer, Line(f"save a {file}"), asks=True).outcome.code == 0
    assert asked.pop() and file.read_bytes() != b"mine"
    assert attempt(ctx, printer, Line("snap a"), asks=True).outcome.code == 2
    assert asked.pop() == "the snapshot a is there already: overwrite it?"
    assert attempt(ctx, printer, Line(f"save a {tmp_path}/{'x' * 300}"), asks=True).outcome.code == 2
    assert "File name too long" in err(printer) and not asked
    for words in (f"save a {file} --force", "snap a --replace", "record off", f"save a {tmp_path}/b"):
        attempt(ctx, printer, Line(words), asks=True)
    assert attempt(ctx, printer, Line(f"save a {file}")).outcome.code == 0, "a script is not asked"
    ctx.options.set("confirm", "off", "session")
    for words in ("snap a", f"save a {file}", f"record {file}"):
        assert attempt(ctx, printer, Line(words), asks=True).outcome.code == 0
    assert not asked


def test_the_user_is_asked_before_what_is_printed_overwrites_a_file(printer: Printer, tmp_path: Path) -> None:
    answers = [False, True]
    printer.confirm = lambda question: answers.pop(0)  # type: ignore[method-assign]
    file = tmp_path / "a.npz"

    def write(text: str, name: Path = file, **how: bool) -> None:
        with printer.into(file=str(name), **how):  # type: ignore[arg-type]
            printer.print(text)

    write("mine")
    with pytest.raises(UserError, match=r"a\.npz stays as it was"):
        write("other")
    assert file.read_text() == "mine"
    write("other")
    write(", more", append=True)
    write("nothing", Path("/dev/null"))
    for nowhere in ("a" * 300, f"{file}/a", "~nobody-of-that-name/a"):
        with pytest.raises(UserError, match="cannot write"):
            write("nothing", Path(nowhere))
    assert (file.read_text(), answers) == ("other, more", [])
    printer.options.set("confirm", "off", "session")
    write("last")
    assert file.read_text() == "last"


def with_command(handler: Any, name: str = "probe") -> Any:
    ctx = context()
    declare(
        ctx.registry,
        name,
        handler,
    )
    return ctx


def test_an_answer_goes_to_standard_output(printer: Printer) -> None:
    ctx = with_command(lambda ctx: Report({}, (Note("hello"),)))
    assert run_line(ctx, printer, Line("probe")) == 0
    assert (out(printer), err(printer)) == ("hello\n", "")


def test_an_error_is_two_lines_on_standard_error(printer: Printer) -> None:
    def fail(ctx: Any) -> Report:
        raise MemoryReadError(0x10, 8, "not RAM\x1b[2J", "try another")

    assert run_line(with_command(fail), printer, Line("probe")) == 3
    assert out(printer) == ""
    assert err(printer) == "ptinspect: cannot read 8 bytes at pa:0x10: not RAM\\x1b[2J\n  try another\n"


def test_json_is_one_object_per_line(printer: Printer) -> None:
    printer.json = True
    ctx = context()
    run_line(ctx, printer, Line("version"))
    run_line(ctx, printer, Line("vers"))
    run_line(ctx, printer, Line("decode zz -l 3"))
    lines = [json.loads(line) for line in out(printer).splitlines()]
    assert [(line["command"], line["ok"]) for line in lines] == [
        ("version", True),
        ("version", True),
        ("decode", False),
    ]
    assert lines[2]["error"]["kind"] == "usage"
    assert err(printer) == ""


@pytest.mark.parametrize("line", ["decode --help", "decode -h", "decode 0x1 --help"])
def test_help_of_a_command(printer: Printer, line: str) -> None:
    assert run_line(context(), printer, Line(line)) == 0
    assert "decode: Explain one descriptor" in out(printer)
    printer.json = True
    assert run_line(context(), printer, Line(line)) == 0
    assert json.loads(out(printer).splitlines()[-1])["command"] == "decode"


def test_progress_waits_a_second_and_goes_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ptinspect.repl.printer.time.monotonic", lambda: now[0])
    printer = Printer(out=Screen(), err=Screen(terminal=True), colour=False)
    printer.start()
    printer.progress("reading", 1, 4)
    assert err(printer) == ""
    now[0] += 1.5
    printer.progress("reading", 2, 4)
    printer.progress("reading", 3, 4)
    assert err(printer) == "\r\x1b[Kreading… 50%"
    printer.waiting("running")
    assert err(printer) == "\r\x1b[Kreading… 50%", "what is shown is not replaced"
    printer.end_progress()
    assert err(printer).endswith("\r\x1b[K")
    now[0] += 1
    printer.waiting("running")
    assert err(printer).endswith("\r\x1b[Krunning…")
    quiet = Printer(out=Screen(), err=Screen(terminal=False))
    quiet.start()
    now[0] += 5
    quiet.progress("reading", 1, 2)
    assert err(quiet) == ""


def test_nobody_answers_questions_without_a_terminal(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printer.confirm("really?") is False
    monkeypatch.setattr("sys.stdin", None)
    assert printer.confirm("really?") is False


def test_a_lost_guest_is_told_with_the_last_words_of_its_qemu(printer: Printer) -> None:
    class Process:
        def wait(self, timeout: float) -> int:
            return 1

    class Qemu:
        process = Process()
        alive = False

        def last_words(self) -> str:
            return "one\nKernel panic\x07"

    def fail(ctx: Any) -> Report:
        raise TargetLost("the session is over", "attach or launch again")

    ctx = with_command(fail)
    ctx.guest.qemu = Qemu()
    assert run_line(ctx, printer, Line("probe")) == 3
    assert err(printer).splitlines() == [
        "ptinspect: the session is over",
        "  attach or launch again; QEMU's last words: one | Kernel panic\\x07",
    ]
