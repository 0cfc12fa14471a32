"""What QEMU's monitor answers about the machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import TargetError

if TYPE_CHECKING:
    from ptinspect.memory.source import RamBlock

_VIEW = re.compile(r"^\s*FlatView #\d+")
_SPACE = re.compile(r'^\s*AS "([^"]*)"')
_RANGE = re.compile(r"^\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?([^)]+)\): (.*)$")
_MEMORY = ("ram", "rom", "romd")
"""Kinds whose reads have no effect on a device (QEMU system/memory.c, memory_region_type); `ramd` has."""
SYSTEM_SPACE = "memory"
"""Name of the address space that physical reads of the gdbstub use (QEMU, address_space_memory)."""

Monitor = Callable[[str], str]
"""Runs a command of the monitor and returns what it prints."""


def accelerator(monitor: Monitor) -> str:
    """Return what executes the guest: `kvm`, `tcg` (which has `info jit`), `other`; empty if not known."""
    if "enabled" in monitor("info kvm"):
        return "kvm"
    jit = monitor("info jit")
    return "tcg" if "ranslation buffer" in jit else "other" if "accel=tcg" in jit else ""


def status(monitor: Monitor) -> str:
    """Return the state of the guest: `running`, `paused`, `paused (debug)`, …"""
    return monitor("info status").strip().removeprefix("VM status: ")


def version_number(version: str) -> str:
    """Return the number in the answer to `info version`: `7.2.22` of `7.2.22Debian`."""
    found = re.match(r"[0-9.]+", version)
    return found[0] if found else version


def translated(answer: str) -> int | None:
    """Return the address in the answer to `gva2gpa`; None if the translation failed."""
    found = re.search(r"gpa: (0x[0-9a-f]+|0)", answer)
    return int(found[1], 16) if found else None


def parse_mtree(text: str) -> tuple[RamBlock, ...]:
    """Return the RAM and ROM of the system address space from `info mtree -f`, by address.

    Raises TargetError if the text holds no such memory.
    """
    from ptinspect.memory.source import RamBlock

    blocks: list[RamBlock] = []
    wanted = listed = False
    for line in text.splitlines():
        if _VIEW.match(line):
            if blocks:
                break
            wanted = False
        elif space := _SPACE.match(line):
            wanted |= space[1] == SYSTEM_SPACE
            listed = True
        elif wanted and (found := _RANGE.match(line)) and found[3] in _MEMORY:
            start, last = int(found[1], 16), int(found[2], 16)
            if last < start:
                raise TargetError(
                    "QEMU's 'info mtree -f' lists memory that ends before it begins", line.strip()
                )
            name = re.sub(r" @[0-9a-f]{16}.*$| KVM$", "", found[4]).strip()
            blocks.append(RamBlock(PhysAddr(start), last - start + 1, name, found[3] == "ram"))
    if not blocks:
        what = "lists no RAM" if listed else "cannot be read"
        raise TargetError(f"QEMU's 'info mtree -f' {what}", "\n".join(text.splitlines()[:5]))
    return tuple(sorted(blocks, key=lambda block: block.start))
