"""Who made the descriptors of snapshots what they are: many of them, found in one sweep."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.kept_writes import keep, later_of
from ptinspect.guest.recordings.timeline import recording_of, replay_of
from ptinspect.guest.recordings.writers import Write, Writers
from ptinspect.snapshot.fact_names import RECORDING, position
from ptinspect.tables.walk import walk

if TYPE_CHECKING:
    from ptinspect.analysis.diff import Change
    from ptinspect.arch.regime import Regime
    from ptinspect.link.replay import Replay
    from ptinspect.snapshot.model import Snapshot
    from ptinspect.tables.walk import Walk


def searched(guest: Guest) -> Replay:
    """Return the replay in which writes can be searched. Raises UserError where the guest is none."""
    if guest.session is None:
        raise UserError("only a recorded boot tells who wrote it", "timeline open DIR replays one")
    return replay_of(guest)


def position_in(guest: Guest, snapshot: Snapshot) -> int | None:
    """Return where in the replayed recording a snapshot was captured; None if it does not tell.

    Raises UserError if it was captured elsewhere.
    """
    replay, recording = searched(guest), recording_of(guest)
    theirs, at = snapshot.meta.extra.get(RECORDING, ""), position(snapshot.meta.extra)
    ours = "" if recording is None else recording.id
    if (theirs and ours and theirs != ours) or (at or 0) > (replay.last or at or 0):
        raise UserError(
            f"snapshot {snapshot.name!r} was not captured in this recording",
            "timeline open replays the one that it belongs to",
        )
    return at


def last_writes(
    guest: Guest, values: Mapping[PhysAddr, int], at: int | None, since: int, seconds: float
) -> dict[PhysAddr, Write]:
    """Return the write that made each descriptor what it is at a position, the present one if None.

    It is the last one after `since` that changed the value; if none did, the last of all. `values` are what
    the descriptors hold there. The guest stands where it stood afterwards. Raises UserError if one holds
    something else there, or outside a replay; TargetTimeout.
    """
    replay, deadline = searched(guest), time.monotonic() + seconds
    if not values:
        return {}
    here = replay.position
    try:
        if at is not None and at != here:
            replay.go_to(at, seconds)
        writers = Writers(guest, values, max(deadline - time.monotonic(), 0.1), since)
        for pa, value in values.items():
            if writers.now[pa] != value:
                raise UserError(
                    f"pa:{pa:#x} holds {writers.now[pa]:#x} at position {writers.here:,} of this recording, "
                    f"and {value:#x} in the snapshot: it was captured elsewhere",
                    "a snapshot that tells its position was captured in a recording: snaps --json",
                )
        found = {known.pa: known.writes[-1] for known in writers.histories(every=False) if known.writes}
    finally:
        if replay.position != here:
            replay.go_to(here)
    for pa, write in found.items():
        left = deadline - time.monotonic()
        if write.before == write.after and write.position - 1 > since:
            found[pa] = last_writes(guest, {pa: write.before}, write.position - 1, since, left).get(pa, write)
    return found


def that_unmapped(guest: Guest, now: Walk, regime: Regime, seconds: float) -> Write | None:
    """Return the last write of a descriptor on a path before which the address was translated.

    `now` is how it ends without that, at the present position. None if none is found: nothing has mapped
    it, or another table was put in place of one on its path. Raises UserError outside a replay;
    TargetTimeout.
    """
    replay, deadline = searched(guest), time.monotonic() + seconds
    here = replay.position
    for steps in (now.steps[-1:], now.steps[:-1]):  # in most cases it is the last one
        values = {step.descriptor_pa: step.raw for step in steps if step.raw is not None}
        found = last_writes(guest, values, None, 0, max(deadline - time.monotonic(), 0.1))
        for write in sorted(found.values(), key=lambda write: -write.position):
            replay.go_to(write.position - 1)
            try:
                if walk(guest.stopped.memory, now.va, now.root_pa, regime).outcome == "mapped":
                    return write
            finally:
                replay.go_to(here)
    return None


def of_descriptors(
    guest: Guest, values: Mapping[PhysAddr, int], snapshot: Snapshot, seconds: float
) -> dict[PhysAddr, Write]:
    """Return the write that made each descriptor what a snapshot holds, which keeps them.

    Raises UserError outside a replay, or if the snapshot is of another boot; TargetTimeout.
    """
    found = last_writes(guest, values, position_in(guest, snapshot), 0, seconds)
    keep(guest, snapshot, found.values())
    return found


def of_changes(
    guest: Guest, changes: Sequence[Change], a: Snapshot, b: Snapshot, seconds: float
) -> list[Write | None]:
    """Return for each change between two snapshots the last write that made it; None where nothing did.

    It lies between the positions of the two. Where the later one tells none, it is the last write before
    the present position. A table that was put in another's place may have been written before the earlier
    one. Raises UserError outside a replay, or if the snapshots are of another boot; TargetTimeout.
    """
    later, places = later_of(changes, a, b)
    last, first = position_in(guest, later), position_in(guest, a if later is b else b)
    deadline = time.monotonic() + seconds
    moved = [c.descriptor_pa != c.descriptor_pa_after for c in changes]
    found: dict[PhysAddr, Write] = {}
    for since, elsewhere in ((first or 0, False), (0, True)):
        values = {
            pa: value
            for (pa, value), apart in zip(places, moved, strict=True)
            if value is not None and apart == elsewhere
        }
        found |= last_writes(guest, values, last, since, max(deadline - time.monotonic(), 0.1))
    keep(guest, later, found.values())
    return [found.get(pa) for pa, _ in places]
