"""Looking for QEMU and GDB, and installing them, on systems that are scripts of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from local_archive import quiet

from ptinspect.errors import TargetError
from ptinspect.reference import system_tools


class FakeSystem:
    """A PATH with only our programs; what they are asked to do is written down."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.log = directory / "log"
        for name in ("env", "sh", "touch", "test", "echo"):
            (self.bin / name).symlink_to(f"/usr/bin/{name}")
        monkeypatch.setenv("PATH", str(self.bin))

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return FakeSystem(tmp_path, monkeypatch)


def gdb_found() -> tuple[str, str]:
    return "/usr/bin/gdb", "13.1"


def gdb_missing() -> tuple[str, str]:
    raise TargetError("no usable GDB")


def test_qemu_and_gdb_that_are_there(machine: FakeSystem) -> None:
    machine.program(system_tools.QEMU, 'echo "QEMU emulator version 9.2.1 (Debian 1:9.2.1+ds-1)"')
    qemu, gdb = system_tools.check_tools(gdb_found)
    assert (qemu.found, qemu.version, qemu.path) == (True, "9.2.1", str(machine.bin / system_tools.QEMU))
    assert (gdb.found, gdb.version, gdb.needed_command) == (True, "13.1", "")


def test_tools_that_are_missing_come_with_the_command(machine: FakeSystem) -> None:
    qemu, gdb = system_tools.check_tools(gdb_missing)
    assert (qemu.found, qemu.problem) == (False, "not installed")
    assert qemu.needed_command == "apt-get install -y --no-install-recommends qemu-system-arm ipxe-qemu"
    assert (gdb.found, gdb.problem) == (False, "no usable GDB")
    assert gdb.needed_command.endswith(" gdb-multiarch")


def test_what_the_tests_need_is_looked_for_when_asked(
    machine: FakeSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.program(system_tools.QEMU, 'echo "QEMU emulator version 9.2.1"')
    machine.program("chromium", 'echo "Chromium 156.0.1 built on Debian"')
    assert len(system_tools.check_tools(gdb_found)) == 2
    monkeypatch.setattr(system_tools, "DAEMONS", str(tmp_path))
    (tmp_path / "slurmd").write_text("#!/bin/sh\necho slurm-wlm 22.05.8\n")
    (tmp_path / "slurmd").chmod(0o755)
    tools = {tool.name: tool for tool in system_tools.check_tools(gdb_found, tests=True)}
    assembler, browser, daemon = (tools[name] for name in ("aarch64-linux-gnu-as", "chromium", "slurmd"))
    assert (assembler.found, assembler.packages) == (False, ("binutils-aarch64-linux-gnu",))
    assert (browser.found, browser.version) == (True, "156.0.1")
    assert (daemon.found, daemon.path) == (True, str(tmp_path / "slurmd"))
    assert (tools["slurmctld"].found, tools["parallel"].found) == (False, False)


def test_the_command_for_a_user_who_is_not_root(machine: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert system_tools.install_command(["p"]) == "sudo apt-get install -y --no-install-recommends p"


def test_a_qemu_that_does_not_run(machine: FakeSystem) -> None:
    machine.program(system_tools.QEMU, "echo broken library >&2; exit 127")
    qemu = system_tools.check_tools(gdb_found)[0]
    assert not qemu.found
    assert "broken library" in qemu.problem


def test_a_qemu_that_fails_after_its_version(machine: FakeSystem) -> None:
    machine.program(system_tools.QEMU, 'echo "QEMU emulator version 9.2.1"; exit 1')
    assert not system_tools.check_tools(gdb_found)[0].found


def test_root_installs_without_an_update_when_none_is_needed(machine: FakeSystem) -> None:
    machine.program("apt-get", "exit 0")
    system_tools.install_packages(["gdb-multiarch"], quiet)
    (call,) = machine.calls()
    assert call.startswith("apt-get ")
    assert call.endswith(" install -y --no-install-recommends gdb-multiarch")


def test_a_stale_index_is_renewed_once(machine: FakeSystem) -> None:
    machine.program(
        "apt-get", f'case "$*" in *update*) touch {machine.bin}/fresh;; *) test -e {machine.bin}/fresh;; esac'
    )
    system_tools.install_packages(["p"], quiet)
    assert [("install" if " install" in c else "update") for c in machine.calls()] == [
        "install",
        "update",
        "install",
    ]


def test_a_failure_of_apt_is_quoted(machine: FakeSystem) -> None:
    machine.program("apt-get", "echo 'E: Unable to locate package p' >&2; exit 100")
    with pytest.raises(TargetError, match="E: Unable to locate package p") as caught:
        system_tools.install_packages(["p"], quiet)
    assert caught.value.hint == "run: apt-get install -y --no-install-recommends p"


def test_sudo_is_used_where_it_asks_nothing(machine: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.program("sudo", 'shift; [ "$1" = true ] || exec "$@"')
    machine.program("apt-get", "exit 0")
    system_tools.install_packages(["p"], quiet)
    calls = machine.calls()
    assert calls[0] == "sudo -n true"
    assert calls[1].startswith("sudo -n env DEBIAN_FRONTEND=noninteractive apt-get ")
    assert calls[2].endswith(" install -y --no-install-recommends p")


@pytest.mark.parametrize("sudo", [True, False])
def test_the_command_is_named_when_nobody_can_answer_sudo(
    machine: FakeSystem, monkeypatch: pytest.MonkeyPatch, sudo: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.program("apt-get", "exit 0")
    if sudo:
        machine.program("sudo", "exit 1")
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123
    with pytest.raises(TargetError, match="needs root") as caught:
        system_tools.install_packages(["p"], quiet)
    assert caught.value.hint == "run: sudo apt-get install -y --no-install-recommends p"
    assert machine.calls() == (["sudo -n true"] if sudo else [])


def test_a_system_without_apt(machine: FakeSystem) -> None:
    with pytest.raises(TargetError, match="no apt"):
        system_tools.install_packages(["p"], quiet)


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo tool 7.2.22 of a vendor", "7.2.22"),
        ("echo GNU parallel 20221122", "20221122"),
        ('[ "$1" = -V ] && echo slurm-wlm 22.05.8', "22.05.8"),
        ("echo usage: no version", None),
        ("echo 1.0; exit 1", None),
    ],
)
def test_a_program_tells_its_version_its_own_way(tmp_path: Path, script: str, version: str | None) -> None:
    program = tmp_path / "tool"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    if version is None:
        with pytest.raises(TargetError, match="does not run"):
            system_tools.find_program(str(program))
    else:
        assert system_tools.find_program(str(program)) == (str(program), version)
