"""A QEMU beside the system's, from an archive of our own: what is taken, where it lies, what is lacking."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from local_archive import TRUST, LocalArchive, quiet

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry
from ptinspect.commands.target import setup
from ptinspect.errors import TargetError, UserError
from ptinspect.files import CACHE_VARIABLE, cache_directory
from ptinspect.output.text import render
from ptinspect.reference import cache, emulator, pins, system_tools
from ptinspect.reference.pins import EmulatorSpec

SPEC = EmulatorSpec(
    "newer",
    (("backports", "stable"), ("stable",)),
    "qemu-system-arm",
    "lib.*|zlib1g",
    ("firmware",),
    ("usr/share/firmware/*.fd",),
)
LOADER = b"""#!/bin/sh
for word; do [ "$word" = --list ] && list=yes; done
[ "$list" ] || { echo "run: $*"; exit; }
IFS=:
for lib in libfoo.so.1 libbar.so.2; do
  where="not found"
  for directory in $2; do [ -e "$directory/$lib" ] && where="$directory/$lib (0x00007f00)"; done
  echo "	$lib => $where"
done
echo "	linux-vdso.so.1 (0x00007ffc)"
"""
LIB = "usr/lib/somewhere"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalArchive:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    table = replace(pins.load(), emulators=(SPEC,), kvm_hosts=())
    monkeypatch.setattr(pins, "load", lambda: table)
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    made = LocalArchive(tmp_path / "archive", architecture)
    needs = "libfoo1 (>= 1.0) | libold1, qemu-system-common (= 1:10.0)"
    made.add("stable", "qemu-system-arm", "1:10.0", {f"usr/{emulator.PROGRAM}": b"old"}, needs)
    made.add("backports", "qemu-system-arm", "1:11.1", {f"usr/{emulator.PROGRAM}": b"new"}, needs)
    foo: dict[str, bytes | str] = {
        f"{LIB}/libfoo.so.1.0": b"foo",
        f"{LIB}/libfoo.so.1": "libfoo.so.1.0",
    }
    made.add("stable", "libfoo1", "1.0", foo, "libbar2:any, libc6")
    made.add("stable", "libbar2", "2.0", {f"{LIB}/libbar.so.2": b"bar"}, "libfoo1, zlib1g")
    made.add(
        "stable", "libc6", "2.41", {f"{LIB}/ld-linux-test.so.2": LOADER, "usr/lib/ld-linux-test.so.2": "x"}
    )
    made.add("stable", "zlib1g", "1.3", {f"{LIB}/libz.so.1": b"nobody asks for it"})
    made.add("stable", "firmware", "1", {"usr/share/firmware/QEMU_EFI.fd": b"efi"}, "libold1")
    made.add("stable", "libold1", "1", {f"{LIB}/libold.so.1": b"old"})
    return made


def install(archive: LocalArchive, *, again: bool = False) -> emulator.Emulator:
    return emulator.install("newer", quiet, addresses=[archive.address], trust=TRUST, again=again)


def test_the_newest_is_installed_with_what_it_needs_and_no_more(archive: LocalArchive) -> None:
    found = install(archive)
    assert found == emulator.find("newer")
    assert found.version == "1:11.1"
    place = cache_directory() / "qemu" / "newer"
    assert sorted(path.name for path in (place / "lib").iterdir()) == [
        *("ld-linux-test.so.2", "libbar.so.2", "libfoo.so.1", "qemu-system-aarch64"),
    ]
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert (place / "lib" / "libfoo.so.1").read_bytes() == b"foo"
    assert (place / "lib" / "qemu-system-aarch64").read_bytes() == b"new"
    assert (found.share / "QEMU_EFI.fd").read_bytes() == b"efi"
    manifest = cache.read("newer", emulator.directory(), {emulator.PROGRAM})
    assert manifest is not None
    assert sorted(source.package for source in manifest.sources) == [
        *("firmware", "libbar2", "libc6", "libfoo1", "qemu-system-arm", "zlib1g"),
    ]
    assert not (cache_directory() / "apt").exists()
    assert [path.name for path in emulator.directory().iterdir()] == ["newer"]


def test_it_runs_under_its_own_loader_from_anywhere(archive: LocalArchive, tmp_path: Path) -> None:
    found = install(archive)
    other = tmp_path / "link"
    other.symlink_to(found.program)
    place = found.program.parent.parent
    for program in (found.program, other):
        said = subprocess.run([program, "-machine", "a b"], capture_output=True, text=True, check=True).stdout
        assert said == (
            f"run: --library-path {place}/lib --argv0 {program} {place}/lib/qemu-system-aarch64 "
            f"-L {place}/share -machine a b\n"
        )


def test_the_next_suite_serves_when_the_first_is_gone(archive: LocalArchive) -> None:
    archive.drop("backports")
    assert install(archive).version == "1:10.0"
    assert install(archive).version == "1:10.0"


def test_a_suite_without_it_is_passed_over(archive: LocalArchive) -> None:
    archive.remove("backports", "qemu-system-arm")
    archive.remove("stable", "qemu-system-arm")
    with pytest.raises(TargetError, match=r"suite backports holds no qemu-system-arm.*suite stable holds no"):
        install(archive)


def test_a_library_that_is_lacking_is_named(archive: LocalArchive) -> None:
    archive.remove("stable", "libbar2")
    with pytest.raises(TargetError, match=r"qemu-system-arm lack a library: libbar\.so\.2"):
        install(archive)
    assert cache.read("newer", emulator.directory(), {emulator.PROGRAM}) is None
    assert list(emulator.directory().iterdir()) == []


def test_changed_bytes_are_found_and_replaced(archive: LocalArchive) -> None:
    found = install(archive)
    library = found.program.parent.parent / "lib" / "libbar.so.2"
    assert emulator.damage("newer") == ""
    library.write_bytes(b"baz")
    assert emulator.damage("newer") == "lib/libbar.so.2 is not what was installed"
    install(archive, again=True)
    assert emulator.damage("newer") == ""


def test_what_is_missing_comes_with_the_command(archive: LocalArchive) -> None:
    with pytest.raises(TargetError, match="newer QEMU is not installed") as caught:
        emulator.find("newer")
    assert "setup --yes --qemu newer" in caught.value.hint
    with pytest.raises(UserError, match="no QEMU 'elder'"):
        emulator.find("elder")


def run(line: str) -> tuple[int, list[dict[str, str]], str]:
    registry = Registry()
    registry.add_all(setup)
    report = registry.run(Context(registry), line)
    return report.exit_code, report.result["tools"], render(report)


def test_setup_installs_and_lists_it(archive: LocalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_tools, "check_tools", lambda *args, **named: [])
    monkeypatch.setattr(setup, "_look", lambda spec, chosen, check: setup._State(spec, False, None, ""))
    real = emulator.install
    monkeypatch.setattr(
        emulator,
        "install",
        lambda name, progress, again: real(
            name, progress, again=again, addresses=[archive.address], trust=TRUST
        ),
    )
    monkeypatch.setattr(system_tools, "find_program", lambda path: (path, "11.1"))
    assert run("setup")[:2] == (0, [])
    code, (tool,), text = run("setup --qemu newer")
    assert (code, tool["name"], tool["found"]) == (1, "qemu-system-aarch64 (newer)", False)
    assert "setup --yes" in text and "apt-get" not in text
    code, (tool,), _ = run("setup --yes --tests")
    assert (code, tool["found"], tool["version"]) == (0, True, "11.1")
    assert tool["path"] == str(emulator.find("newer").program)
    assert run("setup")[1][0]["found"]
    (cache_directory() / "qemu" / "newer" / "lib" / "libfoo.so.1").write_bytes(b"bad")
    assert run("setup --check --qemu newer")[1][0]["problem"] == "lib/libfoo.so.1 is not what was installed"
    assert run("setup --yes --check --qemu newer")[0] == 0
    with pytest.raises(UserError, match="no QEMU"):
        run("setup --qemu elder")
