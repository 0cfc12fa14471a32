"""A guest of nine instructions: CPU 0 starts CPU 1, then both count."""

from __future__ import annotations

import struct
from pathlib import Path

LOAD = 0x4008_0000
"""Where QEMU's `virt` puts a kernel that is no Image."""
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
