"""The way back in a recorded boot, to what would have stopped the guest on the way forwards."""

from __future__ import annotations

import time

from ptinspect.errors import TargetTimeout, UserError
from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints
from ptinspect.guest.breakpoints.table_watches import TableWatches, table_watches
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.timeline import replay_of
from ptinspect.guest.recordings.writers import Writers
from ptinspect.link.session import StopInfo


def back(guest: Guest, seconds: float) -> StopInfo:
    """Run backwards to the last breakpoint, watchpoint or write to a watched table, or to the start.

    Raises UserError at the start, and for a temporary breakpoint that GDB deletes where it hits it first on
    the way to the last; TargetTimeout; the guest stands where it stood then.
    """
    for one in guest.stopped.breakpoints:
        if one.temporary and one.enabled:
            hint = f"delete {one.id}, and break at the same place"
            raise UserError(f"breakpoint {one.id} is temporary: it stops forwards only", hint)
    replay, deadline = replay_of(guest), time.monotonic() + seconds
    here = replay.position
    with symbol_breakpoints(guest).backwards():
        stop = replay.back(seconds)
    since, watches = replay.position, table_watches(guest)
    if not watches.active:
        return stop
    try:
        found = _last_write(guest, watches, since, here, deadline)
    except (TargetTimeout, KeyboardInterrupt):
        replay.go_to(here)
        raise
    if found is None:
        replay.go_to(since)
        found = replay.stands(stop.reason, stop.breakpoint)
    return found


def _last_write(
    guest: Guest, watches: TableWatches, since: int, here: int, deadline: float
) -> StopInfo | None:
    """Go back to the last write after one position and before another; None, and anywhere, without one."""
    replay = replay_of(guest)
    while since < here - 1:
        replay.go_to(here - 1, max(deadline - time.monotonic(), 0.1))
        watches.renew(arm=False)
        left = max(deadline - time.monotonic(), 0.1)
        histories = Writers(guest, watches.followed, left, since).histories(every=False)
        last = max((h.writes[-1] for h in histories if h.writes), key=lambda w: w.position, default=None)
        if last is None or last.position <= since:
            return None
        here = last.position
        replay.go_to(here - 1)
        watches.follow()  # from a root that nobody may have used yet
        seen = watches.met(replay.go_to(here), last.va)
        if seen:
            return replay.stands("access-watchpoint-trigger", seen[0].watch)
    return None
