"""A newer QEMU beside the system's: with its own loader and libraries, in the user's cache.

Nothing of it is installed into the system. It comes from Debian's archive for this machine's own
architecture, of a suite that is newer than the machine may be, checked as the guests are. Which
libraries belong to it is known from the archive's index (Depends) and, of what these packages hold, by
their own loader (`ld.so --list`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError
from ptinspect.files import cache_directory
from ptinspect.reference import apt, cache, deb, pins
from ptinspect.reference.apt import Package, Progress, Suite, SuiteUnavailable
from ptinspect.reference.cache import Manifest, Source, StoredFile
from ptinspect.reference.helper_program import run
from ptinspect.reference.pins import EmulatorSpec

PROGRAM = "bin/qemu-system-aarch64"
"""The executable in the emulator's directory; it takes QEMU's own arguments."""
LIMIT = 200
"""Most packages that an emulator may come from."""
PROBE_TIMEOUT = 30.0

_WRAPPER = """#!/bin/sh
here=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$here/{loader}" --library-path "$here/lib" --argv0 "$0" "$here/lib/qemu-system-aarch64" \\
    -L "$here/share" "$@"
"""


@dataclass(frozen=True)
class Emulator:
    """Name an installed QEMU."""

    name: str
    """As `launch --qemu` calls it."""
    program: Path
    share: Path
    """Directory of its firmware: QEMU_EFI.fd for `-bios`, and the boot ROM of virtio's network card."""
    version: str
    """Debian version."""


def directory() -> Path:
    """Return the directory that holds one directory per emulator; it may not exist yet."""
    return cache_directory() / "qemu"


def find(name: str) -> Emulator:
    """Return an installed emulator. Raises UserError for an unknown name, TargetError if it is missing."""
    pins.load().emulator(name)
    manifest = cache.read(name, directory(), {PROGRAM})
    if manifest is None:
        raise TargetError(f"the {name} QEMU is not installed", f"ptinspect setup --yes --qemu {name}")
    place = directory() / name
    return Emulator(name, place / PROGRAM, place / "share", manifest.version)


def damage(name: str) -> str:
    """Return what is wrong with an installed emulator's files by their hashes; empty if nothing is."""
    manifest = cache.read(name, directory(), {PROGRAM})
    return "not installed" if manifest is None else cache.damage(manifest, directory())


def install(
    name: str,
    progress: Progress,
    *,
    again: bool = False,
    addresses: Sequence[str] = (),
    trust: str | None = None,
) -> Emulator:
    """Install an emulator unless it is there; `again` replaces it.

    `addresses` and `trust` replace the machine's archive and its keys. Raises UserError for an unknown
    name, TargetError if it cannot be had.
    """
    spec = pins.load().emulator(name)
    with cache.lock(progress) as state:
        if again or cache.read(name, directory(), {PROGRAM}) is None:
            try:
                suite, packages = _choose(spec, state, addresses, trust, progress)
                _install(spec, suite, packages, progress)
            except OSError as error:
                raise TargetError(f"cannot install the {name} QEMU: {error}") from error
        return find(name)


def _choose(
    spec: EmulatorSpec, state: Path, addresses: Sequence[str], trust: str | None, progress: Progress
) -> tuple[Suite, list[Package]]:
    """Return the first suite that can be used, and the packages to take from it, QEMU's own first."""
    architecture = run(["dpkg", "--print-architecture"], timeout=PROBE_TIMEOUT).output.strip()
    found = addresses or apt.archive_addresses()
    problems = []
    for first, *beneath in spec.suites:
        suite = Suite(first, state / f"{first}-host", trust, architecture=architecture, beneath=beneath)
        try:
            suite.update(found, progress)
        except SuiteUnavailable as error:
            problems.append(error.message)
            continue
        packages = closure(suite, spec)
        if packages and packages[0].name == spec.package:
            return suite, packages
        problems.append(f"the archive's suite {first} holds no {spec.package} for {architecture}")
    raise TargetError(f"the {spec.name} QEMU cannot be installed: {'; '.join(problems)}")


