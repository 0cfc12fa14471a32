"""Guests without a kernel: nine instructions (CPU 0 starts CPU 1, then both count), and assembled ones."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import missing
from session import Live, fresh

from ptinspect.link.live import LiveSession
from ptinspect.link.qemu.machine import LaunchOptions, Qemu, launch

LOAD = 0x4008_0000
"""Where QEMU's `virt` puts a kernel that is no Image."""
DONE, BAD = LOAD + 0x400, LOAD + 0x500
"""Where the assembled guests end, well or not."""
CALL = LOAD + 5 * 4
"""The PSCI call that starts CPU 1."""
LOOP = LOAD + 6 * 4
"""CPU 0 adds 1 to x19 here, for ever."""
LOOP_1 = LOAD + 8 * 4
"""CPU 1 adds 1 to x20 here, for ever."""
CODE = (
    0xD280_0060,  # mov x0, #3
    0xF2B8_8000,  # movk x0, #0xc400, lsl #16   (PSCI CPU_ON, 64 bit)
    0xD280_0021,  # mov x1, #1
    0x1000_00A2,  # adr x2, 1f
    0xD282_4683,  # mov x3, #0x1234
    0xD400_0002,  # hvc #0
    0x9100_0673,  # 0: add x19, x19, #1
    0x17FF_FFFF,  # b 0b
    0x9100_0694,  # 1: add x20, x20, #1
    0x17FF_FFFF,  # b 1b
)


def bare_kernel(directory: Path) -> Path:
    """Write the guest to a file."""
    file = directory / "bare.bin"
    file.write_bytes(struct.pack(f"<{len(CODE)}I", *CODE))
    return file


def counting(folder: Path, **options: Any) -> Qemu:
    """Start QEMU on that guest, stopped at reset, with two CPUs unless the options say otherwise."""
    settings = {"smp": 2, "memory": 128, "append": "", **options}
    return launch(LaunchOptions(bare_kernel(folder), **settings))


def assembled(directory: Path, source: str, *, link: bool = False, **values: int) -> Path:
    """Assemble a source beside this file, with symbols given: into a flat binary, or a program for Linux."""
    tools = ("aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy", "aarch64-linux-gnu-ld")
    for tool in tools:
        if shutil.which(tool) is None:
            missing(tool)
    file, object_file = directory / "a.bin", directory / "a.o"
    symbols = [word for name, value in values.items() for word in ("--defsym", f"{name}={value:#x}")]
    subprocess.run([tools[0], *symbols, "-o", object_file, Path(__file__).parent / source], check=True)
    last = [tools[2], "-o", file, object_file] if link else [tools[1], "-O", "binary", "-j", ".text"]
    subprocess.run(last if link else [*last, object_file, file], check=True)
    return file


@contextmanager
def started(
    kernel: Path, files: Mapping[int, bytes], directory: Path, *, machine: str = "virt,gic-version=3"
) -> Iterator[Live]:
    """Start a guest with a `max` CPU and contents of memory (address -> bytes), stopped at reset."""
    extra = []
    for address, data in files.items():
        file = directory / f"{address:x}"
        file.write_bytes(data)
        extra += ["-device", f"loader,file={file},addr={address:#x},force-raw=on"]
    options = LaunchOptions(kernel, cpu="max", memory=128, append="", extra=tuple(extra), machine=machine)
    with fresh() as live:
        qemu = live.ctx.guest.qemu = launch(options)
        live.ctx.guest.open_session(LiveSession.attach(str(qemu.gdb_socket)))
        yield live
