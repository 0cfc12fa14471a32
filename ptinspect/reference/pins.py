"""The table of guests, packages and tools in `pins.toml`, as values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError

T = TypeVar("T")
DEFAULT_GUEST = "5.10-cloud"
"""The guest that `launch` and `demo` use when none is named."""


@dataclass(frozen=True)
class PinnedPackage:
    """Name one package at one version."""

    package: str
    """Name, as the archive spells it."""
    version: str
    """Debian version."""
    sha256: str
    """SHA-256 of the .deb, in hex."""
    nearest: str
    """Regular expression that the whole name of a package must match to stand in for this one."""
    files: tuple[str, ...]
    """Patterns (fnmatch) of the path inside; the first that matches a file is taken."""


@dataclass(frozen=True)
class GuestSpec:
    """Describe a reference guest."""

    name: str
    """What `setup --guest` and `launch --guest` call it."""
    description: str
    """One line for people."""
    suites: tuple[str, ...]
    """Suites of the archive that may hold it, in the order in which they are tried."""
    image: PinnedPackage
    debug: PinnedPackage | None
    """The package with its vmlinux, or None. Of another image: the same name ending in `-dbg`."""
    large: bool
    """True if it is installed only when it is named."""
    cpu: str
    """A QEMU CPU model on which it boots."""
    next: tuple[str, ...]
    """Names of the guests that serve when no suite can be used."""


@dataclass(frozen=True)
class BusyboxSpec:
    """Name the static shell of one suite."""

    suite: str
    """Suite of the archive."""
    package: PinnedPackage


@dataclass(frozen=True)
class EmulatorSpec:
    """Name what a QEMU beside the system's comes from."""

    name: str
    """What `setup --qemu` and `launch --qemu` call it."""
    suites: tuple[tuple[str, ...], ...]
    """Suites in the order in which they are tried, each with those that it adds to."""
    package: str
    """The package with the program."""
    libraries: str
    """Regular expression for the whole names of packages that may hold its libraries."""
    data: tuple[str, ...]
    """Packages that hold its firmware."""
    files: tuple[str, ...]
    """Patterns of the firmware's paths inside."""


@dataclass(frozen=True)
class KvmHostSpec:
    """Say what the emulated host with a KVM is made of."""

    guest: str
    """The guest whose kernel it runs, and whose suite its packages come from."""
    modules: tuple[str, ...]
    """Modules of that kernel, beside those that they depend on."""
    emulator: EmulatorSpec
    """Its QEMU, for arm64; without suites of its own."""


@dataclass(frozen=True)
class ToolSpec:
    """Name the system packages that bring a tool."""

    name: str
    """The tool, as `setup` lists it."""
    packages: tuple[str, ...]
    """Debian packages to install."""


@dataclass(frozen=True)
class Data:
    """Hold the whole table."""

    guests: tuple[GuestSpec, ...]
    """The guests, the default one first."""
    busybox: tuple[BusyboxSpec, ...]
    """Static shells, one per suite."""
    tools: tuple[ToolSpec, ...]
    """What the system must have."""
    test_tools: tuple[ToolSpec, ...] = ()
    """What the project's own tests need besides; each is found by its name in PATH."""
    emulators: tuple[EmulatorSpec, ...] = ()
    """QEMUs to have beside the system's."""
    kvm_hosts: tuple[KvmHostSpec, ...] = ()
    """What the project's own tests run KVM guests in; one at most."""

    @property
    def kvm_host(self) -> KvmHostSpec:
        """The one host. Raises UserError if the table has none."""
        if not self.kvm_hosts:
            raise UserError("no host for KVM guests is known")
        return self.kvm_hosts[0]

    def guest(self, name: str) -> GuestSpec:
        """Return the guest of this name. Raises UserError."""
        for spec in self.guests:
            if spec.name == name:
                return spec
        raise UserError(f"no guest {name!r}", f"one of: {', '.join(s.name for s in self.guests)}")

    def emulator(self, name: str) -> EmulatorSpec:
        """Return the emulator of this name. Raises UserError."""
        for spec in self.emulators:
            if spec.name == name:
                return spec
        raise UserError(f"no QEMU {name!r}", f"one of: {', '.join(s.name for s in self.emulators)}")

    def tool(self, name: str) -> ToolSpec:
        """Return the tool of this name; KeyError means that the table lacks it."""
        for spec in self.tools:
            if spec.name == name:
                return spec
        raise KeyError(name)


@cache
def load() -> Data:
    """Return the table that the package ships."""
    text = resources.files("ptinspect.reference").joinpath("pins.toml").read_text("utf-8")
    return parse(tomllib.loads(text))


def parse(table: dict[str, Any]) -> Data:
    """Make values of the table; KeyError or TypeError means that `pins.toml` is wrong."""
    return Data(
        tuple(_guest(entry) for entry in table["guest"]),
        tuple(_busybox(entry) for entry in table["busybox"]),
        tuple(_spec(ToolSpec, entry) for entry in table["tool"]),
        tuple(_spec(ToolSpec, entry) for entry in table.get("test_tool", ())),
        tuple(_spec(EmulatorSpec, entry) for entry in table.get("emulator", ())),
        tuple(_kvm_host(entry) for entry in table.get("kvm_host", ())),
    )


def _kvm_host(entry: Mapping[str, Any]) -> KvmHostSpec:
    own = {name: entry[name] for name in ("package", "libraries", "data", "files")}
    qemu = _spec(EmulatorSpec, {"name": "kvm", "suites": [], **own})
    return KvmHostSpec(entry["guest"], tuple(entry["modules"]), qemu)


def _spec(kind: type[T], entry: Mapping[str, Any]) -> T:
    """Make a value whose fields have the names of the table's; lists become tuples."""
    return kind(**{name: _frozen(value) for name, value in entry.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _busybox(entry: Mapping[str, Any]) -> BusyboxSpec:
    name, files = entry["package"], tuple(entry["file"])
    return BusyboxSpec(entry["suite"], PinnedPackage(name, entry["version"], entry["sha256"], name, files))


def _guest(entry: dict[str, Any]) -> GuestSpec:
    image = PinnedPackage(
        entry["package"], entry["version"], entry["sha256"], entry["nearest"], tuple(entry["kernel"])
    )
    debug = entry.get("debug")
    return GuestSpec(
        entry["name"],
        entry["description"],
        tuple(entry["suites"]),
        image,
        None
        if debug is None
        else PinnedPackage(debug["package"], image.version, debug["sha256"], "", (debug["vmlinux"],)),
        bool(entry.get("large", False)),
        entry.get("cpu", "cortex-a72"),
        tuple(entry["next"]),
    )
