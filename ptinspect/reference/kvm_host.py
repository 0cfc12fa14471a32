"""An emulated arm64 host with a real KVM, for the project's tests: its initial RAM disk, from packages alone.

QEMU's TCG emulates EL2, so that the reference kernel 6.1-cloud (CONFIG_KVM=y) runs guests by KVM in a
machine with `-M virt,virtualization=on`. Its RAM disk holds Debian's QEMU for arm64 with its libraries, and
the modules of that kernel which its network card needs. Another archive may follow it, with the guests: the
kernel unpacks one after the other (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError
from ptinspect.files import cache_directory
from ptinspect.reference import apt, cache, deb, emulator, guests, pins
from ptinspect.reference.apt import Progress, Suite
from ptinspect.reference.cache import Manifest, Source, StoredFile
from ptinspect.reference.initrd import Entry, cpio

NAME = "kvm"
READY = "ptinspect host ready"
"""The line on the console by which the host's first process is known to run."""
INITRD = "host.cpio"
LOADER = "ld-linux-aarch64.so.1"

INIT = f"""#!/bin/busybox sh
export PATH=/bin HOME=/ PS1=
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in /modules/*; do insmod "$module"; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
exec </dev/console >/dev/console 2>&1
stty -echo
ls -l /dev/kvm && echo "{READY}"
exec sh
"""
"""The first process: a network, and a shell on the console that takes commands."""

_DIRECTORIES = ("bin", "dev", "guests", "lib", "modules", "proc", "root", "share", "sys", "tmp")


@dataclass(frozen=True)
class KvmHost:
    """Name the files of an installed host."""

    kernel: Path
    """Of the reference guest that is the host."""
    initrd: Path
    """Not compressed; other archives may be appended."""
    version: str
    """Debian version of its QEMU."""


def directory() -> Path:
    """Return the directory that holds it; it may not exist yet."""
    return cache_directory() / "hosts"


def find() -> KvmHost:
    """Return the installed host. Raises TargetError if it, or the guest whose kernel it runs, is missing."""
    manifest = cache.read(NAME, directory(), {INITRD})
    kernel = guests.guest(pins.load().kvm_host.guest)
    if manifest is None or manifest.release != kernel.release:
        raise TargetError("the host for KVM guests is not installed", "ptinspect setup --yes --tests")
    return KvmHost(kernel.kernel, directory() / NAME / INITRD, manifest.version)


def damage() -> str:
    """Return what is wrong with its files by their hashes; empty if nothing is."""
    manifest = cache.read(NAME, directory(), {INITRD})
    return "not installed" if manifest is None else cache.damage(manifest, directory())


def install(
    progress: Progress, *, again: bool = False, addresses: Sequence[str] = (), trust: str | None = None
) -> KvmHost:
    """Install the host unless it is there; `again` replaces it. The guest whose kernel it runs must be there.

    `addresses` and `trust` replace the machine's archive and its keys. Raises TargetError.
    """
    with cache.lock(progress) as state:
        if not again:
            with suppress(TargetError):
                return find()
        try:
            _install(state, addresses or apt.archive_addresses(), trust, progress)
        except OSError as error:
            raise TargetError(f"cannot install the host for KVM guests: {error}") from error
    return find()


def _install(state: Path, addresses: Sequence[str], trust: str | None, progress: Progress) -> None:
    spec = pins.load().kvm_host
    kernel = cache.read(guests.guest(spec.guest).name)
    assert kernel is not None
    suite = Suite(kernel.sources[0].suite, state / "kvm-host", trust)
    suite.update(addresses, progress)
    image = suite.find(kernel.sources[0].package, kernel.sources[0].version)
    shell = suite.find("busybox-static")
    packages = emulator.closure(suite, spec.emulator)
    if image is None:
        raise TargetError(
            f"the archive has {kernel.sources[0].package} {kernel.sources[0].version} no more, whose modules "
            "the host for KVM guests needs",
            f"remove {guests.guest(spec.guest).kernel.parent}, then: ptinspect setup --yes --tests",
        )
    if shell is None or not packages or packages[0].name != spec.emulator.package:
        raise TargetError(f"the archive's suite {suite.name} lacks what the host for KVM guests is made of")
    with cache.workspace(NAME, directory()) as spot:
        files, tree, result = spot / "files", spot / "tree", spot / "result"
        for folder in (files, result):
            folder.mkdir()
        wanted = [*packages, shell, image]
        what = "the host for KVM guests"
        for package, file in zip(wanted, suite.download(wanted, files, progress, what), strict=True):
            progress(f"unpacking {what}", 0, 0)
            deb.unpack(file, tree if package is not image else spot / "kernel")
        (result / INITRD).write_bytes(
            cpio(_entries(tree, spot / "kernel", spec.modules, spec.emulator.files))
        )
        manifest = Manifest(
            NAME,
            version=packages[0].version,
            release=kernel.release,
            files={INITRD: StoredFile.of(result / INITRD)},
            sources=tuple(Source.of(package, suite) for package in wanted),
        )
        cache.publish(result, manifest, directory())


def _entries(tree: Path, kernel: Path, modules: Sequence[str], data: Sequence[str]) -> list[Entry]:
    """Return the files of the RAM disk."""
    program = _first(tree, f"usr/{emulator.PROGRAM}")
    loader = _first(tree, f"**/{LOADER}")
    libraries = [path for path in sorted(tree.glob("**/*.so.*")) if not path.is_dir()]
    return [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in _DIRECTORIES),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        _program("bin/busybox", _first(tree, "**/busybox")),
        Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        _program(emulator.PROGRAM, program),
        *(_program(f"lib/{path.name}", path) for path in {p.name: p for p in (*libraries, loader)}.values()),
        *(
            Entry(f"share/{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
            for pattern in data
            for path in sorted(tree.glob(pattern))
        ),
        *(
            Entry(f"modules/{n:02}-{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
            for n, path in enumerate(in_order(kernel, modules))
        ),
        Entry("init", stat.S_IFREG | 0o755, INIT.encode()),
    ]


def _program(name: str, path: Path) -> Entry:
    return Entry(name, stat.S_IFREG | 0o755, path.read_bytes())


def _first(tree: Path, pattern: str) -> Path:
    found = next((path for path in sorted(tree.glob(pattern)) if path.is_file()), None)
    if found is None:
        raise TargetError(f"the packages of the host for KVM guests hold no {pattern.rpartition('/')[2]}")
    return found


def in_order(tree: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of kernel modules, each after those that it depends on; what is built in has none.

    A module says itself what it depends on (`depends=` in its section .modinfo, scripts/mod/modpost.c).
    """
    files = {path.name.removesuffix(".ko").replace("-", "_"): path for path in tree.rglob("*.ko")}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in files and name not in found:
            needs = re.search(rb"\0depends=([\w,-]*)\0", files[name].read_bytes())
            for need in filter(None, needs[1].decode().split(",") if needs else ()):
                add(need.replace("-", "_"))
            found[name] = files[name]

    for name in names:
        add(name)
    return list(found.values())
