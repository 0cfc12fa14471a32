"""Where the user's files are, on machines that do not say."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Literal

import pytest

from ptinspect import config, files
from ptinspect.link import journal

KINDS = ("CACHE", "CONFIG", "STATE")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says where the user's files are."""
    for name in ("HOME", files.CACHE_VARIABLE, config.VARIABLE, *(f"XDG_{kind}_HOME" for kind in KINDS)):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("home", [None, "/"])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    """As a container has that runs as a number of which its passwd knows nothing."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert files.cache_directory() == Path("/.cache/ptinspect")
    assert config.location() == "/.config/ptinspect/config.toml"
    assert journal.directory() == Path("/.local/state/ptinspect/stubs")


@pytest.mark.parametrize("kind", ["cache", "config", "state"])
@pytest.mark.parametrize("chosen", [None, "", "relative", "/chosen"])
def test_directories_are_those_of_the_specification(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["cache", "config", "state"], chosen: str | None
) -> None:
    """As the XDG specification has it: a path that is relative is ignored."""
    monkeypatch.setenv("HOME", "/home/user")
    if chosen is not None:
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", chosen)
    expected = {"cache": ".cache", "config": ".config", "state": ".local/state"}[kind]
    directory = chosen if chosen == "/chosen" else f"/home/user/{expected}"
    assert files.user_directory(kind) == f"{directory}/ptinspect"
