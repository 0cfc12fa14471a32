from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSession, State, Stop, context, declare, kernel_tree
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from test_runner import Screen

from ptinspect.output.model import Note, Report
from ptinspect.repl.line_history import open_history
from ptinspect.repl.loop import Loop
from ptinspect.repl.printer import Printer


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as source:
        yield source


def loop(ctx: Any, keys: PipeInput, history: InMemoryHistory | None = None) -> Loop:
    ctx.interactive = True
    printer = Printer(out=Screen(), err=Screen())
    return Loop(ctx, printer, history=history or InMemoryHistory(), source=keys, screen=DummyOutput())


def out(subject: Loop) -> str:
    return subject.printer.out.getvalue()  # type: ignore[attr-defined,no-any-return]


def err(subject: Loop) -> str:
    return subject.printer.err.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_commands_until_ctrl_d(keys: PipeInput) -> None:
    subject = loop(context(), keys)
    keys.send_text("version\nnonsense\nversion\n\x04")
    assert subject.run() == 0
    assert out(subject).count("ptinspect 0") == 2
    assert "no command 'nonsense'" in err(subject)


def test_quit_leaves(keys: PipeInput) -> None:
    subject = loop(context(), keys)
    keys.send_text("quit\n")
    assert subject.run() == 0


def test_ctrl_c_at_the_prompt_clears_the_line(keys: PipeInput) -> None:
    subject = loop(context(), keys)
    keys.send_text("nonsense\x03version\n\x04")
    subject.run()
    assert "nonsense" not in err(subject)
    assert out(subject).count("ptinspect 0") == 1


def test_a_bug_does_not_end_the_loop(keys: PipeInput) -> None:
    def broken(ctx: Any) -> Report:
        raise ZeroDivisionError("oh")

    ctx = context()
    declare(
        ctx.registry,
        "broken",
        broken,
    )
    subject = loop(ctx, keys)
    keys.send_text("broken\nversion\n\x04")
    assert subject.run() == 0
    assert "a bug in ptinspect: ZeroDivisionError: oh (test_loop.py:" in err(subject)
    assert "Traceback" not in err(subject)
    assert out(subject).count("ptinspect 0") == 1


def test_enter_repeats_only_what_repeats(keys: PipeInput) -> None:
    ctx = context(kernel_tree())
    session: Any = ctx.guest.session
    subject = loop(ctx, keys)
    for line in ("", "stepi 3", "", "", "version", ""):
        subject.execute(line)
    assert [call for call in session.calls if call[0] == "step"] == [("step", 3, 0)] * 3
    assert out(subject).count("ptinspect 0") == 1


def test_enter_repeats_a_line_with_a_variable_and_one_with_actions_at_its_stop(keys: PipeInput) -> None:
    ctx = context(kernel_tree())
    session: Any = ctx.guest.session
    session.on_wait = lambda: Stop("breakpoint-hit", 0, None, 0x1000, "")
    subject = loop(ctx, keys)
    for line in ("var n = 3", "stepi ${n}", "", "on stop any: version", "continue", ""):
        subject.execute(line)
    assert [call for call in session.calls if call[0] == "step"] == [("step", 3, 0)] * 2
    assert out(subject).count("ptinspect 0") == 2
    subject.execute("nonsense")
    subject.execute("")
    assert out(subject).count("ptinspect 0") == 2


def test_ctrl_c_stops_a_running_guest(keys: PipeInput) -> None:
    ctx = context(kernel_tree())
    session: Any = ctx.guest.session

    def press() -> Stop:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal did not get through")

    session.on_wait = press
    before = signal.getsignal(signal.SIGINT)
    subject = loop(ctx, keys)
    subject.execute("continue")
    assert ("interrupt",) in session.calls
    assert session.state is State.STOPPED
    assert "stopped: cpu 0" in err(subject) + out(subject)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_who_waits_is_told_how_to_stop_the_guest(keys: PipeInput) -> None:
    ctx = context(kernel_tree())
    session: Any = ctx.guest.session
    told: list[str] = []
    subject = loop(ctx, keys)
    subject.printer.waiting = told.append  # type: ignore[method-assign]
    keys.send_text("continue\n\x04")
    session.on_wait = lambda: [listener("waiting", {}) for listener in session.listeners] and session.stop
    subject.run()
    assert told == ["running; Ctrl-C stops it"]


def test_ctrl_c_cancels_other_work(keys: PipeInput) -> None:
    def work(ctx: Any) -> Report:
        os.kill(os.getpid(), signal.SIGINT)
        return Report({}, (Note("not cancelled"),))

    ctx = context(kernel_tree())
    declare(
        ctx.registry,
        "work",
        work,
    )
    subject = loop(ctx, keys)
    subject.execute("work")
    session: Any = ctx.guest.session
    assert ("interrupt",) not in session.calls
    assert "not cancelled" not in out(subject)
    assert "cancelled" in err(subject)


def test_the_toolbar_says_where_the_guest_stands(keys: PipeInput) -> None:
    ctx = context()
    subject = loop(ctx, keys)
    assert subject.toolbar() == " no guest"
    attached = context(kernel_tree())
    session: FakeSession = attached.guest.session  # type: ignore[assignment]
    subject = loop(attached, keys)
    assert subject.toolbar() == " stopped · cpu 0 EL1 · MMU on · 0xffff800010010000 · :1234"
    session.state = State.RUNNING
    assert subject.toolbar() == " running · :1234"


def test_the_history_survives_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)
    history = open_history(tmp_path / "state" / "history")
    history.append_string("walk 0x10")
    assert "walk 0x10" in (tmp_path / "state" / "history").read_text()


def test_a_stop_in_words_with_what_is_next(keys: PipeInput) -> None:
    ctx = context(kernel_tree())
    session: Any = ctx.guest.session
    session.disassemble = lambda address, code: f"   {address:#x}:\tret"
    subject = loop(ctx, keys)
    session.on_wait = lambda: Stop("breakpoint-hit", 0, 3, 0xFFFF_8000_1000_0000, "")
    subject.execute("continue")
    subject.execute("stepi")
    lines = out(subject).splitlines()
    assert lines[0].endswith(": breakpoint 3") and lines[1] == "=> ret"
    assert any(line.endswith(": stepped") for line in lines)
    ctx.interactive = False
    subject.execute("continue")
    assert out(subject).splitlines()[-1].endswith(": breakpoint 3")


def test_what_becomes_of_the_guest_is_said_on_leaving(keys: PipeInput) -> None:
    subject = loop(context(kernel_tree()), keys)
    keys.send_text("quit\n")
    subject.run()
    assert "the guest is left running, as it was found" in err(subject)
