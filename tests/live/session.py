"""A guest of ours, driven with the same command lines that a user types."""

from __future__ import annotations

import gzip
import itertools
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import missing, newer_qemu
from fakes import wider

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import TargetError
from ptinspect.link.qemu.machine import LaunchOptions, Qemu, launch
from ptinspect.output.model import Report
from ptinspect.reference import guests
from ptinspect.reference.initrd import READY, Entry, cpio

GUESTS_OF_TESTS: dict[str, set[str]] = {}
"""Guests that a test has asked for, by its node id; what a shared fixture asks for counts for the first."""
KASLR_BOOT = "rdinit=/init console=ttyAMA0 earlycon=pl011,0x9000000"
NEWER = "--qemu newer"
"""Option of `launch` for a QEMU that is newer than the system's."""
BOOT_SECONDS = 400.0
"""What a boot may take on a machine that is busy with other things; nothing waits that long if it is not."""


class Live:
    """Run command lines against one context."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def __call__(self, line: str) -> dict[str, Any]:
        """Run a line and return its result; what it says must be readable on 80 columns."""
        report = self.report(line)
        assert wider(report, 80) == [], line
        return dict(report.result)

    def report(self, line: str) -> Report:
        """Run a line and return its report."""
        return self.ctx.registry.run(self.ctx, line)

    def exit_code(self, line: str) -> int:
        """Run a line and return the exit code of its report."""
        return self.report(line).exit_code


def need_guest(name: str) -> guests.Guest:
    """Return an installed guest; fail or skip where it is missing."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    GUESTS_OF_TESTS.setdefault(test, set()).add(name)
    try:
        guest = guests.guest(name)
    except TargetError:
        missing(f"the guest {name}")
    if guest.name != name:
        missing(f"the guest {name}")
    return guest


def is_ready(live: Live, qemu: Qemu | None = None) -> bool:
    """Tell whether the guest's first process has said that it is ready."""
    found = qemu or live.ctx.guest.qemu
    assert found is not None
    return READY in found.console.read_text("utf-8", "replace")


def to_shell(live: Live, qemu: Qemu | None = None) -> None:
    """Let a stopped guest run until its first process is ready, and stop it; it is that of its own QEMU."""
    if live.ctx.guest.state == "stopped":
        live("continue --background")
    deadline = time.monotonic() + BOOT_SECONDS
    while not is_ready(live, qemu):
        if time.monotonic() > deadline or live.ctx.guest.state != "running":
            pytest.fail(f"the guest did not reach its shell: {live('status')['state']}")
        time.sleep(0.1)
    live("interrupt")
    to_idle(live)


def to_idle(live: Live) -> None:
    """Let a stopped guest run until a CPU idles.

    Where a guest is interrupted is chance: it may be in user mode, where TTBR1 and VBAR_EL1 are the
    trampoline's, or in the trampoline itself. An idle CPU is in the kernel, on its own stack.
    """
    live("until cpu_do_idle --timeout 300")


def guarded_to_shell(live: Live) -> dict[str, Any]:
    """Let a stopped guest boot under `stack guard`, which must stay quiet; return its last answer."""
    deadline = time.monotonic() + BOOT_SECONDS
    for seconds in itertools.count(3, 3):  # on a busy machine arming takes the most of it
        quiet = live(f"stack guard --timeout {seconds}")
        assert quiet["quiet"] and quiet["way"] == "time", quiet
        if is_ready(live):
            to_idle(live)
            return quiet
        if time.monotonic() > deadline:
            break
    pytest.fail("the guest did not reach its shell under guard")


@contextmanager
def fresh(*lines: str) -> Iterator[Live]:
    """A ptinspect of its own in which these lines were typed; the guest that it has is left, or ended."""
    live = Live(Context(build_registry()))
    try:
        for line in lines:
            live(line)
        yield live
    finally:
        live.ctx.close()


@contextmanager
def launched(guest: str, options: str = "") -> Iterator[Live]:
    """Launch a guest, stopped at reset, and end it afterwards; options may stand behind its name, too."""
    need_guest(guest.split(maxsplit=1)[0])
    if NEWER in f"{guest} {options}":
        newer_qemu()
    with fresh(f"launch --guest {guest} {options}") as live:
        yield live


@contextmanager
def of_somebody_else(name: str, **options: Any) -> Iterator[Qemu]:
    """A guest, stopped at reset, that no ptinspect has launched, and end it afterwards."""
    guest = need_guest(name)
    qemu = launch(LaunchOptions(guest.kernel, guest.initrd, cpu=guest.cpu, **options))
    try:
        yield qemu
    finally:
        qemu.end()


def initrd_with(name: str, folder: Path, programs: Mapping[str, str | bytes], *more: Entry) -> Path:
    """Write a guest's RAM disk with programs and other entries added; of a name the later one wins."""
    found = {path: data if isinstance(data, bytes) else data.encode() for path, data in programs.items()}
    entries = [Entry(path, stat.S_IFREG | 0o755, data) for path, data in found.items()]
    base = need_guest(name.split(maxsplit=1)[0]).initrd
    assert base is not None
    data = base.read_bytes()
    file = folder / "initrd"
    file.write_bytes(data + bytes(-len(data) % 4) + gzip.compress(cpio([*more, *entries])))
    return file
