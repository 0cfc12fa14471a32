"""Guests and emulators on disk: one directory each in the user's cache, with a manifest of what it holds."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from ptinspect import processes
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import TargetError, TargetTimeout
from ptinspect.files import CACHE_VARIABLE, cache_directory
from ptinspect.reference.apt import Package, Progress, Suite
from ptinspect.reference.deb import sha256

FORMAT = 1
"""Version of the manifest."""
LOCK_TIMEOUT = 1800.0
"""Seconds to wait for another process that installs guests."""

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class StoredFile:
    """Describe a file of a guest."""

    name: str
    """Name in the guest's directory."""
    size: int
    sha256: str
    """In hex."""

    @classmethod
    def of(cls, path: Path, name: str = "") -> Self:
        """Describe a file as it is; `name` is where it will be, else its own."""
        return cls(name or path.name, path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Source:
    """Name the package that something came from."""

    package: str
    version: str
    """Debian version."""
    sha256: str
    """SHA-256 of the .deb, in hex."""
    suite: str
    """Suite of the archive."""

    @classmethod
    def of(cls, package: Package, suite: Suite) -> Self:
        """Name a package of a suite."""
        return cls(package.name, package.version, package.sha256, suite.name)


@dataclass(frozen=True)
class Manifest:
    """Describe an installed guest or emulator, or name the guest that serves in a guest's place."""

    name: str
    """The guest, or the emulator."""
    instead: str = ""
    """Name of the guest that serves in its place; then there are no files."""
    note: str = ""
    """How it differs from what was requested; empty if it does not."""
    version: str = ""
    """Debian version of the kernel, or of QEMU."""
    release: str = ""
    """What `uname -r` prints there."""
    cpu: str = ""
    """A QEMU CPU model on which it boots."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    """By use: `kernel`, `initrd`, `vmlinux`, `config`; of an emulator by path."""
    sources: tuple[Source, ...] = ()
    """The packages that it was made from."""


def guests_directory() -> Path:
    """Return the directory that holds one directory per guest; it may not exist yet."""
    return cache_directory() / "guests"


def read(
    name: str, where: Path | None = None, parts: Collection[str] = ("kernel", "initrd")
) -> Manifest | None:
    """Return the manifest of a guest, or of what else `where` holds; None if it is missing or not whole.

    `parts` are the uses for which it must have files.
    """
    directory = (where or guests_directory()) / name
    try:
        table: dict[str, Any] = json.loads((directory / _MANIFEST).read_text("utf-8"))
        if table.pop("format") != FORMAT:
            return None
        table["files"] = {use: StoredFile(**entry) for use, entry in table["files"].items()}
        table["sources"] = tuple(Source(**entry) for entry in table["sources"])
        manifest = Manifest(**table)
        whole = all((directory / f.name).stat().st_size == f.size for f in manifest.files.values())
        needed = set() if manifest.instead else set(parts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if whole and needed <= manifest.files.keys() else None


def damage(manifest: Manifest, where: Path | None = None) -> str:
    """Return what is wrong with the files of a manifest by their hashes; empty if nothing is."""
    for file in manifest.files.values():
        if sha256((where or guests_directory()) / manifest.name / file.name) != file.sha256:
            return f"{file.name} is not what was installed"
    return ""


@contextmanager
def lock(progress: Progress) -> Iterator[Path]:
    """Keep other processes from installing guests meanwhile; give a directory for apt's state, removed after.

    Raises TargetTimeout, TargetError.
    """
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "guests.lock").open("a")
    except OSError as error:
        raise TargetError(
            f"cannot write to the cache directory {directory}: {error.strerror or error}",
            f"set {CACHE_VARIABLE} to a directory that can be written",
        ) from error
    with file:

        def is_ours() -> bool:
            if not processes.lock(file):
                progress("waiting for another ptinspect that installs guests", 0, 0)
                return False
            return True

        if not processes.poll(is_ours, LOCK_TIMEOUT, 0.2):
            raise TargetTimeout("another ptinspect keeps installing guests")
        state = directory / "apt"
        try:
            yield state
        finally:
            shutil.rmtree(state, ignore_errors=True)


@contextmanager
def workspace(prefix: str, where: Path | None = None) -> Iterator[Path]:
    """Give a directory on the cache's file system that is removed afterwards; the lock must be held."""
    parent = where or guests_directory()
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".*"):
        shutil.rmtree(stale, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{prefix}.", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(directory: Path, manifest: Manifest, where: Path | None = None) -> None:
    """Put a finished directory where its manifest belongs, in one step; the lock must be held."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2)
    (directory / _MANIFEST).write_text(text + "\n", "utf-8")
    directory.chmod(0o755)
    place = (where or guests_directory()) / manifest.name
    old = Path(tempfile.mkdtemp(prefix=".old.", dir=place.parent))
    if place.exists():
        place.rename(old / "was")
    directory.rename(place)
    shutil.rmtree(old, ignore_errors=True)
