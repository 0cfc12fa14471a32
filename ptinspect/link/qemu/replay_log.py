"""Where a replay of QEMU's must not be told to stop: read from the log of the recording.

While a guest is recorded and a debugger stops it, its CPU looks idle for a moment, and QEMU starts the timer
that lets an idle guest's clock go on (accel/tcg/icount-common.c, icount_start_warp_timer). If that timer runs
out while the machine runs, before it stands still or when it goes on, its callback reads the clock, and the
log holds the value. In a replay that is told to stop there (replay_break) the machine stands still before the
callback is called (util/qemu-timer.c runs the timer of replay_break first). It reads nothing then, and all
that follows in the log waits for that for ever (measured with 7.2.22 and 11.1.3). A step of a debugger stops
the machine later: in time if the recorded timer ran out when it was first looked at, too early if later.
"""

from __future__ import annotations

import re
from pathlib import Path

from ptinspect.dataclass import dataclass

VERSIONS = range(0xE0200C, 0xE0200F)
"""What logs begin with whose events are numbered as here: those of QEMU 7.2 to 11.1 (replay/replay.c)."""
HEADER = 12
"""Bytes of a log before its first event, which QEMU writes when it ends (replay/replay.c, HEADER_SIZE)."""
MOST = 256 << 20
"""Bytes that are read of a log."""
INSTRUCTION = 0
SIZES = dict.fromkeys((1, 2, 6, *range(10, 22), *range(30, 39)), 0)
SIZES |= {24: 4, 25: 4, **dict.fromkeys((3, 4, 8, 22, 28, 29), 8)}
"""Bytes of data of an event (replay/replay-internal.h, ReplayEvents; scripts/replay-dump.py)."""
ARRAYS = {7: 1, 9: 5, 23: 0, 27: 4}
"""Events that end with an array, whose length is four bytes: the bytes before it."""
WARP = re.compile(rb"[^\x1e]*\x1e\x1d((?:\x24\x1d\x1d)+)\x1f(?!\x1d)", re.DOTALL)
"""The timer is started (checkpoint 30, clock 29), is looked at (checkpoint 36, clock) and runs out (clock)
before the CPU goes on (checkpoint 31), which finds it gone: it reads no clock."""
ONE_LOOK = 3
SEEN = 4096
"""Events of a position that are looked at."""


@dataclass(frozen=True)
class Places:
    """Positions of a recording: numbers of executed instructions."""

    shy: frozenset[int] = frozenset()
    """From here a replay goes on only if a step led here."""
    stuck: frozenset[int] = frozenset()
    """From here it never goes on, however it came here."""


def places(log: Path) -> Places:
    """Read a log, as far as it is known how; nothing where it cannot be read."""
    try:
        with log.open("rb") as file:
            data = file.read(MOST)
    except OSError:
        return Places()
    shy, stuck = set[int](), set[int]()
    for position, kinds in _positions(data):
        if (found := WARP.match(kinds)) is not None:
            (shy if len(found[1]) == ONE_LOOK else stuck).add(position)
    return Places(frozenset(shy), frozenset(stuck))


def _positions(data: bytes) -> list[tuple[int, bytes]]:
    """Return the positions at which that timer was started, and the kinds of all events there."""
    found: list[tuple[int, bytes]] = []
    at, position, kinds = HEADER, 0, bytearray()
    size = len(data) if int.from_bytes(data[:4], "big") in VERSIONS else 0
    while at < size:
        kind = data[at]
        at += 1
        if kind == INSTRUCTION:
            if 0x1E in kinds:
                found.append((position, bytes(kinds[:SEEN])))
            kinds.clear()
            position += int.from_bytes(data[at : at + 4], "big")
            at += 4
            continue
        kinds.append(kind)
        if kind in ARRAYS:
            at += ARRAYS[kind]
            at += 4 + int.from_bytes(data[at : at + 4], "big")
        elif kind in SIZES:
            at += SIZES[kind]
        else:
            break
    return found
