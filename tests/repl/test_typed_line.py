from __future__ import annotations

from pathlib import Path

import pytest
from fakes import context, kernel_tree
from prompt_toolkit.input import PipeInput
from test_loop import err, keys, loop, out

from ptinspect.errors import UserError
from ptinspect.repl.typed_line import EXPRESSION, Typed, commands, without_prompt

__all__ = ["keys"]


def own(line: str) -> str:
    if line.startswith("p "):
        return EXPRESSION
    return ";|>" if line.startswith(("gdb", "expect")) else ""


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("walk $pc", [Typed("walk $pc")]),
        ("a; b ;c;", [Typed("a"), Typed("b"), Typed("c")]),
        ("a 'x;y' ; b", [Typed("a 'x;y'"), Typed("b")]),
        ("walk $pc | grep 'a|b' | wc; b", [Typed("walk $pc", shell="grep 'a|b' | wc"), Typed("b")]),
        ("gdb p 1|2; x > y", [Typed("gdb p 1|2; x > y")]),
        ("| gdb info line | grep x", [Typed("gdb info line", shell="grep x")]),
        ("summary > 'a b.txt'", [Typed("summary", file="a b.txt")]),
        ("summary >> ~/x", [Typed("summary", file="~/x", append=True)]),
        ("expect summary.tables > 5", [Typed("expect summary.tables > 5")]),
        ('decode "it\'s" > f.txt', [Typed('decode "it\'s"', file="f.txt")]),
        ("decode 1 'a > b'", [Typed("decode 1 'a > b'")]),
        ("p $x0 > 5", [Typed("p $x0 > 5")]),
        ("p $x0 >> 3 | 1; p 2", [Typed("p $x0 >> 3 | 1"), Typed("p 2")]),
        ("p (a > b) | (c | d)", [Typed("p (a > b) | (c | d)")]),
        ("p a->b || c", [Typed("p a->b || c")]),
        ("p a[b|c] >= d", [Typed("p a[b|c] >= d")]),
        ("p $x0 > f.txt", [Typed("p $x0", file="f.txt")]),
        ("p $x0 >> ~/f", [Typed("p $x0", file="~/f", append=True)]),
        ("p a->b | grep x", [Typed("p a->b", shell="grep x")]),
        (
            "p b if $x0 > limit | flags; p c > f",
            [Typed("p b if $x0 > limit | flags"), Typed("p c", file="f")],
        ),
        ("p 1 | 2 | grep 'x > 5'", [Typed("p 1 | 2", shell="grep 'x > 5'")]),
    ],
)
def test_the_commands_of_a_line(line: str, parts: list[Typed]) -> None:
    assert list(commands(line, own)) == parts


@pytest.mark.parametrize("line", ["walk |", "| grep", "|"])
def test_a_pipe_to_or_from_nothing(line: str) -> None:
    with pytest.raises(UserError, match="both of its sides"):
        list(commands(line, own))


@pytest.mark.parametrize("line", ["walk >", "walk >>", "p 5 >"])
def test_a_file_without_a_name(line: str) -> None:
    with pytest.raises(UserError, match="name of a file"):
        list(commands(line, own))


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("ptinspect> walk", "walk"),
        ("(gdb) x/4x 1", "x/4x 1"),
        ("ptinspect> (gdb) c", "c"),
        ("(gdb)", ""),
        ("  stepi", "  stepi"),
    ],
)
def test_prompts_that_came_along(line: str, left: str) -> None:
    assert without_prompt(line) == left


def test_pipes_and_files_get_what_a_command_prints(keys: PipeInput, tmp_path: Path) -> None:
    subject = loop(context(kernel_tree()), keys)
    file = tmp_path / "there.txt"
    subject.execute("version | tr a-z A-Z; version")
    assert out(subject).startswith("PTINSPECT 0") and out(subject).count("ptinspect 0") == 1
    subject.execute(f"version > {file}")
    subject.execute(f"version >> {file}")
    assert file.read_text().count("ptinspect 0") == 2 and out(subject).count("ptinspect 0") == 1
    subject.execute("version > /nowhere/x")
    assert "cannot write /nowhere/x" in err(subject)
    subject.execute("version | no-such-command-here")
    assert "the shell has no command 'no-such-command-here'" in err(subject)
    subject.execute("nonsense; version")
    assert out(subject).count("ptinspect 0") == 1  # what follows a failure is not run


def test_a_condition_is_c_to_its_end(
    keys: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject = loop(context(kernel_tree()), keys)
    for line in ("condition 1 $x0 > limit; version", "break 0x1000 if $x0 > limit", "cond 1 $x0 | cat"):
        subject.execute(line)
    assert not list(tmp_path.iterdir()) and "'limit': symbols need" in err(subject)


def test_a_pasted_block(keys: PipeInput) -> None:
    ctx = context(kernel_tree())
    subject = loop(ctx, keys)
    subject.execute("ptinspect> version\n(gdb) nonsense\n# a comment\nrepeat 2:\n    version\n\n")
    assert out(subject).count("ptinspect 0") == 3
    assert "no command 'nonsense'" in err(subject)
    assert ctx.history == ["version", "nonsense"]
    subject.execute("repeat 2:\nversion")
    assert "pasted:1: nothing belongs to this" in err(subject)


def test_bracketed_paste_comes_as_one_block(keys: PipeInput) -> None:
    subject = loop(context(), keys)
    keys.send_text("\x1b[200~version\nversion\x1b[201~\n\x04")
    subject.run()
    assert out(subject).count("ptinspect 0") == 2


def test_an_exclamation_mark_calls_the_history_or_the_shell(keys: PipeInput, tmp_path: Path) -> None:
    subject = loop(context(), keys)
    subject.ctx.interactive = False  # the shell's output is shown as an answer then
    subject.execute("version")
    subject.execute("!ver")
    assert out(subject).count("ptinspect 0") == 2
    subject.execute("!echo from the shell")
    subject.execute("! echo and again")
    assert "from the shell\n" in out(subject) and "and again\n" in out(subject)
    subject.execute("!walk")
    assert "no line !walk in the history" in err(subject)
    subject.execute("shell exit 3")
    assert "exit code 3" in out(subject)


def test_home_directories(keys: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "s.pti").write_text("version\n")
    subject = loop(context(kernel_tree()), keys)
    for line in ("source ~/s.pti", "snap one", "save one ~/one.npz", "diff ~/one.npz ~/one.npz"):
        subject.execute(line)
    assert err(subject) == "" and (tmp_path / "one.npz").exists()
    assert out(subject).count("ptinspect 0") == 1


def test_the_history_keeps_the_line_as_typed(keys: PipeInput) -> None:
    subject = loop(context(), keys)
    subject.execute("version | cat")
    assert subject.ctx.history == ["version | cat"]
