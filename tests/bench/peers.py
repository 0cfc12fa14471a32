"""The same job by other tools, where the user has them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from timing import Row, median_ms

from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables.walk import walk

DRGN_WALKS = 2000


def with_drgn(snapshot: Snapshot, swapper_va: int) -> list[Row]:
    """Time walks by drgn's own walker, over the same captured tables."""
    try:
        from drgn_oracle import DrgnOracle
    except ImportError:
        return []
    memory = SnapshotMemory(snapshot)
    leaves = [int(va) for va in snapshot.tables.va[snapshot.tables.level == 3]][:64]
    places = [va + 0x1000 * n for n in range(512) for va in leaves][:DRGN_WALKS]
    with tempfile.TemporaryDirectory() as folder:
        oracle = DrgnOracle(snapshot, swapper_va, Path(folder))
        theirs = median_ms(lambda: [oracle.translate(va) for va in places], 3) / len(places)
    start = time.perf_counter()
    for va in places[:200]:
        walk(memory, va, snapshot.root.pa, snapshot.regime)
    ours = 1000 * (time.perf_counter() - start) / 200
    return [Row("walk of one VA in a capture, every step shown", ours, "drgn, the address only", theirs)]
