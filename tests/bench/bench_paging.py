"""Time what works on whole captures, on synthetic trees: `python tests/bench/bench_paging.py`.

The trees map 1 GiB and 8 GiB in pages of 4 KiB (262,144 and 2,097,152 leaves), as a kernel does with
`rodata=full`, with table pages taken from the top of RAM downwards. The table bytes lie in an array of this
process; `read` is the plain read of the same tables from there, in one call, in order of address,
and ratios are to it. Medians; `--json` prints one object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from builders import EL0, NG, TABLES_AT, TreeBuilder, copy_tables, regime_4k
from numpy.typing import NDArray
from sparse_memory import SparseMemory

from ptinspect.analysis.diff import diff
from ptinspect.analysis.find import find_pa
from ptinspect.analysis.map import runs
from ptinspect.analysis.summary import summarize
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.store import load, save
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


def changed(snapshot: Snapshot, bits: int) -> Snapshot:
    """Flip bits of every valid descriptor."""
    other = copy_tables(snapshot, "b")
    other.tables.raw[(other.tables.raw & np.uint64(1)) != 0] ^= np.uint64(bits)
    return other


def few(snapshot: Snapshot) -> Snapshot:
    """Change a leaf and lose a table."""
    other = copy_tables(snapshot, "b")
    other.tables.raw[-5, 3] ^= np.uint64(EL0)
    other.tables.raw[int(np.nonzero(other.tables.level == 2)[0][0]), 3] = 0
    return other


def median(repeat: int, work: Callable[[], object]) -> float:
    """Return the median time in milliseconds; the first run does not count."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def measure(gib: int, repeat: int, directory: Path) -> dict[str, float]:
    """Time everything for one size."""
    tree = build(gib)
    snapshot = tree.snapshot("a")
    addresses = np.sort(snapshot.tables.pa)
    va = int(tree.regime.va_min) + (gib << 29)
    marked, attributes, some = changed(snapshot, NG), changed(snapshot, NG | EL0), few(snapshot)
    path = directory / f"{gib}.npz"
    captured = SnapshotMemory(snapshot)
    jobs: dict[str, Callable[[], object]] = {
        "read": lambda: tree.memory.read_tables(addresses, LEAF),
        "capture": tree.capture,
        "summary": lambda: summarize(snapshot),
        "map": lambda: runs(snapshot),
        "find": lambda: find_pa(snapshot, 0x8000_0000 + (gib << 29)),
        "walk": lambda: walk(captured, va, tree.root, tree.regime),
        "diff, equal": lambda: diff(snapshot, snapshot),
        "diff, few changes": lambda: diff(snapshot, some),
        "diff, bit 11 of all": lambda: diff(snapshot, marked),
        "diff, attributes of all": lambda: diff(snapshot, attributes),
        "save": lambda: save(snapshot, path),
        "load": lambda: load(path),
    }
    result = {name: median(repeat, work) for name, work in jobs.items()}
    assert len(runs(snapshot)) == 1 and diff(snapshot, marked).only_bit11
    return result | {
        "tables": len(snapshot.tables),
        "leaves": gib << 18,
        "table bytes": snapshot.tables.raw.nbytes,
        "file bytes": path.stat().st_size,
    }


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description="Time the array operations on synthetic trees.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 8], help="sizes of the guest (up to 8)")
    parser.add_argument("--repeat", type=int, default=9, help="runs of which the median is taken")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = {gib: measure(gib, args.repeat, Path(directory)) for gib in args.gib}
    write = sys.stdout.write
    if args.json:
        machine = [platform.machine(), platform.python_version(), np.__version__]
        write(json.dumps({"machine": machine, "milliseconds": found}) + "\n")
        return
    for gib, times in found.items():
        size = f"{times.pop('tables')} tables, {times.pop('leaves')} leaves"
        write(f"{gib} GiB in pages: {size}, file {times.pop('file bytes')} bytes\n")
        times.pop("table bytes")
        for name, milliseconds in times.items():
            write(f"  {name:24} {milliseconds:9.3f} ms  {milliseconds / times['read']:8.1f} x read\n")


if __name__ == "__main__":
    main()
