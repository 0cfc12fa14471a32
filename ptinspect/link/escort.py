"""Stops that nobody sees: what has to be done on the way while the guest seems to run on.

Somebody who follows the kernel, or what it writes (a steward), sets breakpoints of his own, and may want to
look at the guest at intervals. When the guest stops for one of these, it still runs for everybody else:
whoever waits goes on waiting, and the time counts. The stewards look, and the guest runs on, or the stop is
everybody's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from ptinspect.errors import PtinspectError
from ptinspect.link.gdb.mi import SECONDS
from ptinspect.link.state import RunState, RunTracker, StopInfo

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.3
"""How long a request to stop is given before it is repeated, seconds."""
WAIT_SECONDS = 3600.0


class Steward(Protocol):
    """Decide about stops on the way. It is called with the guest stopped, from a thread of its own."""

    @property
    def pause(self) -> float | None:
        """Seconds after which the guest is to be looked at although nothing stopped it; None: never."""

    def depart(self) -> None:
        """Set what is to stop the guest; it is about to run. Raises what keeps it from running."""

    def passes(self, stop: StopInfo) -> bool:
        """Tell whether the guest is to run on from a stop at one of the steward's breakpoints.

        What is raised ends the run: whoever waits gets it, a bug too.
        """

    def rest(self) -> None:
        """Take away what would stop the guest for nobody: it runs without an escort now."""


class Escort:
    """Go with a guest that runs, for the stewards."""

    def __init__(
        self,
        tracker: RunTracker,
        resume: Callable[[], object],
        ask_to_stop: Callable[[], object],
        command: Callable[[str, float], str] = lambda line, seconds: "",
    ) -> None:
        """`resume` and `ask_to_stop` send GDB the commands for that, and nothing else."""
        self._tracker, self._resume, self._ask = tracker, resume, ask_to_stop
        self.command = command
        """Run a command of GDB's at a stop on the way, within some seconds, and return what it prints."""
        self.stewards: list[Steward] = []
        """Who decides; nobody: every stop is everybody's."""
        self.everywhere = True
        """It goes along whenever the guest runs; else only while somebody waits, who serves it himself."""
        self._inside: int | None = None
        self._run = 0

    @property
    def inside(self) -> bool:
        """Whether this thread looks at a stop on the way."""
        return self._inside == threading.get_ident()

    def start(self) -> None:
        """Let the guest run, and go with it. Raises what a steward raises."""
        self.depart()
        self._resume()
        self.follow()

    def depart(self) -> None:
        """Prepare a run. Raises what a steward raises."""
        for steward in self.stewards:
            steward.depart()
        self._tracker.begin(escorted=self.needed)

    def passes(self, stop: StopInfo) -> bool:
        """Have all look at a stop that was made for another look; tell whether the guest runs on."""
        return all(steward.passes(stop) for steward in self.stewards)

    @property
    def pause(self) -> float | None:
        """Seconds until one of the stewards wants to look; None: never."""
        return min((one.pause for one in self.stewards if one.pause is not None), default=None)

    @property
    def needed(self) -> bool:
        """Whether there may be a stop on the way."""
        return bool(self.stewards) and bool(self._tracker.inner or self.pause is not None)

    def rest(self) -> None:
        """Have the guest run without an escort for once."""
        self._tracker.alone()
        for steward in self.stewards:
            steward.rest()

    def follow(self) -> None:
        """Go with the guest, which runs now, in a thread of its own."""
        self._run += 1
        if self.needed and self.everywhere:
            threading.Thread(target=self._follow, args=(self._run,), name="escort", daemon=True).start()

    @contextlib.contextmanager
    def along(self, goes: bool) -> Iterator[None]:
        """Go along with what a command of somebody else's makes the guest do, if it `goes` on by that."""
        if goes:
            self.depart()
        else:
            self.rest()
        try:
            yield
        finally:
            if goes and self._tracker.state is RunState.RUNNING:
                self.follow()

    def _follow(self, run: int) -> None:
        while run == self._run and self._tracker.state is RunState.RUNNING:
            pause = self.pause
            stop = self._tracker.await_visit(WAIT_SECONDS if pause is None else pause)
            if stop is None and pause is not None:
                stop = self._glimpse()
            if stop is not None and run == self._run:
                self.serve(stop)

    def _glimpse(self) -> StopInfo | None:
        """Stop the guest for a look; None if it has stopped for another reason."""
        tracker, wait = self._tracker, FIRST_PAUSE
        tracker.glimpse = True  # until that stop comes: another one may come first
        while tracker.state is RunState.RUNNING:
            try:
                self._ask()
            except PtinspectError:  # it is lost, and whoever waits is told so
                return None
            found = tracker.await_visit(wait)
            if found is not None:
                return found
            wait = min(wait * 2, LONGEST_PAUSE)
        return None

    def serve(self, stop: StopInfo) -> None:
        """Have the stewards look at a stop on the way, and let the guest run on, or the stop be known."""
        tracker, on = self._tracker, False
        trouble: Exception | None = None
        self._inside = threading.get_ident()
        try:
            on = bool(self.stewards) and self.passes(stop)
        except Exception as error:  # noqa: BLE001 (a bug is reported where somebody waits)
            trouble = error
        finally:  # whatever happens, nobody waits for ever
            passed, on = on, on and tracker.go_on()
            stands = self._pc() if passed and not on else None
            self._inside = None
            if not on:
                tracker.end_visit(trouble, passed=passed, pc=stands)
        if not on:
            return
        try:
            self._resume()
        except PtinspectError as error:
            tracker.end_visit(error, stop)
            return
        if tracker.asked:
            with contextlib.suppress(PtinspectError):  # it is lost, and whoever waits is told so
                self._ask()

    def _pc(self) -> int | None:
        """Return where the CPU stands now: a steward may have had it run. None if GDB does not tell."""
        try:
            return int(self.command("output/x $pc", SECONDS), 16)
        except (PtinspectError, ValueError):
            return None
