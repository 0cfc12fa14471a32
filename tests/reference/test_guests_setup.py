"""The command `setup`, over an archive of ours and tools that are there or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_guests_install import World

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry
from ptinspect.commands.target import setup
from ptinspect.errors import TargetError, UserError
from ptinspect.files import CACHE_VARIABLE, cache_directory
from ptinspect.output import json as json_output
from ptinspect.output.model import Report
from ptinspect.output.text import render
from ptinspect.reference import install, pins, system_tools
from ptinspect.reference.system_tools import Tool


class Machine:
    """Tools that may be missing, and what was installed."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.installed: list[str] = []
        self.may_install = True
        self.refused: set[str] = set()
        """Packages that apt cannot install."""

    def check(
        self, find_gdb: system_tools.Probe, qemu: system_tools.Probe, *, tests: bool = False
    ) -> list[Tool]:
        return [
            Tool(name, "", "", "not installed", (f"{name}-package",))
            if name in self.missing
            else Tool(name, f"/bin/{name}", "1.0", "", (f"{name}-package",))
            for name in ("qemu", "gdb")
        ]

    def install(self, packages: list[str], progress: object) -> None:
        if not self.may_install:
            raise TargetError("needs root", "run: apt-get install it")
        if self.refused & set(packages):
            raise system_tools.AptFailed(f"apt cannot install {' '.join(packages)}", "run: apt-get")
        self.installed += packages
        self.missing -= {name.removesuffix("-package") for name in packages}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(system_tools, "check_tools", made.check)
    monkeypatch.setattr(system_tools, "install_packages", made.install)
    return made


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> World:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    made = World(tmp_path)
    monkeypatch.setattr(pins, "load", lambda: made.table)
    monkeypatch.setattr(
        install,
        "Installer",
        lambda progress, real=install.Installer: real(
            progress, table=made.table, addresses=[made.archive.address], trust="trusted=yes"
        ),
    )
    return made


def run(line: str = "setup") -> Report:
    registry = Registry()
    registry.add_all(setup)
    report = registry.run(Context(registry), line)
    assert json_output.answer("setup", report)
    return report


def guest(report: Report, name: str) -> dict[str, object]:
    (found,) = (g for g in report.result["guests"] if g["name"] == name)
    return found


def test_nothing_is_changed_without_yes(world: World, machine: Machine) -> None:
    machine.missing.add("gdb")
    report = run()
    assert report.exit_code == 1
    assert report.result["complete"] is False
    assert machine.installed == []
    assert not cache_directory().exists()
    qemu, gdb = report.result["tools"]
    assert (qemu["found"], qemu["version"], qemu["path"]) == (True, "1.0", "/bin/qemu")
    assert (gdb["found"], gdb["problem"]) == (False, "not installed")
    assert gdb["needed_command"].endswith("apt-get install -y --no-install-recommends gdb-package")
    text = render(report)
    assert gdb["needed_command"] in text
    assert "setup --yes" in text
    assert "ptinspect[gdb]" in text


def test_yes_installs_what_is_missing_and_no_more(world: World, machine: Machine) -> None:
    machine.missing.add("qemu")
    report = run("setup --yes")
    assert (report.exit_code, report.result["complete"]) == (0, True)
    assert machine.installed == ["qemu-package"]
    default = guest(report, "5.10-cloud")
    assert (default["installed"], default["version"], default["serves"]) == (True, "5.10.223-1", "5.10-cloud")
    assert Path(str(default["kernel"])).is_file()
    assert Path(str(default["initrd"])).is_file()
    assert guest(report, "6.1-cloud")["installed"] is False
    assert run("setup").exit_code == 0
    assert run("setup --yes").exit_code == 0
    assert machine.installed == ["qemu-package"]


def test_a_package_that_apt_refuses_keeps_no_other_away(world: World, machine: Machine) -> None:
    machine.missing |= {"qemu", "gdb"}
    machine.refused = {"qemu-package"}
    report = run("setup --yes")
    assert (report.exit_code, report.result["complete"]) == (3, False)
    assert machine.installed == ["gdb-package"]
    assert "apt cannot install qemu-package" in render(report)
    assert "qemu-package gdb-package" not in render(report)


