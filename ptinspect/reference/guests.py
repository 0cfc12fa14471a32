"""The reference guests that are installed."""

from __future__ import annotations

from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError
from ptinspect.reference import cache, pins
from ptinspect.reference.cache import Manifest
from ptinspect.reference.pins import DEFAULT_GUEST


@dataclass(frozen=True)
class Guest:
    """Name the files of an installed guest."""

    name: str
    """The guest, or the one that serves in its place."""
    kernel: Path
    """The kernel, as QEMU's `-kernel` takes it."""
    initrd: Path
    """Initial RAM disk with a static shell."""
    version: str
    """Debian version of the kernel."""
    vmlinux: Path | None = None
    """The kernel with symbols and debug information, or None."""
    release: str = ""
    """What `uname -r` prints there."""
    cpu: str = "cortex-a72"
    """A QEMU CPU model on which it boots."""
    config: Path | None = None
    """The kernel's build configuration, or None."""
    note: str = ""
    """How it differs from what was requested; empty if it does not."""


def guest(name: str = DEFAULT_GUEST) -> Guest:
    """Return an installed guest, or the one that serves in its place.

    Raises UserError for an unknown name, TargetError if it is not installed.
    """
    pins.load().guest(name)
    found = installed(name)
    if found is None:
        raise TargetError(
            f"the guest {name} is not installed", f"ptinspect setup --yes --guest {name} installs it"
        )
    return found


def installed_guests() -> list[Guest]:
    """Return the guests whose own files are installed, the default one first."""
    guests = [installed(spec.name) for spec in pins.load().guests]
    return [g for spec, g in zip(pins.load().guests, guests, strict=True) if g and g.name == spec.name]


def installed(name: str) -> Guest | None:
    """Return an installed guest, or the one that serves in its place; None if there is neither."""
    manifest = cache.read(name)
    if manifest is None:
        return None
    note = manifest.note
    if manifest.instead:
        manifest = cache.read(manifest.instead)
        if manifest is None or manifest.instead:
            return None
        note = "; ".join(part for part in (note, manifest.note) if part)
    return from_manifest(manifest, note)


def from_manifest(manifest: Manifest, note: str) -> Guest:
    """Return the guest that a manifest with files describes, with this note."""
    place = cache.guests_directory() / manifest.name
    files = {use: place / file.name for use, file in manifest.files.items()}
    return Guest(
        manifest.name,
        files["kernel"],
        files["initrd"],
        manifest.version,
        files.get("vmlinux"),
        manifest.release,
        manifest.cpu,
        files.get("config"),
        note,
    )


def damage(name: str) -> str:
    """Return what is wrong with the files of an installed guest by their hashes; empty if nothing is."""
    manifest = cache.read(name)
    return "not installed" if manifest is None else cache.damage(manifest)
