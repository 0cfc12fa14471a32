"""Ask drgn, which has its own page table walker, where virtual addresses lead in captured tables.

drgn is given a vmcore that consists of headers only, with a VMCOREINFO note of ours, and a physical
memory in which the captured tables are what they were and every other page holds its own address.
What drgn reads at a virtual address is then the physical address that its own walk arrived at.
"""

from __future__ import annotations

import struct
from pathlib import Path

import drgn
import numpy as np

from ptinspect.snapshot.model import Snapshot

PHYSICAL_TOP = 1 << 52


class DrgnOracle:
    """Translate with drgn over the tables of one snapshot."""

    def __init__(self, snapshot: Snapshot, swapper_va: int, directory: Path) -> None:
        """Build the program; `swapper_va` is any kernel image address that maps the root table."""
        self.granule = snapshot.regime.granule
        tables = snapshot.tables
        self._rows = {int(pa): tables.raw[i].astype("<u8").tobytes() for i, pa in enumerate(tables.pa)}
        regime = snapshot.regime
        note = "\n".join(
            [
                "OSRELEASE=0.0.0",
                f"PAGESIZE={regime.granule}",
                f"SYMBOL(swapper_pg_dir)={swapper_va:x}",
                f"NUMBER(VA_BITS)={regime.va_bits}",
                f"NUMBER(TCR_EL1_T1SZ)={64 - regime.va_bits:#x}",
                f"NUMBER(kimage_voffset)={(swapper_va - snapshot.root.pa) & (2**64 - 1):#x}",
                "KERNELOFFSET=0",
                "",
            ]
        )
        core = directory / "core"
        core.write_bytes(_core(note))
        self.program = drgn.Program()
        self.program.set_core_dump(str(core))
        self.program.add_memory_segment(0, PHYSICAL_TOP, self._read, True)
        self._table_pages = set(self._rows)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        if count == 8 and address & ~(self.granule - 1) not in self._rows:
            return struct.pack("<Q", address)
        out = bytearray()
        while count:
            page = address & ~(self.granule - 1)
            start = address - page
            length = min(count, self.granule - start)
            row = self._rows.get(page)
            if row is None:
                row = b"".join(struct.pack("<Q", page | i) for i in range(0, self.granule, 8))
            out += row[start : start + length].ljust(length, b"\0")
            address += length
            count -= length
        return bytes(out)

    def translate(self, va: int) -> int | None:
        """Return the physical address for `va`; None where drgn finds no translation.

        Addresses whose page is itself a captured table cannot be told this way: ask `is_table`.
        """
        try:
            return int(self.program.read_u64(va))
        except drgn.FaultError:
            return None

    def is_table(self, pa: int) -> bool:
        """Tell whether the page at `pa` is a captured table, where `translate` has no meaning."""
        return (pa & ~(self.granule - 1)) in self._table_pages

    def table_bytes(self, va: int) -> bytes:
        """Return what drgn reads from the page of `va`."""
        return bytes(self.program.read(va & ~(self.granule - 1), self.granule))

    def row(self, pa: int) -> np.ndarray:
        """Return the captured table that lies at `pa`."""
        return np.frombuffer(self._rows[pa], dtype="<u8")


def _core(note: str) -> bytes:
    name, text = b"VMCOREINFO\0\0", note.encode()
    body = struct.pack("<III", 11, len(text), 0) + name + text + b"\0" * (-len(text) % 4)
    start = 64 + 56 * 2
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + b"\0" * 9, 4, 183, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    notes = struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(body), len(body), 4)
    data = (start + len(body) + 0xFFF) & ~0xFFF
    load = struct.pack("<IIQQQQQQ", 1, 6, data, 0, 0, 0x1000, 0x1000, 0x1000)
    return (header + notes + load + body).ljust(data + 0x1000, b"\0")
