"""What the system itself must have, QEMU and GDB: find it, and install it through apt."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial

from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, TargetError
from ptinspect.reference import emulator, kvm_host, pins
from ptinspect.reference.apt import Progress
from ptinspect.reference.helper_program import Result, run

QEMU = "qemu-system-aarch64"

Probe = Callable[[], tuple[str, str]]
"""Returns path and version of a tool; raises PtinspectError with the reason if there is none."""

DAEMONS = "/usr/sbin"
"""Where Debian has daemons; PATH names it for root only."""
PROBE_TIMEOUT = 20.0
INSTALL_TIMEOUT = 1800.0
PASSWORD_TIMEOUT = 120.0


class AptFailed(TargetError):
    """Report packages that apt was allowed to install and could not."""


@dataclass(frozen=True)
class Tool:
    """Hold whether a tool is there."""

    name: str
    """What it is called in lists."""
    path: str
    """The program; empty if there is none that can be used."""
    version: str
    """As the program names it."""
    problem: str
    """Why it cannot be used; empty if it can."""
    packages: tuple[str, ...]
    """Debian packages that bring it; none if setup brings it without the system's help."""

    @property
    def found(self) -> bool:
        """Tell whether it can be used."""
        return not self.problem

    @property
    def needed_command(self) -> str:
        """The command that installs it, or nothing if it is there."""
        return "" if self.found or not self.packages else install_command(self.packages)


def check_tools(find_gdb: Probe, qemu: Probe | None = None, *, tests: bool = False) -> list[Tool]:
    """Look for every tool, with `tests` also what the tests need.

    `find_gdb` knows which GDB serves, `qemu` which QEMU: the one in PATH if None.
    """
    table = pins.load()
    found = [
        _check(table.tool(QEMU), qemu or partial(find_program, QEMU)),
        _check(table.tool("gdb"), find_gdb),
    ]
    more = table.test_tools if tests else ()
    return [*found, *(_check(spec, partial(find_program, spec.name)) for spec in more)]


def check_emulator(name: str, *, thoroughly: bool = False) -> Tool:
    """Look for a QEMU beside the system's, whether it runs, and `thoroughly` at the hashes of its files."""

    def probe() -> tuple[str, str]:
        program = emulator.find(name).program
        problem = emulator.damage(name) if thoroughly else ""
        if problem:
            raise TargetError(problem)
        return find_program(str(program))

    return _check(pins.ToolSpec(f"{QEMU} ({name})", ()), probe)


def check_kvm_host(*, thoroughly: bool = False) -> Tool:
    """Look for the host of KVM guests, and `thoroughly` at the hash of its files."""

    def probe() -> tuple[str, str]:
        host = kvm_host.find()
        problem = kvm_host.damage() if thoroughly else ""
        if problem:
            raise TargetError(problem)
        return str(host.initrd), host.version

    return _check(pins.ToolSpec("host of KVM guests", ()), probe)


def find_program(name: str) -> tuple[str, str]:
    """Return path and version of a program, in PATH, among the daemons or by path.

    It answers `--version`, else `-V` (Slurm's); a version is numbers with dots, or a date (GNU parallel's).
    Raises TargetError.
    """
    path = shutil.which(name) or shutil.which(name, path=DAEMONS)
    if path is None:
        raise TargetError("not installed")
    for option in ("--version", "-V"):
        result = run([path, option], timeout=PROBE_TIMEOUT)
        match = re.search(r"\d+\.\d[\w.]*|\b\d{8}\b", result.output)
        if not result.code and match is not None:
            return path, match[0]
    raise TargetError(f"{path} does not run: {result.last_words()}")


def _check(spec: pins.ToolSpec, probe: Probe) -> Tool:
    try:
        path, version = probe()
    except PtinspectError as error:
        return Tool(spec.name, "", "", error.message, spec.packages)
    return Tool(spec.name, path, version, "", spec.packages)


def install_command(packages: Sequence[str]) -> str:
    """Return the command that a person can type to install packages."""
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    return shlex.join([*prefix, *_apt_get("install", *packages)])


def _apt_get(*words: str) -> list[str]:
    return ["apt-get", *words[:1], *(("-y", "--no-install-recommends") if words[1:] else ()), *words[1:]]


def install_packages(packages: Sequence[str], progress: Progress) -> None:
    """Install system packages through apt, as root or with sudo; the index is renewed if it is stale.

    Raises TargetError, with the command to type as hint, if it may not, AptFailed if apt fails.
    """
    hint = f"run: {install_command(packages)}"
    if shutil.which("apt-get") is None:
        raise TargetError("this system has no apt; install QEMU for aarch64 and a GDB that knows aarch64")
    prefix = privilege()
    if prefix is None:
        raise TargetError(f"installing {' and '.join(packages)} needs root", hint)
    what = f"installing {' '.join(packages)}"
    progress(what, 0, 0)
    first = _as_root(prefix, *_apt_get("install", *packages))
    if first.code:
        progress("reading the index of the system's packages", 0, 0)
        update = _as_root(prefix, *_apt_get("update"))
        progress(what, 0, 0)
        second = _as_root(prefix, *_apt_get("install", *packages))
        if second.code:
            reason = update.last_words() if update.code else second.last_words()
            raise AptFailed(f"apt cannot install {' '.join(packages)}: {reason}", hint)


def privilege() -> tuple[str, ...] | None:
    """Return the words that make a command run as root, or None if no user is there to allow it."""
    if os.geteuid() == 0:
        return ()
    if shutil.which("sudo") is None:
        return None
    if run(["sudo", "-n", "true"], timeout=PROBE_TIMEOUT, terminal=True).code == 0:
        return ("sudo", "-n")
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    asked = run(["sudo", "-v"], timeout=PASSWORD_TIMEOUT, terminal=True)
    return ("sudo", "-n") if asked.code == 0 else None


def _as_root(prefix: tuple[str, ...], *command: str) -> Result:
    """Run apt-get so that it asks nothing and waits for another one that holds the lock."""
    options = ["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]
    return run(
        [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", command[0], *options, *command[1:]],
        timeout=INSTALL_TIMEOUT,
        terminal=bool(prefix),
    )
