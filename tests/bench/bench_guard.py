"""What `stack guard` costs: boots to the shell, with and without it in turn, and the ratio of each pair.

    python tests/bench/bench_guard.py [--guest 5.10-cloud] [--options "--smp 2"] [--pairs 5] [--json]

Both boots of a pair begin at reset, and end when the console says that the shell is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from driven import Live, launched

READY = b"ptinspect guest ready"
SECONDS = 90
LOOK = 0.01
"""Seconds between two looks at the console."""


def shell_at(console: Path, found: list[float], begun: float) -> None:
    """Note after how many seconds the shell is there."""
    while time.perf_counter() - begun < SECONDS:
        if READY in console.read_bytes():
            found.append(time.perf_counter() - begun)
            return
        time.sleep(LOOK)


def boot(guest: str, options: str, guarded: bool) -> float:
    """Return the seconds of one boot. Raises RuntimeError if the shell does not come."""
    with launched(guest, options) as live:
        assert live.ctx.guest.qemu is not None
        found: list[float] = []
        begun = time.perf_counter()
        watch = threading.Thread(target=shell_at, args=(live.ctx.guest.qemu.console, found, begun))
        watch.start()
        try:
            run(live, found, guarded)
        finally:
            watch.join(SECONDS)
        if not found:
            raise RuntimeError(f"{guest} did not get to the shell in {SECONDS} s")
        return found[0]


def run(live: Live, found: list[float], guarded: bool) -> None:
    """Let the guest run until the shell is there; the guard in stretches that end by themselves."""
    begun = time.perf_counter()
    if not guarded:
        live("continue --background")
    while not found and time.perf_counter() - begun < SECONDS:
        if guarded:
            assert live("stack guard --timeout 5")["quiet"]
        else:
            time.sleep(LOOK)
    if not guarded:
        live("interrupt")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guest", default="5.10-cloud")
    parser.add_argument("--options", default="", help="for launch")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = []
    for number in range(options.pairs):
        order = (False, True) if number % 2 else (True, False)
        times = {guarded: boot(options.guest, options.options, guarded) for guarded in order}
        pairs.append((times[False], times[True]))
    ratios = [with_ / without for without, with_ in pairs]
    result: dict[str, Any] = {
        "guest": options.guest,
        "options": options.options,
        "without_s": [round(pair[0], 2) for pair in pairs],
        "with_s": [round(pair[1], 2) for pair in pairs],
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 2),
    }
    lines = (f"{name:<10} {value}\n" for name, value in result.items())
    sys.stdout.writelines([json.dumps(result) + "\n"] if options.json else lines)


if __name__ == "__main__":
    main()
