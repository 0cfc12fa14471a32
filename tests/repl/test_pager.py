from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_runner import Screen

from ptinspect.output.model import Note, Report
from ptinspect.repl import printer
from ptinspect.repl.printer import Printer

LONG = Report({}, (Note("\n".join(f"line {n}" for n in range(60)), "good"),))


@pytest.fixture
def to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pager that keeps what it gets."""
    script = tmp_path / "page"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/paged\n")
    script.chmod(0o755)
    monkeypatch.setenv("PAGER", str(script))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((80, 24)))
    return tmp_path / "paged"


def interactive(terminal: bool = True, **more: Any) -> Printer:
    printer = Printer(out=Screen(terminal), err=Screen(), **more)
    printer.pages = True
    return printer


def out(printer: Printer) -> str:
    return printer.out.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_what_is_longer_than_the_screen_goes_to_the_pager_with_its_colours(to_file: Path) -> None:
    printer = interactive()
    printer.report("map", LONG)
    assert out(printer) == ""
    assert to_file.read_text().count("\x1b[32mline") == 60


@pytest.mark.parametrize(
    "printer",
    [interactive(False), interactive(json=True), Printer(out=Screen(True), err=Screen())],
    ids=["pipe", "json", "script"],
)
def test_pipes_json_and_scripts_have_no_pager(printer: Printer, to_file: Path) -> None:
    printer.report("map", LONG)
    assert not to_file.exists()
    assert "line 59" in out(printer) or printer.json


def test_what_fits_is_just_printed_and_so_is_all_where_the_pager_is_off(to_file: Path) -> None:
    printer = interactive()
    printer.report("map", Report({}, (Note("\n".join("x" * 22)),)))
    printer.options.set("pager", "off", "session")
    printer.report("map", LONG)
    printer.options.set("pager", "auto", "session")
    printer.step("map", LONG)
    assert not to_file.exists()
    assert out(printer).count("line 59") == 2
    printer.report("map", Report({}, (Note("\n".join("x" * 23)),)))
    assert to_file.exists()


def test_long_lines_count_as_what_they_take() -> None:
    size = os.terminal_size((80, 24))
    assert printer.too_long("x" * 81 * 22, size)
    assert not printer.too_long(f"\x1b[32m{'x' * 80}\x1b[0m\n" * 22, size)


@pytest.mark.parametrize("chosen", ["", "cat", "no-such-pager-here", "'"])
def test_without_a_pager_all_is_printed(chosen: str, to_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER", chosen)
    printer = interactive()
    printer.report("map", LONG)
    assert "line 59" in out(printer)


def test_less_is_the_default_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert printer.pager_command({}) == ["less", "-RFXK"]
    assert printer.pager_command({"PAGER": "less -S"}) == ["less", "-S"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert printer.pager_command({}) == []


def test_a_pager_that_leaves_early_and_ctrl_c_in_it_are_nothing_special(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "page"
    script.write_text("#!/bin/sh\nkill -INT $PPID\nexit 2\n")
    script.chmod(0o755)
    before = signal.getsignal(signal.SIGINT)
    assert printer.view_in_pager("x" * (1 << 20), {**os.environ, "PAGER": str(script)})
    assert signal.getsignal(signal.SIGINT) is before
