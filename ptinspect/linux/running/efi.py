"""UEFI while it runs: where its services are, so that the end of them can be waited for.

A firmware loads the kernel somewhere, and the EFI stub in the kernel may move it again. When the stub calls
ExitBootServices() the kernel lies where it will run (drivers/firmware/efi/libstub: the image is placed before
efi_boot_kernel() ends the boot services).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptinspect.errors import MemoryReadError
from ptinspect.memory.source import PhysicalMemory, RamBlock, number_at

BOUNDARY = 4 << 20
"""Where EFI_SYSTEM_TABLE_POINTER may lie (UEFI 2.10, 18.4.2)."""
SYSTEM = b"IBI SYST"
"""Signature of that pointer, and of the system table (UEFI 2.10, 4.3)."""
SERVICES = b"BOOTSERV"
"""Signature of the table of boot services (UEFI 2.10, 4.4)."""
BOOT_SERVICES = 96
"""Offset of EFI_SYSTEM_TABLE.BootServices."""
EXIT_BOOT_SERVICES = 232
"""Offset of EFI_BOOT_SERVICES.ExitBootServices."""
POINTER = 16
"""Bytes of EFI_SYSTEM_TABLE_POINTER that are looked at: the signature, and the table's address."""


def exit_boot_services(memory: PhysicalMemory, ram: Sequence[RamBlock]) -> int | None:
    """Return the address of ExitBootServices(), which runs where it lies; None if no UEFI shows itself."""
    for block in ram:
        if not block.writable:
            continue
        places = range(-(-block.start // BOUNDARY) * BOUNDARY, block.end - POINTER + 1, BOUNDARY)
        raw, readable = memory.read_tables(np.array(places, dtype=np.uint64), POINTER)
        wanted = np.uint64(int.from_bytes(SYSTEM, "little"))
        for row in np.flatnonzero(readable & (raw[:, 0] == wanted)).tolist():
            found = _service(memory, int(raw[row, 1]))
            if found is not None:
                return found
    return None


def _service(memory: PhysicalMemory, table: int) -> int | None:
    """Return what a system table leads to; None if it is none."""
    try:
        if memory.read(table, 8) != SYSTEM:
            return None
        services = number_at(memory, table + BOOT_SERVICES)
        if memory.read(services, 8) != SERVICES:
            return None
        return number_at(memory, services + EXIT_BOOT_SERVICES) or None
    except MemoryReadError:
        return None
