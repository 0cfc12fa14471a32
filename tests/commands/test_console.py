from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import context, kernel_tree, run, text

from ptinspect.commands.framework.context import Silent
from ptinspect.commands.target import console
from ptinspect.errors import GuestError, UserError
from ptinspect.guest import console_log
from ptinspect.repl.printer import Printer


class Listener(Silent):
    """Keep the console's lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def aside(self, line: str) -> None:
        self.lines.append(line)


def launched(tmp_path: Path, said: bytes = b"") -> tuple[Any, Path, Listener]:
    path = tmp_path / "console"
    path.write_bytes(said)
    listener = Listener()
    ctx = context(interaction=listener)
    ctx.guest.qemu = SimpleNamespace(console=path, close=lambda: None)  # type: ignore[assignment]
    return ctx, path, listener


def add(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_the_end_is_shown(tmp_path: Path) -> None:
    ctx, path, _ = launched(tmp_path, b"one\r\ntwo\x1b[2J\r\nthree\r\n")
    assert text(run(ctx, "console -n 2")) == "two\\x1b[2J\nthree\n"
    with pytest.raises(UserError, match="following"):
        run(ctx, "console off")
    path.unlink()
    with pytest.raises(GuestError, match="cannot read the console"):
        run(ctx, "console")
    ctx.guest.qemu = None
    for line in ("console", "console -f", "console -f --timeout 0"):
        with pytest.raises(UserError, match="launched here"):
            run(ctx, line)


def test_a_replay_has_the_console_of_the_recording(tmp_path: Path) -> None:
    ctx, _, _ = launched(tmp_path, b"one\n")
    ctx.guest.session = context(kernel_tree()).guest.session
    for mode, said in (("record", "one\n"), ("replay", "one\nof the whole recording, wherever its")):
        ctx.guest.session.replay = SimpleNamespace(mode=mode)
        assert text(run(ctx, "console")).startswith(said) and ("whole" in said) == (mode == "replay")


def test_only_whole_lines_and_only_new_ones(tmp_path: Path) -> None:
    ctx, path, _ = launched(tmp_path, b"old\nold")
    tail = console_log.Tail(ctx.guest)
    add(path, b"er\r\nnew\xff\tx\npar")
    assert tail.lines() == ["er", "new\ufffd    x"]
    add(path, b"t\x07")
    assert tail.lines() == []
    assert tail.rest() == ["part\\x07"]
    add(path, b"y" * (console_log.LINE + 3))
    assert tail.lines() == ["y" * console_log.LINE]
    path.unlink()
    assert tail.lines() == []
    other = tmp_path / "other"
    other.write_bytes(b"first\n")
    ctx.guest.qemu = SimpleNamespace(console=other, close=lambda: None)
    assert tail.lines() == ["first"]


def test_a_script_follows_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, path, listener = launched(tmp_path, b"old\n")
    times = iter((b"a\n", b"b\n", b"c"))
    monkeypatch.setattr(console_log, "time", clock := SimpleNamespace(now=0.0))

    def sleep(seconds: float) -> None:
        clock.now += 4.0
        add(path, next(times, b""))

    clock.monotonic, clock.sleep = (lambda: clock.now), sleep
    assert run(ctx, "console -f").result["lines"] == ["a", "b", "c"]
    assert listener.lines == ["a", "b", "c"]
    assert clock.now == 12.0
    assert ctx.follower is None


def test_at_the_prompt_it_goes_on_until_it_is_ended(tmp_path: Path) -> None:
    ctx, path, listener = launched(tmp_path, b"old\n")
    ctx.interactive = True
    shown = run(ctx, "console -f")
    assert shown.result["lines"] == ["old"]
    assert shown.result["following"]
    add(path, b"a\nb")
    assert run(ctx, "console -f").result == {"following": False}
    assert listener.lines == ["a", "b"]
    assert not run(ctx, "console -f off").result["following"]
    run(ctx, "console -f on")
    thread = ctx.follower._thread
    add(path, b"\n" * (console.AT_ONCE + 7))
    ctx.close()
    assert not thread.is_alive()
    assert listener.lines.count("(7 lines left out)") <= 1
    assert len(listener.lines) >= 2 + console.AT_ONCE


def test_lines_go_above_the_prompt_or_between_answers() -> None:
    printer = Printer(out=io.StringIO(), err=io.StringIO())
    said: list[str] = []
    at_prompt = [True]
    printer.above = lambda text: at_prompt[0] and (said.append(text) or True)  # type: ignore[func-returns-value]
    printer.aside("a")
    at_prompt[0] = False
    printer.aside("b")
    assert said == ["| a\n"]
    assert printer.out.getvalue() == "| b\n"  # type: ignore[attr-defined]
    quiet = Printer(json=True, out=io.StringIO(), err=io.StringIO())
    quiet.aside("c")
    assert quiet.out.getvalue() == ""  # type: ignore[attr-defined]
