from __future__ import annotations

from pathlib import Path

import pytest
from fakes import context, kernel_tree, run, text

from ptinspect import config
from ptinspect.commands.framework.options import OPTIONS, Options, find, written
from ptinspect.errors import UserError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc" / "mine.toml"
    monkeypatch.setenv(config.VARIABLE, str(path))
    return path


def test_an_option_is_for_the_session(file: Path) -> None:
    ctx = context()
    assert "pager is off" in text(run(ctx, "set pag off"))
    assert (ctx.options["pager"], ctx.options.origin("pager")) == ("off", "session")
    assert not file.exists()
    assert run(ctx, "set pager default").result == {"options": {"pager": "auto"}, "saved": None}


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("set confirm no", "confirm", False),
        ("set color off", "colour", "off"),
        ("set pagination on", "pager", "auto"),
        ("set rows 0x10", "rows", 16),
        ("set timeout 2m", "timeout", 120.0),
        ("set timeout-a 3", "timeout-attach", 3.0),
        ("set prompt 'pt> '", "prompt", "pt> "),
        ("set history 0", "history", 0),
    ],
)
def test_values(line: str, name: str, value: object) -> None:
    ctx = context()
    run(ctx, line)
    assert ctx.options[name] == value
    again = Options()
    again.set(name, written(ctx.options[name]), "file")
    assert again[name] == value


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("set pager maybe", "longer than the screen"),
        ("set confirm 7", "cannot be undone"),
        ("set nonsense 1", "show lists them"),
        ("set colur on", "did you mean colour?"),
        ("set $x0 3", "gdb set"),
        ("set p off", "ambiguous: pager, prompt"),
        ("set prompt '\x1b[2J'", "stands before the line"),
        ("set rows many", "rows of a list"),
        ("set --save", "set NAME VALUE"),
    ],
)
def test_what_is_wrong_says_what_to_type(line: str, hint: str) -> None:
    ctx = context()
    with pytest.raises(UserError) as caught:
        run(ctx, line)
    assert hint in f"{caught.value.message}; {caught.value.hint}"
    assert ctx.options.chosen == {}


def test_saving_keeps_what_else_stands_there(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("# mine\nrows = 7 # few\n[other]\nx = 1\n")
    ctx = context()
    assert str(file) in text(run(ctx, "set --save pager off"))
    run(ctx, "set timeout 5")
    run(ctx, "set --save")
    kept = file.read_text()
    assert kept.startswith("# mine\nrows = 7 # few\n")
    assert "[other]\nx = 1" in kept
    options = Options()
    wrong = options.take(config.read(file), "file")
    assert wrong == ["other: no such option"]
    assert (options["rows"], options["pager"], options["timeout"]) == (7, "off", 5.0)
    assert [p.name for p in file.parent.iterdir()] == ["mine.toml"]


def test_what_cannot_be_saved_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(config.VARIABLE, str(tmp_path / "file" / "x.toml"))
    with pytest.raises(UserError, match="cannot"):
        run(context(), "set --save pager off")
    broken = tmp_path / "broken.toml"
    broken.write_text("rows = [")
    monkeypatch.setenv(config.VARIABLE, str(broken))
    with pytest.raises(UserError, match="not a TOML file"):
        run(context(), "set --save pager off")
    assert broken.read_text() == "rows = ["
    monkeypatch.setenv(config.VARIABLE, "/dev/null")
    with pytest.raises(UserError, match="not a regular file"):
        run(context(), "set --save pager off")


def test_a_file_with_wrong_values_is_told_line_by_line() -> None:
    options = Options()
    found = {"rows": -1, "pager": ["x"], "nothing": 1, "timeout": 3, "confirm": False, "colour": "mauve"}
    wrong = options.take(found, "file")
    assert [line.partition(":")[0] for line in wrong] == ["rows", "pager", "nothing", "colour"]
    assert (options["timeout"], options["confirm"], options["rows"]) == (3.0, False, 0)


def test_show_says_where_each_comes_from(file: Path) -> None:
    ctx = context()
    ctx.options.take({"rows": 9}, "file")
    run(ctx, "set pager off")
    shown = {item["name"]: (item["value"], item["from"]) for item in run(ctx, "show").result["options"]}
    assert set(shown) == set(OPTIONS)
    assert (shown["rows"], shown["pager"]) == ((9, "file"), ("off", "session"))
    assert shown["confirm"] == (True, "default")
    assert str(file) in text(run(ctx, "show rows"))
    assert run(ctx, "set rows").result == run(ctx, "show rows").result


def test_every_default_is_a_value_that_can_be_typed() -> None:
    for option in OPTIONS.values():
        assert option.read(written(option.default)) == option.default
        assert find(option.name) is option


def test_rows_and_timeout_have_an_effect() -> None:
    ctx = context(kernel_tree())
    assert ctx.rows(20) == 20
    run(ctx, "set rows 1")
    assert ctx.rows(20) == 1
    assert "more" in text(run(ctx, "map"))
    run(ctx, "set timeout 7")
    with pytest.raises(Exception, match="in time"):
        run(ctx, "continue")
    assert ("wait", 7.0) in ctx.guest.session.calls  # type: ignore[union-attr]


def test_a_large_file_and_no_file(tmp_path: Path) -> None:
    assert config.read(tmp_path / "none.toml") == {}
    (tmp_path / "large.toml").write_text("#" * (config.MAX_BYTES + 1))
    with pytest.raises(UserError, match="too large"):
        config.read(tmp_path / "large.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a TOML file"):
        config.read(tmp_path / "binary.toml")
