"""Times on a real guest, as medians, with the ratio to a plain read of the same bytes in the same run.

    python tests/bench/bench_live.py [--guest 5.10-cloud] [--memory 1024] [--rounds 7] [--json]

The plain read asks the same lane for the same tables, all addresses known, and does nothing with them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from session import Live, launched

from ptinspect.paging.capture import capture
from ptinspect.paging.walk import walk


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of `work` in milliseconds; the first run is not counted."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measure(guest: str, memory: int, rounds: int) -> dict[str, Any]:
    """Boot a guest to the end of the rewrite and measure there."""
    with launched(guest, f"--memory {memory}") as live:
        start = time.perf_counter()
        assert live("kpti run")["reached"]
        run = time.perf_counter() - start
        snapshot = live.ctx.snapshots["after"]
        facts = {
            "guest": guest,
            "memory_mib": memory,
            "tables": len(snapshot.tables),
            "kpti_run_s": round(run, 2),
        }
        lanes = [one.name for one in live.ctx.stopped.memory.facts(measure=False) if not one.why_not]
        return facts | {"lanes": {name: lane(live, name, rounds) for name in lanes}}


def lane(live: Live, name: str, rounds: int) -> dict[str, Any]:
    """Measure one lane at the stop at which the guest stands."""
    live.ctx.stopped.memory.choose(name)
    snapshot = live.ctx.snapshots["after"]
    source, tables, regime = live.ctx.stopped.memory, snapshot.tables, snapshot.regime
    addresses = np.unique(tables.pa)
    va = int(tables.va[-1])
    plain = median_ms(lambda: source.read_tables(addresses, regime.granule), rounds)
    whole = median_ms(lambda: capture(source, snapshot.root.pa, regime), rounds)
    snap = median_ms(lambda: live("snap bench --replace"), rounds)
    one = median_ms(lambda: walk(source, va, snapshot.root.pa, regime), rounds)
    return {
        "bytes": int(addresses.size) * regime.granule,
        "plain_read_ms": round(plain, 2),
        "capture_ms": round(whole, 2),
        "capture_ratio": round(whole / plain, 2),
        "snap_ms": round(snap, 2),
        "walk_ms": round(one, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guest", default="5.10-cloud")
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.guest, options.memory, options.rounds)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    lanes = found.pop("lanes")
    sys.stdout.writelines(f"{name:<16} {value}\n" for name, value in found.items())
    for number, (name, values) in enumerate(lanes.items()):
        if not number:
            sys.stdout.write(f"\n{'lane':<10}" + "".join(f"{head:>15}" for head in values) + "\n")
        sys.stdout.write(f"{name:<10}" + "".join(f"{value:>15}" for value in values.values()) + "\n")


if __name__ == "__main__":
    main()
