"""The RAM disk of the emulated host, from an archive of our own: what is in it, and in which order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from local_archive import TRUST, LocalArchive, quiet

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry
from ptinspect.commands.target import setup
from ptinspect.errors import TargetError
from ptinspect.files import CACHE_VARIABLE
from ptinspect.reference import guests, kvm_host, pins, system_tools
from ptinspect.reference.install import Installer
from ptinspect.reference.pins import EmulatorSpec, GuestSpec, KvmHostSpec, PinnedPackage

IMAGE, RELEASE = "linux-image-6.1.0-1-arm64-unsigned", "6.1.0-1-arm64"
MODULES = f"lib/modules/{RELEASE}/kernel/drivers"
LIB = "usr/lib/aarch64-linux-gnu"


def module(*needs: str) -> bytes:
    return b"\x7fELF license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


def files_of(archive: bytes) -> dict[str, bytes]:
    """Take a newc archive apart: cpio(5)."""
    found, at = {}, 0
    while True:
        size, length = (int(archive[at + n : at + n + 8], 16) for n in (54, 94))
        name = archive[at + 110 : at + 110 + length - 1].decode()
        if name == "TRAILER!!!":
            return found
        at += 110 + length + -(110 + length) % 4
        found[name] = archive[at : at + size]
        at += size + -size % 4


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalArchive:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    made = LocalArchive(tmp_path / "archive")
    digest = made.add(
        "stable",
        IMAGE,
        "6.1.1-1",
        {
            f"boot/vmlinuz-{RELEASE}": b"kernel",
            f"{MODULES}/net/net_failover.ko": module("failover"),
            f"{MODULES}/net/virtio_net.ko": module("virtio", "net_failover"),
            f"{MODULES}/net/core/failover.ko": module(),
            f"{MODULES}/virtio/virtio.ko": module(),
            f"{MODULES}/virtio/virtio-pci.ko": module("virtio"),
            f"{MODULES}/gpu/unwanted.ko": module(),
        },
    )
    shell = made.add("stable", "busybox-static", "1:1.35-1", {"bin/busybox": b"shell"})
    made.add("stable", "qemu-system-arm", "1:7.2", {"usr/bin/qemu-system-aarch64": b"qemu"}, "libfoo1, ipxe")
    foo: dict[str, bytes | str] = {f"{LIB}/libfoo.so.1.0": b"foo", f"{LIB}/libfoo.so.1": "libfoo.so.1.0"}
    made.add("stable", "libfoo1", "1.0", foo, "libc6")
    made.add("stable", "libc6", "2.36", {f"lib/aarch64-linux-gnu/{kvm_host.LOADER}": b"loader"})
    made.add("stable", "ipxe", "1", {"usr/lib/ipxe/efi.rom": b"rom"})
    image = PinnedPackage(IMAGE, "6.1.1-1", digest, IMAGE, ("boot/vmlinuz-*",))
    busybox = PinnedPackage("busybox-static", "1:1.35-1", shell, "busybox-static", ("bin/busybox",))
    spec = EmulatorSpec("kvm", (), "qemu-system-arm", "lib.*", ("ipxe",), ("usr/lib/ipxe/*.rom",))
    table = replace(
        pins.load(),
        guests=(GuestSpec("6.1-cloud", "", ("stable",), image, None, False, "max", ()),),
        busybox=(pins.BusyboxSpec("stable", busybox),),
        emulators=(),
        kvm_hosts=(KvmHostSpec("6.1-cloud", ("virtio_pci", "virtio_net", "virtio_mmio"), spec),),
    )
    monkeypatch.setattr(pins, "load", lambda: table)
    with Installer(quiet, table=table, addresses=[made.address], trust=TRUST) as installer:
        installer.install("6.1-cloud")
    return made


def install(archive: LocalArchive) -> kvm_host.KvmHost:
    return kvm_host.install(quiet, addresses=[archive.address], trust=TRUST)


def test_what_is_in_the_ram_disk(archive: LocalArchive) -> None:
    found = install(archive)
    assert found == kvm_host.find() and found.version == "1:7.2"
    assert found.kernel.read_bytes() == b"kernel" and kvm_host.damage() == ""
    files = files_of(found.initrd.read_bytes())
    assert files["bin/qemu-system-aarch64"] == b"qemu" and files["bin/busybox"] == b"shell"
    assert files["lib/libfoo.so.1"] == b"foo" and files[f"lib/{kvm_host.LOADER}"] == b"loader"
    assert files["share/efi.rom"] == b"rom" and files["bin/sh"] == b"busybox"
    assert files["init"].startswith(b"#!/bin/busybox sh\n")


def test_modules_come_after_those_that_they_need_and_no_others(archive: LocalArchive) -> None:
    files = files_of(install(archive).initrd.read_bytes())
    assert sorted(name for name in files if name.startswith("modules/")) == [
        "modules/00-virtio.ko",
        "modules/01-virtio-pci.ko",
        "modules/02-failover.ko",
        "modules/03-net_failover.ko",
        "modules/04-virtio_net.ko",
    ]


def test_another_kernel_of_the_guest_is_another_host(archive: LocalArchive) -> None:
    with pytest.raises(TargetError, match="is not installed") as caught:
        kvm_host.find()
    assert "setup --yes --tests" in caught.value.hint
    archive.remove("stable", "qemu-system-arm")
    with pytest.raises(TargetError, match="suite stable lacks"):
        install(archive)


def test_a_guest_that_the_archive_has_no_more(archive: LocalArchive) -> None:
    """Its kernel has no modules anywhere: it has to be installed anew, of the version that is there now."""
    archive.remove("stable", IMAGE)
    with pytest.raises(TargetError, match=rf"has {IMAGE} 6\.1\.1-1 no more") as caught:
        install(archive)
    assert str(guests.guest("6.1-cloud").kernel.parent) in caught.value.hint


def test_setup_brings_it_for_the_tests_alone(archive: LocalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kvm_host.install
    monkeypatch.setattr(system_tools, "check_tools", lambda *args, **named: [])
    monkeypatch.setattr(
        kvm_host,
        "install",
        lambda progress, again: real(progress, again=again, addresses=[archive.address], trust=TRUST),
    )
    registry = Registry()
    registry.add_all(setup)

    def run(line: str) -> tuple[int, list[dict[str, str]]]:
        report = registry.run(Context(registry), line)
        return report.exit_code, report.result["tools"]

    assert run("setup --guest 6.1-cloud") == (0, [])
    code, (tool,) = run("setup --guest 6.1-cloud --tests")
    assert (code, tool["name"], tool["found"]) == (1, "host of KVM guests", False)
    code, (tool,) = run("setup --guest 6.1-cloud --yes --tests")
    assert (code, tool["found"], tool["version"]) == (0, True, "1:7.2")
    kvm_host.find().initrd.write_bytes(bytes(kvm_host.find().initrd.stat().st_size))
    assert run("setup --guest 6.1-cloud --tests --check")[1][0]["problem"].startswith("host.cpio is not")
