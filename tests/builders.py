"""Build translation tables for tests: any granule, any number of levels, in a byte table.

    tree = TreeBuilder(regime_4k(48))
    tree.map(0xFFFF_8000_1000_0000, 0x4020_0000, size=2 << 20, level=3)
    tables, truncated = capture(tree.memory, tree.root, tree.regime)

Also shared tables (`share`), loops (`point` at an ancestor) and tables that cannot be read
(`point` at OUTSIDE).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from sparse_memory import SparseMemory

from ptinspect.arch.bits import MASK64, PhysAddr, VirtAddr, mask
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.arch.sysregs import CpuState
from ptinspect.memory.source import PhysicalMemory, RamBlock
from ptinspect.snapshot.model import Meta, Root, Snapshot
from ptinspect.tables.capture import capture
from ptinspect.tables.index import Tables

NG = 1 << 11
AF = 1 << 10
SH = 3 << 8
READ_ONLY = 1 << 7
EL0 = 1 << 6
CONTIGUOUS = 1 << 52
PXN = 1 << 53
UXN = 1 << 54
KERNEL_DATA = PXN | UXN | SH | AF
KERNEL_TEXT = UXN | SH | AF | READ_ONLY
TABLES_AT = 0x4000_0000
"""Where tables are put, one behind the other, unless told otherwise."""
OUTSIDE = 0x9_0000_0000
"""An address that is not RAM in any builder's memory."""
RAM = RamBlock(PhysAddr(TABLES_AT), 1 << 30, "test.ram")
MAIR = 0x0000_0000_44FF_0400


def regime_4k(va_bits: int = 48, *, upper: bool = True, **more: object) -> Regime:
    """Return a 4K regime as Linux sets it up."""
    return Regime(12, va_bits, 48, upper, **({"mair": MAIR} | more))  # type: ignore[arg-type]


REGIMES: Mapping[str, Regime] = {
    "4k-39": regime_4k(39),
    "4k-48": regime_4k(48),
    "4k-48-user": regime_4k(48, upper=False),
    "4k-52-lpa2": Regime(12, 52, 52, True, ds=True, mair=MAIR),
    "4k-36": regime_4k(36),
    "16k-36": Regime(14, 36, 48, True, mair=MAIR),
    "16k-47": Regime(14, 47, 48, True, mair=MAIR),
    "16k-48": Regime(14, 48, 48, True, mair=MAIR),
    "16k-52-lpa2": Regime(14, 52, 52, True, ds=True, mair=MAIR),
    "64k-42": Regime(16, 42, 48, True, mair=MAIR),
    "64k-48": Regime(16, 48, 48, True, mair=MAIR),
    "64k-52-lpa": Regime(16, 52, 52, True, mair=MAIR),
}
"""Every granule, with full and partial root tables, and output addresses in and out of line."""


