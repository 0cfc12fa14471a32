"""What `stack guard` costs: boots to the shell, with and without it in turn, and the ratio of each pair.

    python tests/bench/bench_guard.py [--guest 5.10-cloud] [--options "--smp 2"] [--pairs 5] [--json]

Both boots of a pair begin at reset, and end when the console says that the shell is there. The ratios are
medians over the pairs, and `least` that of the shortest boots. The floor is the ratio without the time that
the guest stood still, `processor` that of QEMU's processor time, which other work on the machine does not
lengthen as much: what the probes and watchpoints cost QEMU itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from driven import Live, launched

from ptinspect.link.qemu.machine import Qemu

READY = b"ptinspect guest ready"
SECONDS = 90
LOOK = 0.01
"""Seconds between two looks at the console."""


class Standing:
    """How long a guest stood still until now; it stands at first."""

    def __init__(self) -> None:
        self.whole, self.since = 0.0, time.perf_counter()

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Take an event of the session's."""
        now = time.perf_counter()
        self.whole = self.until(now)
        self.since = float("inf") if name == "running" else now

    def until(self, now: float) -> float:
        """Return the seconds that it stood until now."""
        return self.whole + max(now - self.since, 0.0)


def processor(pid: int) -> float:
    """Return the seconds that a process has worked (proc(5), utime and stime)."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def shell_at(qemu: Qemu, found: list[float], begun: float, standing: Standing) -> None:
    """Note after how many seconds the shell is there, how many of them the guest ran, and QEMU worked."""
    while time.perf_counter() - begun < SECONDS:
        if READY in qemu.console.read_bytes():
            now = time.perf_counter()
            found += [now - begun, now - begun - standing.until(now), processor(qemu.pid)]
            return
        time.sleep(LOOK)


def boot(guest: str, options: str, guarded: bool) -> list[float]:
    """Return the seconds of one boot, of its running, and of QEMU's work.

    Raises RuntimeError if the shell does not come.
    """
    with launched(guest, options) as live:
        assert live.ctx.guest.qemu is not None
        found: list[float] = []
        begun, standing = time.perf_counter(), Standing()
        live.ctx.guest.target.on_event(standing.event)
        watch = threading.Thread(target=shell_at, args=(live.ctx.guest.qemu, found, begun, standing))
        watch.start()
        try:
            run(live, found, guarded)
        finally:
            watch.join(SECONDS)
        if not found:
            raise RuntimeError(f"{guest} did not get to the shell in {SECONDS} s")
        return found


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
    ratios, floors, work = ([with_[i] / without[i] for without, with_ in pairs] for i in range(3))
    result: dict[str, Any] = {
        "guest": options.guest,
        "options": options.options,
        "without_s": [round(pair[0][0], 2) for pair in pairs],
        "with_s": [round(pair[1][0], 2) for pair in pairs],
        "stood_s": [round(pair[1][0] - pair[1][1], 2) for pair in pairs],
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(pair[1][0] for pair in pairs) / min(pair[0][0] for pair in pairs), 2),
        "floor": round(statistics.median(floors), 2),
        "processor": round(statistics.median(work), 2),
    }
    lines = (f"{name:<10} {value}\n" for name, value in result.items())
    sys.stdout.writelines([json.dumps(result) + "\n"] if options.json else lines)


if __name__ == "__main__":
    main()
