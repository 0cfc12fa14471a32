from __future__ import annotations

from pathlib import Path

import pytest
from fakes import context
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import PipeInput
from test_loop import err, keys, loop, out  # noqa: F401

from ptinspect.errors import UserError
from ptinspect.repl.line_history import LineHistory, expand, open_history

LINES = ["walk 0x10", "version", "decode 0x3", "walk $pc"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("walk 0x20", "walk 0x20"),
        ("", ""),
        ("!!", "walk $pc"),
        ("!! --root ttbr1", "walk $pc --root ttbr1"),
        ("!2", "version"),
        ("!-2", "decode 0x3"),
        ("!walk", "walk $pc"),
        ("!de --level 3", "decode 0x3 --level 3"),
        ("expect a != b", "expect a != b"),
    ],
)
def test_a_line_is_called_back(typed: str, meant: str) -> None:
    assert expand(typed, LINES) == meant


@pytest.mark.parametrize("typed", ["!", "!0", "!5", "!-5", "!map", "! walk", "!=3", "!99999999999999999999"])
def test_what_calls_nothing_back_says_so(typed: str) -> None:
    with pytest.raises(UserError, match=r"calls no line|no line !") as caught:
        expand(typed, LINES)
    assert "history" in caught.value.hint


def test_the_line_that_runs_is_shown_and_kept(keys: PipeInput) -> None:  # noqa: F811
    subject = loop(context(), keys)
    keys.send_text("version\n!ver\n!9\n# no\n!!\n\x04")
    subject.run()
    assert out(subject).count("ptinspect 0") == 3
    assert err(subject).count("version\n") == 2
    assert "no line !9" in err(subject)
    assert subject.ctx.history == ["version"]


def test_up_arrow_and_search_find_lines(keys: PipeInput) -> None:  # noqa: F811
    for typed in ("ver\x1b[A\n", "\x12sion\n\n", "\x1b[A\x1b[A\n"):
        subject = loop(context(), keys, InMemoryHistory(["version", "nonsense"]))
        keys.send_text(typed + "\x04")
        subject.run()
        assert "ptinspect 0" in out(subject), typed
        assert "nonsense" not in err(subject)


def test_history_lists_the_last_lines(keys: PipeInput) -> None:  # noqa: F811
    subject = loop(context(), keys, InMemoryHistory(LINES))
    subject.execute("history 2")
    assert out(subject).split("\n")[:2] == ["4  walk $pc", "5  history 2"]


def test_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "history"
    store = open_history(path, 3)
    for number in range(7):
        store.store_string(f"line {number}")
    assert LineHistory(open_history(path, 4), 4).lines == [f"line {n}" for n in range(3, 7)]
    assert len(list(FileHistory(path).load_history_strings())) == 7
    history = LineHistory(open_history(path, 3))
    assert history.lines == ["line 4", "line 5", "line 6"]
    history.keep("line 7")
    history.keep("line 7")
    assert LineHistory(open_history(path, 3)).lines[-2:] == ["line 6", "line 7"]
