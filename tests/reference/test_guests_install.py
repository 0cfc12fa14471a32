"""Guests installed from an archive of our own: pins, nearest versions, stand-ins, interruptions."""

from __future__ import annotations

import fcntl
import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from local_archive import TRUST, LocalArchive, quiet

from ptinspect.errors import TargetError, UserError
from ptinspect.files import CACHE_VARIABLE, cache_directory
from ptinspect.reference import cache, guests, pins
from ptinspect.reference.install import Installer
from ptinspect.reference.pins import BusyboxSpec, Data, GuestSpec, PinnedPackage

KERNEL = b"kernel of 5.10 " * 100
SHELL = b"static shell"
OTHER_SHELL = b"a later one"


def pin(package: str, version: str, sha256: str, nearest: str, *files: str) -> PinnedPackage:
    return PinnedPackage(package, version, sha256, nearest, files)


class World:
    """An archive, a table of guests that is pinned to it, and a cache."""

    def __init__(self, directory: Path) -> None:
        self.archive = LocalArchive(directory / "archive")
        old = self.archive.add(
            "old",
            "linux-image-5.10.0-32-arm64-unsigned",
            "5.10.223-1",
            {"boot/vmlinuz-5.10.0-32-arm64": KERNEL, "boot/config-5.10.0-32-arm64": b"CONFIG_X=y\n"},
        )
        debug = self.archive.add(
            "old",
            "linux-image-5.10.0-32-arm64-dbg",
            "5.10.223-1",
            {"usr/lib/debug/boot/vmlinux-5.10.0-32-arm64": b"\x7fELF symbols"},
        )
        new = self.archive.add(
            "new",
            "linux-image-6.1.0-1-arm64-unsigned",
            "6.1.1-1",
            {"boot/vmlinuz-6.1.0-1-arm64": b"kernel of 6.1"},
        )
        shells = {
            "old": self.archive.add("old", "busybox-static", "1:1.30-1", {"bin/busybox": SHELL}),
            "new": self.archive.add("new", "busybox-static", "1:1.35-1", {"usr/bin/busybox": OTHER_SHELL}),
        }
        image = pin(
            "linux-image-5.10.0-32-arm64-unsigned",
            "5.10.223-1",
            old,
            r"linux-image-5\.10\.0-\d+-arm64(-unsigned)?",
            "boot/vmlinuz-*",
        )
        vmlinux = pin(
            "linux-image-5.10.0-32-arm64-dbg", "5.10.223-1", debug, "", "usr/lib/debug/boot/vmlinux-*"
        )
        later = pin(
            "linux-image-6.1.0-1-arm64-unsigned",
            "6.1.1-1",
            new,
            r"linux-image-6\.1\.0-\d+-arm64(-unsigned)?",
            "boot/vmlinuz-*",
        )
        self.table = Data(
            (
                GuestSpec("5.10-cloud", "", ("old",), image, None, False, "cortex-a72", ("6.1-cloud",)),
                GuestSpec(
                    "5.10-dbg", "", ("old",), image, vmlinux, True, "cortex-a72", ("5.10-cloud", "6.1-cloud")
                ),
                GuestSpec("6.1-cloud", "", ("new",), later, None, False, "max", ()),
            ),
            tuple(
                BusyboxSpec(suite, pin("busybox-static", v, shells[suite], "busybox-static", *paths))
                for suite, v in (("old", "1:1.30-1"), ("new", "1:1.35-1"))
                for paths in [("bin/busybox", "usr/bin/busybox")]
            ),
            (),
        )

    def installer(self, progress: Callable[[str, int, int], None] = quiet) -> Installer:
        return Installer(progress, table=self.table, addresses=[self.archive.address], trust=TRUST)

    def install(self, name: str = "5.10-cloud", *, again: bool = False) -> guests.Guest:
        with self.installer() as installer:
            return installer.install(name, again=again)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    made = World(tmp_path)
    monkeypatch.setattr(pins, "load", lambda: made.table)
    return made


def leftovers() -> list[str]:
    return sorted(path.name for path in cache.guests_directory().iterdir() if path.name.startswith("."))


def test_the_pinned_version_is_installed_and_found(world: World) -> None:
    guest = world.install()
    assert guest == guests.guest()
    assert (guest.name, guest.version, guest.release) == ("5.10-cloud", "5.10.223-1", "5.10.0-32-arm64")
    assert guest.kernel.name == "vmlinuz-5.10.0-32-arm64"
    assert guest.kernel.read_bytes() == KERNEL
    assert guest.config is not None
    assert guest.config.read_bytes() == b"CONFIG_X=y\n"
    assert SHELL in gzip.decompress(guest.initrd.read_bytes())
    assert (guest.vmlinux, guest.note) == (None, "")
    assert guests.installed_guests() == [guest]
    assert guests.damage("5.10-cloud") == ""
    assert leftovers() == []
    assert not (cache_directory() / "apt").exists()


SPLIT = "7.3.4+deb13-arm64"


