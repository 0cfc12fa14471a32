"""Time what works on whole captures, on synthetic trees: `python tests/bench/bench_paging.py`.

The trees map 1 GiB and 8 GiB in pages of 4 KiB (262,144 and 2,097,152 leaves), as a kernel does with
`rodata=full`, with table pages taken from the top of RAM downwards. The table bytes lie in an array of this
process; the plain read is of the same tables from there, in one call, in order of address.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from builders import EL0, NG, TABLES_AT, TreeBuilder, regime_4k
from captures import snapshots, with_words
from numpy.typing import NDArray
from sparse_memory import SparseMemory
from timing import Row, median_ms, show

from ptinspect.analysis.diff import diff
from ptinspect.analysis.find import find_pa
from ptinspect.analysis.map import runs
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.tables.walk import walk

ARENA = 32 << 20
LEAF = 1 << 12


class Arena(SparseMemory):
    """All tables in one array: the fastest lane there can be."""

    def __init__(self) -> None:
        super().__init__([])
        self._bytes = np.zeros(ARENA, dtype=np.uint8)

    def write(self, pa: int, data: bytes) -> None:
        """Store bytes."""
        at = pa - TABLES_AT
        self._bytes[at : at + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def read(self, pa: int, length: int) -> bytes:
        """Return bytes."""
        return self._bytes[pa - TABLES_AT :][:length].tobytes()

    def read_tables(
        self, addresses: NDArray[np.uint64], size: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Gather tables."""
        rows = (addresses - np.uint64(TABLES_AT)) // np.uint64(size)
        raw = self._bytes.view(np.uint64).reshape(-1, size // 8)[rows]
        return raw, np.ones(len(addresses), dtype=np.bool_)


def build(gib: int) -> TreeBuilder:
    """Map `gib` GiB in pages."""
    tree = TreeBuilder(regime_4k(48), memory=Arena(), tables_at=TABLES_AT + ARENA - 0x1000, top_down=True)
    tree.map(int(tree.regime.va_min), 0x8000_0000, size=gib << 30)
    return tree


def measure(gib: int, rounds: int) -> list[Row]:
    """Time everything for one size."""
    tree = build(gib)
    snapshot = tree.snapshot("a")
    every = np.nonzero(snapshot.tables.raw & np.uint64(1))
    marked, attributes = (with_words(snapshot, every[0], bits, every[1]) for bits in (NG, NG | EL0))
    assert len(runs(snapshot)) == 1 and diff(snapshot, marked).only_bit11
    addresses, captured = np.sort(snapshot.tables.pa), SnapshotMemory(snapshot)
    plain = median_ms(lambda: tree.memory.read_tables(addresses, LEAF), rounds)
    label, middle = f"{gib} GiB", gib << 29
    works: dict[str, Callable[[], object]] = {
        "capture": tree.capture,
        "find": lambda: find_pa(snapshot, 0x8000_0000 + middle),
        "walk": lambda: walk(captured, int(tree.regime.va_min) + middle, tree.root, tree.regime),
        "diff, equal": lambda: diff(snapshot, snapshot),
        "diff, bit 11 of all": lambda: diff(snapshot, marked),
    }
    rows = [
        Row(f"{label}: {name}", median_ms(work, rounds), "plain read", plain) for name, work in works.items()
    ]
    return rows + snapshots(snapshot, attributes, label, rounds)


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description="Time the array operations on synthetic trees.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 8], help="sizes of the guest (up to 8)")
    parser.add_argument("--rounds", type=int, default=9, help="runs of which the median is taken")
    args = parser.parse_args()
    show([row for gib in args.gib for row in measure(gib, args.rounds)], args.json)


if __name__ == "__main__":
    main()