def test_yes_compiles_the_package_where_the_installer_has_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("VALUE = 1\n")
    (package / "broken.py").write_text("no python")
    monkeypatch.setattr("ptinspect.__path__", [str(package)])
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    assert run().exit_code == 1 and not list(package.rglob("*.pyc"))
    assert run("setup --yes").exit_code == 0
    assert [file.name.split(".")[0] for file in package.rglob("*.pyc")] == ["module"]


def test_guests_can_be_chosen(world: World) -> None:
    assert run("setup --yes --guest 6.1-cloud --guest 5.10-dbg").exit_code == 0
    report = run("setup --guest 5.10-dbg")
    assert report.exit_code == 0
    assert guest(report, "5.10-cloud")["installed"] is False
    assert Path(str(guest(report, "5.10-dbg")["vmlinux"])).is_file()
    assert guest(report, "6.1-cloud")["installed"] is True
    assert run("setup").exit_code == 1


def test_all_leaves_the_large_ones_out(world: World) -> None:
    report = run("setup --yes --all")
    assert {g["name"]: g["installed"] for g in report.result["guests"]} == {
        "5.10-cloud": True,
        "5.10-dbg": False,
        "6.1-cloud": True,
    }


def test_an_unknown_guest_is_wrong_usage(world: World) -> None:
    with pytest.raises(UserError, match="no guest"):
        run("setup --guest nope")


def test_the_list_needs_no_tools(world: World, machine: Machine) -> None:
    machine.missing.add("gdb")
    report = run("setup --list")
    assert report.exit_code == 0
    assert report.result["tools"] == []
    assert [g["name"] for g in report.result["guests"]] == ["5.10-cloud", "5.10-dbg", "6.1-cloud"]


def test_what_apt_may_not_do_does_not_stop_the_guests(world: World, machine: Machine) -> None:
    machine.missing.add("gdb")
    machine.may_install = False
    report = run("setup --yes")
    assert report.exit_code == 3
    assert guest(report, "5.10-cloud")["installed"] is True
    assert "run: apt-get install it" in render(report)


def test_a_guest_that_cannot_be_had_is_reported(world: World) -> None:
    world.archive.drop("old")
    world.archive.drop("new")
    report = run("setup --yes")
    assert report.exit_code == 3
    assert guest(report, "5.10-cloud")["installed"] is False
    assert "suite old cannot be used" in str(guest(report, "5.10-cloud")["note"])
    assert "suite old cannot be used" in render(report)


def test_a_stand_in_is_named_and_replaced_later(world: World) -> None:
    entries = list(world.archive._entries["old"])
    world.archive.drop("old")
    report = run("setup --yes")
    assert report.exit_code == 0
    default = guest(report, "5.10-cloud")
    assert (default["installed"], default["serves"], default["cpu"]) == (True, "6.1-cloud", "max")
    assert "6.1-cloud serves instead of 5.10-cloud" in str(default["note"])
    assert "6.1-cloud serves instead of 5.10-cloud" in render(report)
    world.archive._entries["old"] = entries
    world.archive._publish("old")
    assert guest(run("setup --yes"), "5.10-cloud")["serves"] == "5.10-cloud"


def test_check_finds_changed_files_and_yes_repairs_them(world: World) -> None:
    kernel = Path(str(guest(run("setup --yes"), "5.10-cloud")["kernel"]))
    good = kernel.read_bytes()
    kernel.write_bytes(good[:-1] + b"?")
    assert run("setup").exit_code == 0
    report = run("setup --check")
    assert report.exit_code == 1
    assert "is not what was installed" in str(guest(report, "5.10-cloud")["note"])
    assert run("setup --check --yes").exit_code == 0
    assert kernel.read_bytes() == good
    assert run("setup --check").exit_code == 0
