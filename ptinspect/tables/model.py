"""What a snapshot holds: the raw descriptors of every table under a root, and the registers at that time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState
from ptinspect.memory.source import RamBlock


@dataclass(frozen=True)
class Root:
    """Name a root table and say how it was found."""

    pa: PhysAddr
    """Physical address of the root table, ASID and CnP removed."""
    provenance: str
    """Why this root: `TTBR1_EL1 at kpti_install_ng_mappings`, `--root`, `symbol swapper_pg_dir`, …"""


@dataclass(frozen=True, eq=False)
class Tables:
    """Hold every table reached from a root, one row per table, sorted by (level, va).

    A table reached along several paths has one row, with the lowest `va` that reaches it; its
    identity is (level, pa). All arrays have n rows.
    """

    level: NDArray[np.int8]
    """Level of the table's entries: start_level … 3."""
    pa: NDArray[np.uint64]
    """Physical address of the table."""
    va: NDArray[np.uint64]
    """First virtual address that the table translates, canonical."""
    raw: NDArray[np.uint64]
    """Descriptors, shape (n, granule / 8); a root smaller than a granule is padded with zeros."""
    readable: NDArray[np.bool_]
    """False where the table could not be read; its descriptors are then zeros that mean nothing."""

    def __len__(self) -> int:
        """Return the number of tables."""
        return int(self.level.shape[0])


@dataclass(frozen=True)
class Meta:
    """Say where a snapshot comes from."""

    created: str
    """UTC time of the capture, ISO 8601."""
    tool_version: str
    """Version of ptinspect that captured it."""
    where: str = ""
    """Where the guest stood: `cpu 0 at pa:0x40289510 (idmap_kpti_install_ng_mappings+0x0)`."""
    kernel: str = ""
    """The kernel's banner (`Linux version …`), escaped; empty if it was not found."""
    source: str = ""
    """The way the bytes came: gdbstub, host memory, dump file."""
    note: str = ""
    """Free text of the user's."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further facts by name; snapshot/facts.py has the names."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Join tables, root, regime and registers: all that is needed to walk with no guest."""

    name: str
    """The name the user gave; file names are the user's business."""
    root: Root
    regime: Regime
    tables: Tables
    cpus: tuple[CpuState, ...]
    """Registers of every CPU at the moment of capture."""
    ram: tuple[RamBlock, ...]
    """Guest RAM as QEMU reported it; empty if unknown."""
    meta: Meta
    va_range: tuple[VirtAddr, VirtAddr] | None = None
    """The part that was captured, both ends included; None for the whole half."""
    truncated: str = ""
    """Why the capture stopped early (too many tables); empty if it is complete."""
