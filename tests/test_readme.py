"""README.md says what is there: its list of commands is the registry's, its commands are those of CI."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from fakes import context

from ptinspect.commands.framework.command import Command
from ptinspect.commands.framework.registry import build_registry
from ptinspect.script.parse import parse_line
from ptinspect.script.statements import Line

ROOT = Path(__file__).parents[1]
WORDS = ("var", "repeat", "on stop", "on failure", "source")
"""The words of the script language."""
README = (ROOT / "README.md").read_text("utf-8")


def between(start: str, end: str) -> str:
    return README.split(start, 1)[1].split(end, 1)[0]


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_what_it_names_is_there() -> None:
    for name in re.findall(r"`help ([\w-]+)`", README):
        assert build_registry().run(context(), f"help {name}").value is not None


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_there_is_one_command_for_a_fresh_machine(name: str) -> None:
    command = between(f"<!-- {name} -->\n```sh\n", "\n```")
    assert "\n" not in command
    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0


def test_ci_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    extract = next(line for line in script.splitlines() if line.startswith("command="))
    shown = subprocess.run(
        ["bash", "-c", f'{extract}; printf %s "$command"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == between("<!-- tests -->\n```sh\n", "\n```")


@pytest.mark.parametrize("command", list(build_registry()), ids=lambda c: c.name)
def test_every_example_parses(command: Command) -> None:
    if command.name in WORDS:
        assert not isinstance(parse_line(command.example), Line)
        return
    assert build_registry().parse(command.example).name == command.name
