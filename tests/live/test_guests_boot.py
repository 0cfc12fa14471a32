"""Every reference guest that is installed boots under QEMU to the line that says that it is ready."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import missing

from ptinspect.errors import TargetError
from ptinspect.reference import guests, initrd, pins

BOOT_TIMEOUT = 400.0
INSTALLED = {guest.name for guest in guests.installed_guests()}
NAMES = [spec.name for spec in pins.load().guests if not spec.large or spec.name in INSTALLED]
"""Large guests, which `setup` installs only when they are named, are booted where they are."""


def boot(guest: guests.Guest, console: Path, words: str) -> str:
    """Boot until the guest has powered off, or the time is up; return the console."""
    qemu = shutil.which("qemu-system-aarch64") or missing("qemu-system-aarch64")
    command = [
        *(qemu, "-machine", "virt,gic-version=3", "-cpu", guest.cpu, "-smp", "1", "-m", "1024"),
        *("-nic", "none", "-display", "none", "-no-reboot", "-serial", f"file:{console}"),
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", words),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            process.wait(BOOT_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
    return console.read_text("utf-8", "replace") if console.exists() else ""


@pytest.mark.parametrize("name", NAMES)
def test_a_guest_boots_to_its_shell_and_powers_off(name: str, tmp_path: Path) -> None:
    try:
        guest = guests.guest(name)
    except TargetError:
        missing(f"the guest {name}")
    if guest.name != name:
        pytest.skip(guest.note)
    words = "rdinit=/init console=ttyAMA0 earlycon=pl011,0x9000000 nokaslr kpti=on"
    console = boot(guest, tmp_path / "console", f"{words} {initrd.POWEROFF}")
    assert f"Linux version {guest.release} " in console
    assert initrd.READY in console.splitlines()
    assert "reboot: Power down" in console
    assert "mount:" not in console
