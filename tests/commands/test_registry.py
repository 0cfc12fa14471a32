from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import context, declare, kernel_tree

from ptinspect.commands.framework.catalogue import catalogue
from ptinspect.commands.framework.command import FORCED, Command, Needs, argument
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry, build_registry
from ptinspect.errors import PtinspectError, UserError
from ptinspect.output.model import Report


def answer(ctx: Context, **parsed: Any) -> Report:
    return Report(parsed)


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    for name, more in {
        "snap": {"aliases": ("s",)},
        "snaps": {},
        "kpti": {},
        "kpti run": {},
        "kpti status": {},
        "stack": {},
        "gdb": {"passthrough": True},
        "launch": {"extra": True},
        "x": {"slash": "--format", "arguments": (argument("--format"),)},
        "far away": {},
    }.items():
        options: dict[str, Any] = {"summary": "S", "example": name, **more}
        declare(made, name, answer, **options)
    return made


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("snap", "snap"),
        ("snaps", "snaps"),
        ("s", "snap"),
        ("st", "stack"),
        ("kpti", "kpti"),
        ("kpti run", "kpti run"),
        ("k r", "kpti run"),
        ("far a", "far away"),
        ("  gdb   info x", "gdb"),
        ("gdb # all", "gdb"),
    ],
)
def test_names_aliases_and_abbreviations(registry: Registry, line: str, name: str) -> None:
    assert registry.split(line).command.name == name


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("sn", "ambiguous"),
        ("", "no command given"),
        ("# only a comment", "no command given"),
        ("nonsense", "no command 'nonsense'"),
        ("far", "needs a further word"),
        ("snap 'x", "No closing quotation"),
        ("snap \\ ", "No escaped character"),
    ],
)
def test_what_is_no_command(registry: Registry, line: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        registry.split(line)
    assert caught.value.hint


def test_a_file_is_no_command(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "before.npz").touch()
    with pytest.raises(UserError, match=r"no command '.*before\.npz'") as caught:
        registry.split(f"{tmp_path}/before.npz")
    assert "load reads a snapshot" in caught.value.hint
    with pytest.raises(UserError, match="no command '!ls'") as caught:
        registry.split("!ls -l")
    assert "shell ls" in caught.value.hint


def test_passthrough_keeps_its_text(registry: Registry) -> None:
    assert registry.run(Context(registry), "gdb p  'a b'  # c").result == {"line": "p  'a b'  # c"}


def test_words_behind_two_dashes_are_for_another_program(registry: Registry) -> None:
    assert registry.run(Context(registry), "launch -- -d int -- x").result == {
        "extra": ["-d", "int", "--", "x"]
    }
    assert registry.run(Context(registry), "launch").result == {"extra": []}


def test_a_slash_opens_an_option_of_commands_that_have_one(registry: Registry) -> None:
    assert registry.run(Context(registry), "x/8gx").result == {"format": "8gx"}
    assert registry.run(Context(registry), "x  /8gx").result == {"format": "8gx"}
    with pytest.raises(UserError, match="no command 'snap/8'"):
        registry.split("snap/8")


def test_wrong_arguments_are_the_users_and_never_leave_the_process(registry: Registry) -> None:
    for line in ("snap --nosuch", "snap extra", "x --format"):
        with pytest.raises(UserError) as caught:
            registry.run(Context(registry), line)
        assert "usage:" in caught.value.hint


@pytest.mark.parametrize(
    "line", ["walk $x²", "print $w²", "walk 0x10 --root task:²", "expect summary levels ²", "walk ~\0"]
)
def test_what_only_looks_like_a_number_or_a_home_is_the_users_mistake(line: str) -> None:
    ctx = context(kernel_tree())
    with pytest.raises(PtinspectError):
        ctx.registry.run(ctx, line)


def test_needs_are_checked_before_the_handler_runs() -> None:
    registry = Registry()
    declare(registry, "live", answer, needs=Needs.STOPPED)
    with pytest.raises(UserError, match="live: not attached"):
        registry.run(Context(registry), "live")


def test_a_name_is_registered_once(registry: Registry) -> None:
    with pytest.raises(ValueError, match="twice"):
        declare(
            registry,
            "snap",
            answer,
        )
    with pytest.raises(ValueError, match="twice"):
        declare(registry, "other", answer, aliases=("s",))


def test_the_catalogue_names_what_the_modules_register() -> None:
    registry = build_registry()
    for entry in catalogue():
        command = registry.commands[entry.words]
        assert (command.aliases, command.summary) == (entry.aliases, entry.summary)
        assert command.handler.__module__ == f"ptinspect.commands.{entry.module}"
    assert sorted(command.words for command in registry) == sorted(entry.words for entry in catalogue())


def test_a_command_imports_its_own_module_only() -> None:
    code = (
        "import sys; from ptinspect.app import main; main(['-c', 'b']) == 2 or sys.exit('not run');"
        "print(*sorted(m.split('.', 2)[2] for m in sys.modules if m.startswith('ptinspect.commands.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert loaded & {entry.module for entry in catalogue()} == {"run.breakpoints"}, run.stderr


def test_looking_a_command_up_loads_it_and_counting_does_not() -> None:
    registry, loads = Registry(), []

    def load() -> None:
        loads.append(1)
        declare(registry, "far", answer, aliases=("f",))

    registry.declare(("far",), ("f",), load)
    registry.declare(("farther",), (), load)
    assert (len(registry.commands), ("far",) in registry.commands, loads) == (2, True, [])
    with pytest.raises(UserError, match="ambiguous"):
        registry.resolve(["fa"])
    assert loads == []
    assert registry.split("f").command.name == "far" and registry.split("far").command.name == "far"
    assert loads == [1]
    with pytest.raises(ValueError, match="declared twice"):
        registry.declare(("other",), ("f",), load)
    with pytest.raises(ValueError, match="declared twice"):
        registry.declare(("far",), (), load)


def test_no_alias_hides_a_command() -> None:
    registry = build_registry()
    assert not {(alias,) for alias in registry.aliases} & set(registry.commands)


def test_the_short_names_that_debugger_users_have_in_their_fingers() -> None:
    registry = build_registry()
    wanted = {"c": "continue", "si": "stepi", "b": "break", "bt": "bt", "x": "x", "q": "quit"}
    for short, name in wanted.items():
        assert registry.split(short).command.name == name


def test_a_misspelt_option_is_guessed() -> None:
    for line in ("summary | wc -l", "summary > file"):  # neither scripts nor a GDB of the user's have them
        with pytest.raises(UserError, match=r"unrecognized arguments: [|>]") as caught:
            build_registry().parse(line)
        assert "pipe pt COMMAND" in caught.value.hint
    with pytest.raises(UserError, match="unrecognized arguments: --memroy") as caught:
        build_registry().split("launch").command.parser().parse_args(["--memroy", "512"])
    assert "did you mean --memory?" in caught.value.hint
    with pytest.raises(UserError) as caught:
        build_registry().split("launch").command.parser().parse_args(["--zzz"])
    assert caught.value.hint.startswith("usage: launch")


@pytest.mark.parametrize("command", list(build_registry()), ids=lambda command: command.name)
def test_a_handler_takes_what_its_declaration_parses(command: Command) -> None:
    first, *others = inspect.signature(command.handler).parameters.values()
    assert first.name in ("guest", "ctx")
    parsed = {"line"} if command.passthrough else {action.dest for action in command.parser().actions()}
    within = {item.name: item.within[0] for item in command.arguments if item.within}
    parsed = {within.get(name, name) for name in parsed - {FORCED}}
    assert {parameter.name for parameter in others} == parsed | ({"extra"} if command.extra else set())
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)


def test_a_command_that_another_thread_loads_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, real = build_registry(), importlib.import_module
    began, go_on = threading.Event(), threading.Event()

    def slowly(name: str) -> ModuleType:
        began.set()
        assert go_on.wait(10)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", slowly)
    other = threading.Thread(target=lambda: registry.commands[("version",)])
    other.start()
    assert began.wait(10)
    threading.Timer(0.1, go_on.set).start()
    assert registry.commands[("version",)].name == "version"
    other.join()


def test_a_module_whose_import_was_interrupted_is_imported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = build_registry()

    def interrupted(name: str) -> ModuleType:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry.split("version")
    assert registry.split("version").command.name == "version"


def test_commands_are_listed_with_those_that_they_belong_to() -> None:
    groups = {command.name: command.group for command in build_registry()}
    assert groups["finish"] == groups["nexti"] == groups["stepi"]
    assert groups["bt"] == groups["disassemble"]
