"""Which QEMU is started: named for a launch, named for all of them, or the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import context, run

from ptinspect.errors import TargetError, UserError
from ptinspect.link.qemu.machine import PROGRAM, PROGRAM_VARIABLE, LaunchOptions, find_program, launch


def program(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text('#!/bin/sh\necho "I am $0"\nexit 3\n')
    path.chmod(0o755)
    return str(path)


def test_the_one_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, other, third = (program(tmp_path / name / PROGRAM) for name in ("bin", "other", "third"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    assert find_program() == system
    monkeypatch.setenv(PROGRAM_VARIABLE, other)
    assert find_program() == other
    assert find_program(third) == third


def test_one_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    with pytest.raises(TargetError, match=f"{PROGRAM} is not installed"):
        find_program()
    monkeypatch.setenv(PROGRAM_VARIABLE, "/no/qemu")
    with pytest.raises(TargetError, match="no program /no/qemu") as caught:
        find_program()
    assert PROGRAM_VARIABLE in caught.value.hint


def test_launch_starts_the_one_that_is_named(tmp_path: Path) -> None:
    mine = program(tmp_path / "mine")
    with pytest.raises(TargetError, match=f"QEMU ended with exit code 3: I am {mine}"):
        launch(LaunchOptions(tmp_path / "kernel", program=mine))
    kernel = tmp_path / "Image"
    kernel.write_bytes(bytes(64))
    with pytest.raises(TargetError, match=f"I am {mine}"):
        run(context(), f"launch {kernel} --no-initrd --qemu {mine}")
    with pytest.raises(UserError, match="no QEMU 'elder'"):
        run(context(), f"launch {kernel} --no-initrd --qemu elder")


def test_more_ram_than_the_host_has_is_only_reserved(tmp_path: Path) -> None:
    echo = tmp_path / "qemu"
    echo.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    echo.chmod(0o755)
    huge = (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20) + 1

    def words(memory: int, *more: str) -> str:
        with pytest.raises(TargetError) as caught:
            launch(LaunchOptions(tmp_path / "kernel", program=str(echo), memory=memory, extra=more))
        return caught.value.message

    backend = "-machine memory-backend=guest-ram"
    assert f"size={huge}M,reserve=off {backend}" in words(huge)
    assert "reserve" not in words(64)
    assert backend not in words(huge, "-object", f"memory-backend-file,id=ram,size={huge}M,mem-path=/tmp")
