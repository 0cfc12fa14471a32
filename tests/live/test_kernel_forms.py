"""Kernels as their users have them boot; what cannot run is noticed at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import zstandard
from kernels import zboot
from session import BOOT_SECONDS, fresh, need_guest

from ptinspect.errors import NothingRuns


def test_an_efi_zboot_kernel_boots_without_a_firmware(tmp_path: Path) -> None:
    """No QEMU before 11.0 unpacks Zstandard, and 7.2 no zboot at all: ptinspect does."""
    image = need_guest("5.10-cloud").kernel.read_bytes()
    file = tmp_path / "vmlinuz.efi"
    file.write_bytes(zboot(zstandard.compress(image, 1), b"zstd22") + len(image).to_bytes(4, "little"))
    with fresh(f"launch {file}") as live:
        assert live("kernel")["file"] == str(file)
        done = live(f"kpti run --timeout {BOOT_SECONDS:g}")
        assert done["reached"], done
        live("diff before after --expect-only-bit11")


@pytest.mark.parametrize("what", ["zeros", "the wrong page size", "a zboot kernel as it is"])
def test_a_guest_in_which_nothing_runs(tmp_path: Path, what: str) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(bytes(4096))
    line = f"launch {file} --smp 2"
    if what == "the wrong page size":
        need_guest("6.12-16k")
        line = "launch --guest 6.12-16k --cpu cortex-a72"
    elif what == "a zboot kernel as it is":
        image = need_guest("5.10-cloud").kernel.read_bytes()
        file.write_bytes(zboot(zstandard.compress(image[: 1 << 20], 1), b"zstd22"))
        line = f"launch --guest 5.10-cloud -- -kernel {file}"
    with fresh(line) as live:
        began = time.monotonic()
        with pytest.raises(NothingRuns, match="nothing runs: cpu 0"):
            live(f"continue --timeout {BOOT_SECONDS:g}")
        assert time.monotonic() - began < BOOT_SECONDS / 4
        assert live("status")["state"] == "stopped"
