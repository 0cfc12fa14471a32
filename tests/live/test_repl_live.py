"""A session at the prompt, on a terminal and with a real guest."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from conftest import missing
from session import need_guest
from terminal import PROMPT, Terminal

ROOT = Path(__file__).parents[2]


def test_a_session_at_the_prompt(tmp_path: Path) -> None:
    need_guest("5.10-cloud")
    if shutil.which("less") is None:
        missing("less")
    terminal = Terminal(
        [sys.executable, "-m", "ptinspect", "--plain"],
        PYTHONPATH=str(ROOT),
        XDG_STATE_HOME=str(tmp_path),
        PAGER="less -RFXK",
    )

    def answer(line: str) -> str:
        terminal.type(line)
        return terminal.expect(PROMPT)

    try:
        terminal.expect(PROMPT)
        terminal.type("launch --guest 5.10-cloud --memory 256\r")
        terminal.expect("stopped at reset")
        pid = re.search(r"\(pid (\d+)\)", terminal.expect(PROMPT))
        assert pid is not None
        answer("console -f\r")
        terminal.type("c\r")
        terminal.expect("| ptinspect guest ready")  # a line of the console, while the command runs
        terminal.type("\x03")
        terminal.expect("stopped: cpu 0")
        terminal.expect(PROMPT)
        answer("until cpu_do_idle --timeout 300\r")  # it may have been in user mode
        assert "the chain ends" in answer("bt\r")
        terminal.type("walk start_ker\t")
        terminal.expect("nel")  # Tab has completed the symbol
        assert "root pa:" in answer("\r")
        terminal.type("map\r")
        terminal.expect("linear map")
        terminal.expect(":")  # the pager's own prompt
        terminal.type("q")
        terminal.expect(PROMPT)
        terminal.type("c\r")
        terminal.expect("\x1b[?2004l")  # the prompt has gone
        terminal.expect(PROMPT, meanwhile="\x03\x03\x03")
        terminal.type("console -f\r")
        terminal.expect("console is not followed")  # behind a prompt for each that came too late
        terminal.type("version\r")
        terminal.expect("ptinspect 0")
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert not Path(f"/proc/{pid[1]}").exists()
    finally:
        terminal.close()
    assert "walk start_kernel" in (tmp_path / "ptinspect" / "history").read_text()