class TreeBuilder:
    """Build one tree of tables in a SparseMemory."""

    def __init__(
        self,
        regime: Regime,
        *,
        memory: SparseMemory | None = None,
        tables_at: int = TABLES_AT,
        root: int | None = None,
        top_down: bool = False,
    ) -> None:
        """Begin with an empty root at `root`, or at the first free table.

        Tables are taken from `tables_at` upwards, or downwards with `top_down` (as Linux's memblock does).
        """
        self.regime = regime
        self.memory = memory or SparseMemory([RAM])
        self._step = -regime.granule if top_down else regime.granule
        self._next = tables_at
        self.root = self.new_table() if root is None else root

    def new_table(self) -> int:
        """Reserve an empty table and return its address."""
        pa, self._next = self._next, self._next + self._step
        return pa

    def address_field(self, pa: int, level: int, *, table: bool = False) -> int:
        """Return `pa` as the address bits of a descriptor."""
        regime = self.regime
        if regime.ds:
            return pa & mask(49, 12) | (pa >> 50 & 3) << 8
        low = pa & mask(47, regime.granule_bits if table else regime.shift(level))
        return low | (pa >> 48 & 0xF) << 12 if regime.wide_oa else low

    def table_at(self, va: int, level: int, *, create: bool = True) -> int:
        """Return the address of the table at `level` that translates `va`, made if it is not there."""
        table = self.root
        for above in range(self.regime.start_level, level):
            slot = table + 8 * self.regime.index(va, above)
            raw = self.word(slot)
            if raw & 3 != 3:
                if not create:
                    raise KeyError(f"no table at level {above + 1} for {va:#x}")
                raw = self.address_field(self.new_table(), above, table=True) | 3
                self.set_word(slot, raw)
            table = self.regime.next_table(raw)
        return table

    def slot(self, va: int, level: int, *, create: bool = True) -> int:
        """Return the address of the descriptor of `va` at `level`."""
        return self.table_at(va, level, create=create) + 8 * self.regime.index(va, level)

    def word(self, pa: int) -> int:
        """Return the descriptor at `pa`."""
        return int.from_bytes(self.memory.read(pa, 8), "little")

    def set_word(self, pa: int, raw: int) -> None:
        """Store a descriptor at `pa`."""
        self.memory.write(pa, (raw & MASK64).to_bytes(8, "little"))

    def get(self, va: int, level: int) -> int:
        """Return the descriptor of `va` at `level`."""
        return self.word(self.slot(va, level, create=False))

    def set(self, va: int, level: int, raw: int) -> None:
        """Store any descriptor for `va` at `level`."""
        self.set_word(self.slot(va, level), raw)

    def xor(self, va: int, level: int, bits: int) -> None:
        """Flip bits of the descriptor of `va` at `level`."""
        self.set(va, level, self.get(va, level) ^ bits)

    def leaf(self, pa: int, level: int, attributes: int = KERNEL_DATA) -> int:
        """Return a block or page descriptor."""
        if self.regime.ds:
            attributes &= ~SH
        return self.address_field(pa, level) | attributes | (3 if level == LEVEL_LAST else 1)

    def map(
        self, va: int, pa: int, *, size: int = 0, level: int = LEVEL_LAST, attributes: int = KERNEL_DATA
    ) -> None:
        """Map `size` bytes (one leaf if 0) at `va` to `pa` with leaves of `level`, table by table."""
        unit = self.regime.entry_size(level)
        left = max(size // unit, 1)
        while left:
            first = self.regime.index(va, level)
            count = min(left, self.regime.entries(level) - first)
            addresses = pa + unit * np.arange(count, dtype=np.uint64)
            if self.regime.wide_oa:
                raw = np.array([self.leaf(int(a), level, attributes) for a in addresses], dtype="<u8")
            else:
                raw = (addresses | np.uint64(self.leaf(0, level, attributes))).astype("<u8")
            self.memory.write(self.table_at(va, level) + 8 * first, raw.tobytes())
            va, pa, left = va + count * unit, pa + count * unit, left - count

    def point(self, va: int, level: int, table_pa: int, extra: int = 0) -> None:
        """Make the entry of `va` at `level` point to any table: an ancestor, another tree, OUTSIDE."""
        self.set(va, level, self.address_field(table_pa, level, table=True) | 3 | extra)

    def share(self, va: int, level: int, with_va: int) -> None:
        """Make the entry of `va` at `level` point to the table that `with_va` uses there."""
        self.point(va, level, self.table_at(with_va, level + 1, create=False))

    def capture(self, **options: object) -> Tables:
        """Capture the tree; it must be complete."""
        tables, truncated = capture(self.memory, self.root, self.regime, **options)  # type: ignore[arg-type]
        assert not truncated
        return tables

    def snapshot(self, name: str = "test", **options: object) -> Snapshot:
        """Capture the tree as a snapshot."""
        return snapshot_of(self.memory, self.root, self.regime, name, **options)


def cpu_state(cpu: int = 0, **system: int) -> CpuState:
    """Return the registers of a CPU at EL1."""
    return CpuState(cpu, tuple(range(31)), 0xFFFF_8000_1000_3F00, 0xFFFF_8000_1001_0000, 0x3C5, dict(system))


def snapshot_of(
    memory: PhysicalMemory, root: int, regime: Regime, name: str = "test", **options: object
) -> Snapshot:
    """Capture what lies under `root` as a snapshot."""
    tables, truncated = capture(memory, root, regime, **options)  # type: ignore[arg-type]
    va_range = options.get("va_range")
    return Snapshot(
        name=name,
        root=Root(PhysAddr(root), "test"),
        regime=regime,
        tables=tables,
        cpus=(cpu_state(TTBR1_EL1=root, SCTLR_EL1=1),),
        ram=(RAM,),
        meta=Meta("2026-01-01T00:00:00+00:00", "0.0.0", source=memory.label),
        va_range=None if va_range is None else (VirtAddr(va_range[0]), VirtAddr(va_range[1])),  # type: ignore[index]
        truncated=truncated,
    )


def copy_tables(snapshot: Snapshot, name: str = "copy") -> Snapshot:
    """Return a snapshot with descriptors of its own, to be changed by a test."""
    tables = dataclasses.replace(snapshot.tables, raw=snapshot.tables.raw.copy())
    return dataclasses.replace(snapshot, tables=tables, name=name)