def closure(suite: Suite, spec: EmulatorSpec) -> list[Package]:
    """Return the package, the libraries that it depends on however indirectly, and those with its files.

    Of alternatives the first counts, as for apt on a machine that has none of them. A dependency that
    is not a package, or not a library by its name, is left out: the loader reports later what is lacking.
    """
    chosen: dict[str, Package] = {}
    wanted = [spec.package, *spec.data]
    while wanted:
        if len(chosen) + len(wanted) > LIMIT:
            raise TargetError(f"{spec.package} depends on more than {LIMIT} packages")
        known = suite.newest(wanted)
        chosen |= known
        needed = (name for p in known.values() if p.name not in spec.data for name in p.depends)
        wanted = [n for n in dict.fromkeys(needed) if n not in chosen and re.fullmatch(spec.libraries, n)]
    return list(chosen.values())


def _install(spec: EmulatorSpec, suite: Suite, packages: list[Package], progress: Progress) -> None:
    with cache.workspace(spec.name, directory()) as spot:
        tree, result = spot / "tree", spot / "result"
        files = spot / "files"
        files.mkdir()
        what = f"the {spec.name} QEMU"
        for file in suite.download(packages, files, progress, what):
            progress(f"unpacking {what}", 0, 0)
            deb.unpack(file, tree)
        _assemble(spec, tree, result)
        held = {str(p.relative_to(result)): p for p in sorted(result.rglob("*")) if p.is_file()}
        manifest = Manifest(
            spec.name,
            version=packages[0].version,
            files={use: StoredFile.of(p, use) for use, p in held.items()},
            sources=tuple(Source.of(package, suite) for package in packages),
        )
        cache.publish(result, manifest, directory())


def _assemble(spec: EmulatorSpec, tree: Path, result: Path) -> None:
    """Put the program, its loader, what the loader finds for it, and its firmware in their places."""
    for part in ("bin", "lib", "share"):
        (result / part).mkdir(parents=True)
    program = tree / "usr" / PROGRAM
    loader = next((p for p in sorted(tree.rglob("ld*.so.*")) if _is_loader(p)), None)
    if not program.is_file() or loader is None:
        raise TargetError(f"the packages of {spec.package} hold no {program.name}, or no loader for it")
    path = ":".join(str(p) for p in dict.fromkeys(f.parent for f in sorted(tree.rglob("*.so.*"))))
    listed = run([str(loader), "--library-path", path, "--list", str(program)], timeout=PROBE_TIMEOUT)
    if listed.code or "not found" in listed.output:
        raise TargetError(f"the packages of {spec.package} lack a library: {_lacking(listed.output)}")
    for found in re.findall(r"=> (/.*) \(0x", listed.output):
        file = Path(found)
        if not file.is_relative_to(tree):
            raise TargetError(f"the packages of {spec.package} lack {file.name}")
        shutil.copy(file, result / "lib" / file.name)
    shutil.copy(loader, result / "lib" / loader.name)
    shutil.copy(program, result / "lib" / program.name)
    for pattern in spec.files:
        for file in tree.glob(pattern):
            shutil.copy(file, result / "share" / file.name)
    wrapper = result / PROGRAM
    wrapper.write_text(_WRAPPER.format(loader=f"lib/{loader.name}"), "utf-8")
    wrapper.chmod(0o755)


def _is_loader(path: Path) -> bool:
    return (
        re.fullmatch(r"ld(-linux.*|64)\.so\.\d+", path.name) is not None
        and not path.is_symlink()
        and os.access(path, os.X_OK)
    )


def _lacking(output: str) -> str:
    missing = re.findall(r"(\S+) => not found", output)
    return ", ".join(missing) or (output.strip().splitlines() or ["its loader does not name it"])[-1]
