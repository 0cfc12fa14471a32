"""Run control: let the guest go on, run to an address, for a time, or for a number of instructions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptinspect.errors import GuestError, TargetTimeout
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames
from ptinspect.guest.rewrite import Runner

if TYPE_CHECKING:
    from ptinspect.link.session import StopInfo

STEPS_AT_ONCE = 256
"""Steps that GDB gets at once: it takes no interrupt in the middle of them."""


@dataclass(frozen=True)
class Arrival:
    """Where the guest stopped on its way to some addresses."""

    stop: StopInfo
    """The stop."""
    addresses: Sequence[int]
    """Where it was to stop."""

    @property
    def reached(self) -> bool:
        """Whether it stopped at one of them, and not for another reason."""
        return self.stop.pc in self.addresses


def go_on(guest: Guest, seconds: float | None = None) -> StopInfo | None:
    """Let the guest run, and return where it stops; None without `seconds`, for then nobody waits.

    One that runs already is only waited for. Raises TargetTimeout: it runs on.
    """
    session = guest.target
    if guest.state != "running":
        session.resume()
    return None if seconds is None else session.wait_stop(seconds)


def run_for(guest: Guest, seconds: float) -> StopInfo | None:
    """Let the guest run for a while; return its stop, None if nothing but the time stopped it.

    It is stopped after Ctrl-C too.
    """
    session = guest.stopped
    session.resume()
    try:
        return session.wait_stop(seconds)
    except TargetTimeout:
        stop = session.interrupt(5.0)
        return None if stop.signal == "SIGINT" and stop.breakpoint is None else stop
    except KeyboardInterrupt:
        session.interrupt(5.0)
        raise


def step(guest: Guest, count: int, cpu: int, seconds: float) -> StopInfo:
    """Step instructions of one CPU. Raises TargetTimeout."""
    session = guest.stopped
    deadline = time.monotonic() + seconds
    left = count
    while True:
        stop = session.step_instructions(min(left, STEPS_AT_ONCE), cpu)
        left -= STEPS_AT_ONCE
        if left <= 0 or stop.reason != "end-stepping-range":
            return stop
        if time.monotonic() >= deadline:
            done = f"{count - left} of {count} steps in {seconds:g} s"
            raise TargetTimeout(f"{done}; {guest.place(stop.pc)}", "a longer --timeout")
        guest.progress("stepping", count - left, count)


def until(guest: Guest, places: Sequence[Address | int], seconds: float) -> Arrival:
    """Run until one of the places is reached; before that, where one is a symbol of a kernel that nobody has
    found yet, until it is known where that runs.

    Raises UserError for a name that is not known, TargetTimeout; the guest is stopped then.
    """
    end = time.monotonic() + seconds
    try:
        addresses = _values(guest, places)
    except GuestError:
        if guest.kernel is None or guest.kernel.linked:
            raise
        Runner(guest, seconds).place_kernel()
        addresses = _values(guest, places)
        seconds = max(end - time.monotonic(), 1.0)
    return Arrival(guest.stopped.run_until(addresses, seconds), addresses)


def _values(guest: Guest, places: Sequence[Address | int]) -> list[int]:
    names = GuestNames(guest)
    return [place if isinstance(place, int) else place.value(names) for place in places]
