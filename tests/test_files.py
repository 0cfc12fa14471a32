"""Where the user's files are, on machines that do not say."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from ptinspect import config, files
from ptinspect.link import journal


@pytest.mark.parametrize("version", ["new", "old"])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """As a container has that runs as a number of which its passwd knows nothing."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    class Old:
        user_cache_dir, user_config_dir, user_state_dir = "~/.cache/x", "~/.config/x", "~/.local/state/x"

    for name in ("HOME", files.CACHE_VARIABLE, config.VARIABLE, *(f"XDG_{k}_HOME" for k in KINDS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if version == "old":
        monkeypatch.setattr("platformdirs.PlatformDirs", lambda name: Old)
    assert files.cache_directory() == Path("/.cache/ptinspect")
    assert config.location() == "/.config/ptinspect/config.toml"
    assert journal.directory() == Path("/.local/state/ptinspect/stubs")


KINDS = ("CACHE", "CONFIG", "STATE")