@pytest.mark.parametrize("at", [f"usr/lib/modules/{SPLIT}/vmlinuz.unsigned", f"boot/vmlinuz-{SPLIT}"])
def test_a_kernel_in_packages_of_its_parts(world: World, at: str) -> None:
    """Debian from 6.19 on: kernel, configuration and modules in three packages, the image empty."""
    add, version = world.archive.add, "7.3.4-1"
    add("old", f"linux-image-{SPLIT}", version, {"usr/share/doc/nothing": b""})
    digest = add("old", f"linux-binary-unsigned-{SPLIT}", version, {at: b"kernel of 7.3"})
    add("old", f"linux-base-{SPLIT}", version, {f"usr/lib/modules/{SPLIT}/config": b"CONFIG_Y=y\n"})
    image = pin(
        f"linux-binary-unsigned-{SPLIT}", version, digest, "x", "usr/lib/modules/*/vmlinuz*", "boot/vmlinuz-*"
    )
    world.table = replace(
        world.table, guests=(replace(world.table.guests[0], image=image), *world.table.guests[1:])
    )
    guest = world.install()
    assert (guest.version, guest.release, guest.note) == (version, SPLIT, "")
    assert guest.kernel.name == f"vmlinuz-{SPLIT}"
    assert guest.kernel.read_bytes() == b"kernel of 7.3"
    assert guest.config is not None
    assert guest.config.name == f"config-{SPLIT}"
    assert guest.config.read_bytes() == b"CONFIG_Y=y\n"
    assert guests.guest() == guest


def test_what_is_installed_needs_no_archive(world: World) -> None:
    first = world.install()
    world.archive.drop("old")
    assert world.install() == first


def test_the_debug_guest_has_its_vmlinux(world: World) -> None:
    guest = world.install("5.10-dbg")
    assert guest.vmlinux is not None
    assert guest.vmlinux.read_bytes() == b"\x7fELF symbols"
    assert guest.kernel.read_bytes() == KERNEL


def test_the_nearest_version_is_taken_and_named(world: World) -> None:
    world.archive.remove("old", "linux-image-5.10.0-32-arm64-unsigned")
    for abi, version in ((20, "5.10.100-1"), (34, "5.10.226-1"), (40, "5.10.300-1")):
        world.archive.add(
            "old",
            f"linux-image-5.10.0-{abi}-arm64",
            version,
            {f"boot/vmlinuz-5.10.0-{abi}-arm64": f"kernel {abi}".encode()},
        )
    world.archive.add("old", "linux-image-5.10.0-33-rt-arm64", "5.10.223-2", {"boot/vmlinuz-rt": b"rt"})
    guest = world.install()
    assert (guest.name, guest.version, guest.release) == ("5.10-cloud", "5.10.226-1", "5.10.0-34-arm64")
    assert guest.kernel.read_bytes() == b"kernel 34"
    assert "5.10.223-1" in guest.note
    assert "linux-image-5.10.0-34-arm64 5.10.226-1 is the nearest" in guest.note
    assert guests.guest().note == guest.note


def test_the_debug_package_belongs_to_the_same_image(world: World) -> None:
    world.archive.remove("old", "linux-image-5.10.0-32-arm64-unsigned")
    for abi in (33, 40):
        world.archive.add(
            "old", f"linux-image-5.10.0-{abi}-arm64", f"5.10.{200 + abi}-1", {f"boot/vmlinuz-{abi}": b"k"}
        )
    world.archive.add(
        "old",
        "linux-image-5.10.0-40-arm64-dbg",
        "5.10.240-1",
        {"usr/lib/debug/boot/vmlinux-40": b"symbols of 40"},
    )
    guest = world.install("5.10-dbg")
    assert guest.kernel.name == "vmlinuz-40"
    assert guest.vmlinux is not None
    assert guest.vmlinux.read_bytes() == b"symbols of 40"


def test_symbols_of_another_version_do_not_serve(world: World) -> None:
    world.archive.remove("old", "linux-image-5.10.0-32-arm64-dbg")
    path = "usr/lib/debug/boot/vmlinux-5.10.0-32-arm64"
    world.archive.add("old", "linux-image-5.10.0-32-arm64-dbg", "5.10.224-1", {path: b"others"})
    guest = world.install("5.10-dbg")
    assert (guest.name, guest.vmlinux) == ("5.10-cloud", None)


def test_the_next_guest_serves_when_the_suite_is_gone(world: World) -> None:
    world.archive.drop("old")
    guest = world.install()
    assert (guest.name, guest.cpu) == ("6.1-cloud", "max")
    assert guest.kernel.read_bytes() == b"kernel of 6.1"
    assert "6.1-cloud serves instead of 5.10-cloud" in guest.note
    assert guests.guest("5.10-cloud") == guest
    assert [g.name for g in guests.installed_guests()] == ["6.1-cloud"]
    assert guests.guest("6.1-cloud").note == ""


def test_a_suite_that_comes_back_replaces_the_stand_in(world: World) -> None:
    entries = list(world.archive._entries["old"])
    world.archive.drop("old")
    assert world.install().name == "6.1-cloud"
    world.archive._entries["old"] = entries
    world.archive._publish("old")
    assert world.install().name == "5.10-cloud"
    assert guests.guest().note == ""


