"""What a snapshot holds: the captured tables, the registers at that time, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass, field
from ptinspect.memory.source import RamBlock
from ptinspect.tables.index import Tables


@dataclass(frozen=True)
class Root:
    """Name a root table and how it was found."""

    pa: PhysAddr
    """Physical address of the root table, ASID and CnP removed."""
    provenance: str
    """Why this root: `TTBR1_EL1 at kpti_install_ng_mappings`, `--root`, `symbol swapper_pg_dir`, …"""


@dataclass(frozen=True)
class Meta:
    """Hold where a snapshot comes from."""

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
    """The user's own text."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further facts by name; snapshot/fact_names.py has the names."""


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
