"""Which programs are tried as GDB, and in which order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ptinspect.link.gdb.program import candidates


def programs(folder: Path, *names: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return [str(folder / name) for name in names]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PTINSPECT_GDB", raising=False)
    folder = tmp_path / "usr"
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path / "venv"), str(folder))))
    return folder


def test_the_system_s_come_before_those_of_a_virtual_environment(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, own = programs(tmp_path / "venv", "python3", "gdb")
    monkeypatch.setattr(sys, "executable", python)
    assert list(candidates(None)) == [own]
    (multiarch,) = programs(system, "gdb-multiarch")
    assert list(candidates(None)) == [multiarch, own]


def test_those_beside_the_system_s_python_are_the_system_s(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, *gdbs = programs(system, "python3", "gdb-multiarch", "gdb")
    monkeypatch.setattr(sys, "executable", python)
    assert list(candidates(None)) == gdbs