def test_one_broken_suite_does_not_break_another(world: World) -> None:
    world.archive.drop("old")
    said: list[str] = []
    with world.installer(lambda what, done, total: said.append(what)) as installer:
        assert installer.install("6.1-cloud").note == ""
        assert installer.install("5.10-cloud").name == "6.1-cloud"
        assert installer.install("5.10-dbg", again=True).name == "6.1-cloud"
    assert sorted(what for what in said if what.startswith("reading")) == [
        "reading the index of new",
        "reading the index of old",
    ]


def test_nothing_serves_when_the_archive_is_gone(world: World) -> None:
    world.archive.drop("old")
    world.archive.drop("new")
    with pytest.raises(TargetError, match=r"5\.10-cloud cannot be installed.*suite old"):
        world.install()
    with pytest.raises(TargetError, match="not installed") as caught:
        guests.guest()
    assert "setup --yes --guest 5.10-cloud" in caught.value.hint


def test_a_shell_from_another_suite_serves(world: World) -> None:
    world.archive.remove("old", "busybox-static")
    guest = world.install()
    assert guest.name == "5.10-cloud"
    assert OTHER_SHELL in gzip.decompress(guest.initrd.read_bytes())


def test_a_file_that_is_not_the_pinned_one_is_refused(world: World) -> None:
    spec = world.table.guests[0]
    wrong = replace(spec, image=replace(spec.image, sha256="0" * 64))
    world.table = replace(world.table, guests=(wrong, *world.table.guests[1:]))
    with pytest.raises(TargetError, match="not the file that ptinspect knows"):
        world.install()
    assert cache.read("5.10-cloud") is None
    assert leftovers() == []


def test_a_package_without_a_kernel_is_refused(world: World) -> None:
    spec = world.table.guests[0]
    odd = replace(spec, image=replace(spec.image, files=("boot/nothing-*",)))
    world.table = replace(world.table, guests=(odd, *world.table.guests[1:]))
    with pytest.raises(TargetError, match="holds no kernel"):
        world.install()


@pytest.mark.parametrize("step", ["reading", "downloading", "unpacking"])
def test_an_interruption_leaves_what_was_there(world: World, step: str) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), world.installer(interrupt) as installer:
        installer.install("5.10-cloud")
    assert cache.read("5.10-cloud") is None
    assert world.install().name == "5.10-cloud"
    with pytest.raises(KeyboardInterrupt), world.installer(interrupt) as installer:
        installer.install("5.10-cloud", again=True)
    assert guests.guest().kernel.read_bytes() == KERNEL
    assert leftovers() == []


def test_remains_of_a_killed_process_are_removed(world: World) -> None:
    dead = cache.guests_directory() / ".5.10-cloud.dead"
    dead.mkdir(parents=True)
    (dead / "half").write_bytes(b"x")
    world.install()
    assert leftovers() == []


@pytest.mark.parametrize("spoil", ["truncate", "remove", "manifest", "format"])
def test_a_spoiled_guest_counts_as_missing_and_is_repaired(world: World, spoil: str) -> None:
    guest = world.install()
    manifest = guest.kernel.parent / "manifest.json"
    if spoil == "truncate":
        guest.kernel.write_bytes(KERNEL[:-1])
    elif spoil == "remove":
        guest.initrd.unlink()
    elif spoil == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    assert cache.read("5.10-cloud") is None
    assert guests.installed_guests() == []
    world.install()
    assert guests.guest().kernel.read_bytes() == KERNEL
    assert guests.damage("5.10-cloud") == ""


def test_changed_bytes_are_found_by_hash(world: World) -> None:
    guest = world.install()
    guest.kernel.write_bytes(KERNEL[:-1] + b"?")
    assert "vmlinuz-5.10.0-32-arm64 is not what was installed" in guests.damage("5.10-cloud")
    world.install(again=True)
    assert guests.damage("5.10-cloud") == ""


def test_two_processes_do_not_install_at_once(world: World) -> None:
    cache_directory().mkdir(parents=True)
    other = (cache_directory() / "guests.lock").open("a")
    fcntl.flock(other, fcntl.LOCK_EX)
    said: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        said.append(what)
        if what.startswith("waiting"):
            other.close()

    with world.installer(progress) as installer:
        installer.install("5.10-cloud")
    assert said[0].startswith("waiting for another ptinspect")
    assert not said[-1].startswith("waiting")


def test_waiting_for_another_process_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_TIMEOUT", 0.3)
    with world.installer(), pytest.raises(TargetError, match="keeps installing"), world.installer():
        pass


def test_a_cache_that_cannot_be_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(TargetError, match="cannot write to the cache directory") as caught:
        world.install()
    assert CACHE_VARIABLE in caught.value.hint


def test_an_unknown_guest_is_wrong_usage(world: World) -> None:
    for call in (guests.guest, world.install):
        with pytest.raises(UserError, match=r"no guest '4\.9'"):
            call("4.9")
