"""Install reference guests from Debian's archive, by pins, nearest versions and stand-ins."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from ptinspect.errors import TargetError
from ptinspect.reference import apt, cache, deb, initrd, pins
from ptinspect.reference.apt import Package, Progress, Suite, SuiteUnavailable
from ptinspect.reference.cache import Manifest, Source, StoredFile
from ptinspect.reference.guests import Guest, from_manifest
from ptinspect.reference.pins import GuestSpec, PinnedPackage


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


class Installer:
    """Install guests: a context, during which no other process installs any.

    Each suite's index is fetched once, even for several guests, and removed at the end. Entering
    raises TargetTimeout or TargetError if the cache directory cannot be had.
    """

    def __init__(
        self,
        progress: Progress = no_progress,
        *,
        table: pins.Data | None = None,
        addresses: Sequence[str] = (),
        trust: str | None = None,
    ) -> None:
        """Prepare; `addresses` and `trust` replace the machine's archive and its keys."""
        self._progress = progress
        self._table = table or pins.load()
        self._addresses = tuple(addresses)
        self._trust = trust
        self._suites: dict[str, Suite | SuiteUnavailable] = {}
        self._end = ExitStack()

    def __enter__(self) -> Installer:
        """Keep other processes from installing guests."""
        self._state = self._end.enter_context(cache.lock(self._progress))
        return self

    def __exit__(self, *problem: object) -> None:
        """Remove apt's state and let others install guests."""
        self._suites.clear()
        self._end.close()

    def install(self, name: str, *, again: bool = False) -> Guest:
        """Return a guest, installed unless it is there, or `again`; a stand-in where the archive lacks it.

        Raises UserError for an unknown name, TargetError if neither it nor a stand-in can be installed.
        """
        spec = self._table.guest(name)
        try:
            manifest = None if again else cache.read(name)
            if manifest is not None and not manifest.instead:
                return from_manifest(manifest, manifest.note)
            return self._install(spec, again)
        except OSError as error:
            raise TargetError(f"cannot install the guest {name}: {error}") from error

    def _install(self, spec: GuestSpec, again: bool) -> Guest:
        problems: list[SuiteUnavailable] = []
        for choice in (spec, *map(self._table.guest, spec.next)):
            manifest = None if again else cache.read(choice.name)
            try:
                if manifest is None or manifest.instead:
                    manifest = self._install_itself(choice)
            except SuiteUnavailable as error:
                problems.append(error)
                continue
            if choice is spec:
                return from_manifest(manifest, manifest.note)
            note = f"{choice.name} serves instead of {spec.name}: {problems[0].message}"
            with cache.workspace(spec.name) as directory:
                cache.publish(directory, Manifest(spec.name, instead=choice.name, note=note))
            return from_manifest(manifest, "; ".join(part for part in (note, manifest.note) if part))
        first = problems[0]
        raise TargetError(f"the guest {spec.name} cannot be installed: {first.message}", first.hint)

    def _suite(self, name: str) -> Suite:
        known = self._suites.get(name)
        if known is None:
            known = Suite(name, self._state / name, self._trust)
            try:
                if not self._addresses:
                    self._addresses = apt.archive_addresses()
                known.update(self._addresses, self._progress)
            except SuiteUnavailable as error:
                known = error
            self._suites[name] = known
        if isinstance(known, SuiteUnavailable):
            raise known
        return known

    def _install_itself(self, spec: GuestSpec) -> Manifest:
        suite, image, debug = self._find_image(spec)
        with cache.workspace(spec.name) as directory:
            result = directory / "result"
            result.mkdir()
            *kernels, config = self._fetch(
                suite, image, spec.image, [*spec.image.files, "boot/config-*"], result
            )
            kernel = next(filter(None, kernels), None)
            if kernel is None:
                raise TargetError(f"{image.name} {image.version} holds no kernel ({spec.image.files[0]})")
            files = {"kernel": kernel}
            sources = [Source.of(image, suite)]
            release = kernel.name.partition("-")[2]
            base = None if config else suite.find(f"linux-base-{release}", image.version)
            if base is not None:
                (config,) = self._fetch(suite, base, None, ["usr/lib/modules/*/config"], result)
                sources.append(Source.of(base, suite))
            if config is not None:
                files["config"] = config
            if debug is not None and spec.debug is not None:
                (vmlinux,) = self._fetch(suite, debug, spec.debug, spec.debug.files, result)
                if vmlinux is None:
                    raise TargetError(f"{debug.name} {debug.version} holds no vmlinux")
                files["vmlinux"] = vmlinux
                sources.append(Source.of(debug, suite))
            files["initrd"], source = self._make_initrd(suite.name, result)
            manifest = Manifest(
                spec.name,
                note="" if _is(image, spec.image) else _difference(spec.image, image),
                version=image.version,
                release=release,
                cpu=spec.cpu,
                files={use: StoredFile.of(path) for use, path in files.items()},
                sources=(*sources, source),
            )
            cache.publish(result, manifest)
        return manifest

    def _find_image(self, spec: GuestSpec) -> tuple[Suite, Package, Package | None]:
        """Return the suite, the image and its debug package; the pinned version wins over a near one."""
        problems = []
        for name in spec.suites:
            try:
                suite = self._suite(name)
            except SuiteUnavailable as error:
                problems.append(error.message)
                continue
            pinned = suite.find(spec.image.package, spec.image.version)
            for image in [pinned] if pinned else _near(suite, spec.image):
                if spec.debug is None:
                    return suite, image, None
                debug = suite.find(image.name.removesuffix("-unsigned") + "-dbg", image.version)
                if debug is not None:
                    return suite, image, debug
            problems.append(f"the archive's suite {name} holds no package like {spec.image.package}")
        raise SuiteUnavailable("; ".join(problems))

    def _make_initrd(self, first: str, directory: Path) -> tuple[Path, Source]:
        problems = []
        for entry in sorted(self._table.busybox, key=lambda b: b.suite != first.removesuffix("-backports")):
            try:
                suite = self._suite(entry.suite)
                pin = entry.package
                package = suite.find(pin.package, pin.version) or suite.find(pin.package)
                if package is None:
                    raise SuiteUnavailable(f"the archive's suite {entry.suite} holds no {pin.package}")
                shell = next(filter(None, self._fetch(suite, package, pin, pin.files, directory)), None)
            except TargetError as error:
                problems.append(error.message)
                continue
            if shell is None:
                problems.append(f"{package.name} {package.version} holds no {pin.files[0]}")
                continue
            path = directory / "initrd.cpio.gz"
            path.write_bytes(initrd.build(shell.read_bytes()))
            shell.unlink()
            return path, Source.of(package, suite)
        raise TargetError(f"no static shell for the initial RAM disk: {'; '.join(problems)}")

    def _fetch(
        self,
        suite: Suite,
        package: Package,
        pin: PinnedPackage | None,
        patterns: Sequence[str],
        directory: Path,
    ) -> list[Path | None]:
        """Download a package and take files out of it; None for a pattern that nothing matches."""
        spot = Path(tempfile.mkdtemp(dir=directory.parent))
        (path,) = suite.download([package], spot, self._progress)
        if pin is not None and _is(package, pin) and package.sha256 != pin.sha256:
            raise TargetError(
                f"{path.name} is not the file that ptinspect knows: {package.sha256}, not {pin.sha256}"
            )
        found = deb.extract(
            path,
            patterns,
            lambda name: directory / _plain_name(name),
            lambda done, total: self._progress(f"unpacking {package.name}", done, total),
        )
        path.unlink()
        return [found.get(pattern) for pattern in patterns]


def _plain_name(path: str) -> str:
    """Return what to call a file of a package: in a directory of one kernel's files, with its release."""
    match = re.fullmatch(r"usr/lib/modules/([^/]+)/(vmlinuz|config)[^/]*", path)
    return f"{match[2]}-{match[1]}" if match else PurePosixPath(path).name


def _is(package: Package, pin: PinnedPackage) -> bool:
    return (package.name, package.version) == (pin.package, pin.version)


def _near(suite: Suite, pin: PinnedPackage) -> list[Package]:
    return apt.by_nearness(suite.matching(pin.nearest), pin.version)


def _difference(pin: PinnedPackage, package: Package) -> str:
    return (
        f"the archive no longer holds {pin.package} {pin.version}; "
        f"{package.name} {package.version} is the nearest that it holds"
    )
