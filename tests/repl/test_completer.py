from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeKernel, context, kernel_tree
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from ptinspect.repl.completer import CommandCompleter, split_words


def complete(line: str, ctx: Any = None) -> list[str]:
    completer = CommandCompleter(ctx or context())
    return [c.text for c in completer.get_completions(Document(line, len(line)), CompleteEvent())]


def test_commands() -> None:
    assert complete("sn") == ["snap", "snaps"]
    assert set(complete("")) >= {"walk", "decode", "help"}
    assert complete("zzz") == []


def test_options_have_a_word_of_help() -> None:
    completer = CommandCompleter(context())
    found = list(completer.get_completions(Document("walk --r", 8), CompleteEvent()))
    assert [c.text for c in found] == ["--root"]
    assert "swapper" in found[0].display_meta_text


def test_words_of_help() -> None:
    assert "walk" in complete("help w")


def test_symbols_by_prefix() -> None:
    ctx = context(kernel_tree())
    ctx._kernel = FakeKernel()  # type: ignore[assignment]
    assert complete("walk st", ctx) == ["start_kernel"]
    assert complete("walk swapper_pg_dir+_t", ctx) == ["_text"]
    assert complete("walk pa:sw", ctx) == ["swapper_pg_dir"]
    assert complete("walk 0x10 st", ctx) == []


def test_registers() -> None:
    assert "$x0" in complete("walk $x")
    assert complete("walk $TTBR1", context(kernel_tree())) == ["$TTBR1_EL1"]


def test_snapshots_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    ctx.snapshots["before"] = ctx.snapshots["after"] = None  # type: ignore[assignment]
    (tmp_path / "bench.npz").touch()
    monkeypatch.chdir(tmp_path)
    assert complete("walk 0x10 --snap be", ctx) == ["before", "nch.npz"]
    assert complete("drop before af", ctx) == ["after"]
    assert complete("load be", ctx) == ["nch.npz"]


@pytest.mark.parametrize(
    ("line", "words", "current"),
    [
        ("", [], ""),
        ("wal", [], "wal"),
        ("walk ", ["walk"], ""),
        ("walk 0x1", ["walk"], "0x1"),
        ('save a "b c', ["save", "a", '"b'], "c"),
    ],
)
def test_split(line: str, words: list[str], current: str) -> None:
    assert split_words(line) == (words, current)
