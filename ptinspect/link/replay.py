"""Positions in a recorded run of QEMU, and the ways between them: forwards, and back over saved states.

A position is a number of executed instructions. QEMU's own rules (replay/replay-debugging.c, measured with
7.2 and 11.1): a stop that is asked for at the present position is passed over, and ends QEMU when another
is asked for; two states loaded with no run between them end it too; and who goes on at the end of the log is
stuck for ever. So nothing is run there, and a state that is loaded lies before the position that is wanted.
Where the guest stood while it was recorded a replay may be stuck too (link/qemu/replay_log.py): there it is
stepped to, and what cannot be left even so is passed by from an earlier state.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

from ptinspect.dataclass import replace
from ptinspect.errors import ReplayStands, TargetError, TargetTimeout, UserError
from ptinspect.link.qemu.replay_log import Places, places
from ptinspect.link.replay_driver import Driver
from ptinspect.link.replay_scan import Limit, Scan, Seen
from ptinspect.link.state import StopInfo

Mode = Literal["record", "replay"]
_POSITION = re.compile(r"(Record|Replay)ing execution '(.*)': instruction count = (\d+)", re.DOTALL)
_STATE = re.compile(r"^\S+\s+(\S+)\s.*\s(\d+)\s*$", re.MULTILINE)
STATES = 16
"""Most states that are saved along the way; each is as large as the memory that the guest has used."""
SPACING = 60_000_000
"""Instructions between states, at least."""
NEAR = 4_000_000
"""Instructions that are replayed in no time."""
STRETCH = 100_000
"""Instructions of the first stretch that is searched backwards."""
STATE_SECONDS = 120.0
"""How long a state may take to be saved or loaded."""
BACK_SECONDS = 300.0
LOOK_SECONDS = 40.0
"""After so long a run to a position is looked at: it has to have moved from one look to the next."""
STOP_SECONDS = 60.0
"""How long a guest may take at least to be interrupted: QEMU ends a stretch without events before."""
TAG = "pt-"
END, START = "the end of the recording", "the start of the recording"


def mode_of(answer: str) -> Mode | None:
    """Return whether QEMU records or replays, from its `info replay`; None for neither."""
    found = _POSITION.match(answer)
    return None if found is None else "record" if found[1] == "Record" else "replay"


def position_of(answer: str) -> int:
    """Return the position in `info replay`. Raises TargetError."""
    found = _POSITION.match(answer)
    if found is None:
        raise TargetError("QEMU's 'info replay' cannot be read", answer.strip()[:200])
    return int(found[3])


class Replay:
    """The recording or replay that a session is about."""

    def __init__(self, session: Driver, mode: Mode) -> None:
        self._session, self.mode = session, mode
        self.last: int | None = None
        """The last position; None while it is not known."""
        self.progress: Callable[[str, int, int], None] = lambda text, done, total: None
        self.on_leave: Callable[[int], None] = lambda position: None
        """Called with the position before a session that records is left."""
        self.without_breakpoints, self.stands = session.without_breakpoints, session.stands
        self._fresh = True
        """Nothing has run since a state was loaded."""
        self._states: dict[int, str] | None = None
        self._armed: int | None = None
        """Where QEMU is to stop, if it has been asked for that and not got there."""
        self._found_stuck: set[int] = set()
        """Positions that it has shown it cannot leave."""

    @property
    def position(self) -> int:
        """How many instructions have been executed."""
        found = position_of(self._session.ask("info replay"))
        if found == self._armed:
            self._armed = None
        return found

    @property
    def states(self) -> dict[int, str]:
        """The saved states: name by position."""
        if self._states is None:
            text = self._session.ask("info snapshots")
            self._states = {int(at): name for name, at in _STATE.findall(text)}
        return self._states

    @cached_property
    def _places(self) -> Places:
        """Where the log says that it must not be told to stop; nothing of another machine's log."""
        found = None if self.mode == "record" else _POSITION.match(self._session.ask("info replay"))
        return Places() if found is None else places(Path(found[2]))

    def _is_stuck(self, at: int) -> bool:
        return at in self._found_stuck or at in self._places.stuck

    def moved(self, before: int | None) -> int:
        """Return the position of a replay that was running. Raises ReplayStands where it does not go on.

        It was there before, or cannot go on from there: to pass by would be to run what was run already.
        """
        here = self.position
        if here == before or self._is_stuck(here):
            self._found_stuck.add(here)
            raise ReplayStands(f"the replay does not go on from position {here:,}")
        return here

    def limit(self, target: int) -> Limit:
        """Return the last position at or before another at which it can be told to stop, and goes on."""
        at = target
        while at in self._places.shy or self._is_stuck(at):
            at -= 1
            if self._is_stuck(at):  # not to be stepped from
                self._found_stuck.add(target)
                return Limit(target, target)
        return Limit(at, target)

    def _free(self, at: int) -> int:
        """Return the first position, from another on, at which it can be told to stop, and goes on."""
        while at in self._places.shy or self._is_stuck(at):
            at += 1
        return at

    # -- before and after a run that somebody asks for --------------------------------------------

    def forwards(self) -> None:
        """Prepare to run forwards: the guest stops at the last position. Raises UserError there."""
        if self.mode == "replay" and self.position != self.last:
            self._leave(time.monotonic() + BACK_SECONDS, self.last)
        left = self.arm()
        if left is not None and left <= 0:
            raise UserError(f"this is {END}", "rc, rsi and timeline goto lead back")

    def _leave(self, deadline: float, last: int | None) -> None:
        """Have the next instruction executed where QEMU is stuck: from an earlier state, with no stop."""
        while not self._fresh and self._is_stuck(here := self.position) and here != last:
            with self.without_breakpoints():
                self.run_to(here + 1, deadline)

    def stepped_to_end(self, count: int) -> StopInfo | None:
        """Step to the end if it is no more than `count` instructions away; else return None.

        QEMU must stop there by itself: GDB's step would let it find that nothing follows. Raises UserError
        at the end.
        """
        end = None if self.mode == "record" else self.last
        here = 0 if self.mode == "record" else self.position
        if here != end and self._is_stuck(here):
            return self.go_to(here + count if end is None else min(here + count, end))
        self.forwards()
        return None if end is None or here + count < end else self.go_to(end)

    def arm(self) -> int | None:
        """Have QEMU stop at the last position; return how far it is, None if there is none."""
        self._fresh = False
        if self.mode == "record" or self.last is None:
            return None
        left = self.last - self.position
        if left > 0:
            self.break_at(self.last)
        return left

    def break_at(self, target: int) -> None:
        """Have QEMU stop at a later position; a stop that was asked for before is forgotten."""
        if self._armed == target:
            return
        if self._armed is not None:  # QEMU ends where one is replaced that has been passed
            self._session.ask("replay_delete_break")
        self._session.ask(f"replay_break {target}")
        self._armed = target

    def leave(self) -> None:
        """Note where a recording ends that is left now."""
        if self.mode == "record":
            self.on_leave(self.position)

    @contextmanager
    def disturbed(self, command: str) -> Iterator[None]:
        """Have a monitor command run that may save or load states. Raises UserError for what ends QEMU."""
        word, *names = command.split()
        if self.mode == "replay":
            if word == "delvm" or (word == "savevm" and {*names}.intersection(self.states.values())):
                raise UserError(
                    f"QEMU may end by {word} in a replay", "states stay; savevm with a new name adds one"
                )
            if word == "loadvm" and self._fresh:
                raise UserError("QEMU ends by a second loadvm with no run between", "timeline goto POSITION")
        try:
            yield
        finally:
            self._fresh, self._states, self._armed = True, None, -1

    def named(self, stop: StopInfo) -> StopInfo:
        """Return a stop with the reason that GDB does not know."""
        if self.mode == "record" or stop.reason != "signal-received":
            return stop
        here = self.position
        if stop.signal not in ("SIGINT", "SIGTRAP", "SIGQUIT"):
            return stop
        if here == self.last or stop.signal == "SIGQUIT":
            return replace(stop, reason=END, signal="")
        if here == 0:
            return replace(stop, reason=START, signal="")
        return stop

    # -- moving ------------------------------------------------------------------------------------

    def go_to(self, target: int, seconds: float = BACK_SECONDS) -> StopInfo:
        """Go to a position; breakpoints do not stop the guest. Raises UserError outside the recording."""
        if target < 0 or (self.last is not None and target > self.last):
            raise UserError(f"there is no position {target}", f"positions are 0 to {self.last}")
        deadline = time.monotonic() + seconds
        with self.without_breakpoints():
            here = self.position
            state = self.state_before(target)
            if target < here or state > here + NEAR:
                self.load(state)
            try:
                self.run_to(target, deadline, save=True)
            except ReplayStands:  # once more, from an earlier state: it may pass
                self.run_to(target, deadline, save=True)
        return self.stands(END if target == self.last else START if target == 0 else "position")

    def state_before(self, target: int) -> int:
        """Return the position of the last state before another position; 0 for the first."""
        return max((at for at in self.states if at < target), default=0)

    def run_to(self, target: int, deadline: float, *, save: bool = False) -> None:
        """Run forwards to a position, and `save` states on the way. Raises TargetTimeout, TargetError."""
        if not self._fresh and self._is_stuck(here := self.position) and here < target:
            self.load(self.state_before(here))
        while (here := self.position) < target:
            spacing = self.spacing
            stop = min(target, self._free((here // spacing + 1) * spacing)) if save else target
            self._reach(here, stop, deadline)
            if save and stop % spacing == 0 and stop - self.state_before(stop + 1) >= spacing // 2:
                self.save(stop)
            self.progress("replaying", stop, self.last or target)

    def _reach(self, here: int, stop: int, deadline: float) -> None:
        """Run to a later position, the last instructions step by step where it must be."""
        first = stop if stop == self.last else self.limit(stop).stop
        if here < first:
            self.break_at(first)
            self._run(deadline)
            here = self.position
        while first <= here < stop:
            self._fresh = False
            self._session.step_once()
            here += 1
        if here != stop or (here := self.position) != stop:
            raise TargetError(f"QEMU stopped at position {here} on the way to {stop}")

    def run_once(self, limit: int, seconds: float) -> StopInfo:
        """Run forwards to a later position, or a little further, or until a breakpoint stops the guest."""
        deadline = time.monotonic() + seconds
        self._leave(deadline, limit)
        limit = limit if limit == self.last else self._free(limit)
        if self.position >= limit:
            return self.stands("position")
        self.break_at(limit)
        return self._run(deadline)

    def scan(
        self, watched: Sequence[int], cells: Sequence[int], limits: Sequence[int], deadline: float
    ) -> Seen:
        """Run to later positions; note stores to what is watched, and what the cells hold at each of them.

        It may end at the most stores that are noted at a time. A store where QEMU is stuck is not noted, and
        such limits are left out, but for the last. Raises TargetTimeout, TargetError.
        """
        last = limits[-1]
        self._leave(deadline, last)
        here = self.position
        if self._armed is not None:
            self._session.ask("replay_delete_break")
        self._fresh, self._armed = False, -1
        ways = [self.limit(at) for at in limits if at == last or (at > here and not self._is_stuck(at))]
        stuck = [at for at in (*self._places.stuck, *self._found_stuck) if here < at < last]
        seen = self._session.scan(Scan(watched, cells, ways, max(deadline - time.monotonic(), 0.1), stuck))
        if seen.ended == "time":
            raise TargetTimeout(f"the replay did not come to position {last} in time")
        if seen.ended == "limit":
            self._armed = None
        elif seen.ended == "stuck":
            self._found_stuck.add(self.position)
            more = self.scan(watched, cells, [at for at in limits if at > self.position], deadline)
            return Seen((*seen.hits, *more.hits), (*seen.looks, *more.looks), more.ended)
        elif seen.ended != "hits":
            raise TargetError(f"QEMU stopped on the way to position {last}: {seen.ended}")
        return seen

    def _run(self, deadline: float) -> StopInfo:
        """Run to where QEMU is to stop, or a breakpoint. Raises TargetTimeout, ReplayStands."""
        self._fresh, stood = False, None
        while True:
            self._session.run_on()
            left = max(deadline - time.monotonic(), 0.1)
            stop = self._session.stop_within(min(left, LOOK_SECONDS))
            if stop is not None:
                return stop
            stood = self.moved(stood)
            if self._armed is None:  # it was there just when it was interrupted
                return self.stands("position")
            if left <= LOOK_SECONDS:
                raise TargetTimeout(f"the replay did not come to position {self._armed:,} in time")

    @property
    def spacing(self) -> int:
        """Instructions from one saved state to the next."""
        return max(SPACING, (self.last or 0) // STATES)

    def save(self, here: int) -> None:
        """Save a state at the present position, for good: QEMU 11.1 ends by delvm in a replay."""
        name = f"{TAG}{here}"
        problem = self._session.ask(f"savevm {name}", STATE_SECONDS).strip()
        if problem:
            raise TargetError(f"QEMU cannot save a state: {problem}")
        self.states[here] = name

    def load(self, state: int) -> None:
        """Load the saved state of this position."""
        if self._fresh:  # QEMU ends where a second state is loaded and nothing was run
            if self.position == state:
                return
            self._session.step_once()
        name = self.states.get(state)
        if name is None:
            raise UserError("the recording has no state at its beginning", "QEMU: -icount …,rrsnapshot=NAME")
        problem = self._session.ask(f"loadvm {name}", STATE_SECONDS).strip()
        self._fresh, self._armed = True, None if self._armed is None else -1
        self._session.forget()
        if problem:
            raise TargetError(f"QEMU cannot load a state: {problem}")

    def back(self, seconds: float) -> StopInfo:
        """Run backwards to the last breakpoint or watchpoint before this position, or to the start.

        QEMU's own way back, which GDB's reverse-continue asks for, ends QEMU 7.2 where states were saved:
        here stretches are replayed forwards, the last one first, each longer than the one after it. Raises
        UserError at the start, TargetTimeout; the guest stands where it stood then.
        """
        here = self._before()
        deadline = time.monotonic() + seconds
        try:
            found = self._last_stop(here, deadline)
        except (TargetTimeout, ReplayStands, KeyboardInterrupt):
            self.go_to(here)
            raise
        if found is None:
            return self.go_to(0)
        self.go_to(found[0])
        return self._session.stands(found[1].reason, found[1].breakpoint)

    def _last_stop(self, here: int, deadline: float) -> tuple[int, StopInfo] | None:
        """Return where a breakpoint or watchpoint stops the guest last before `here`; None if none does."""
        end, width = here, STRETCH
        while end > 0 and self._session.has_breakpoints:
            begin, found = max(end - width, 0), None
            self.go_to(begin, max(deadline - time.monotonic(), 0.1))
            limit = min(end + 1, here)  # a stop at its very first instruction belongs to a stretch too
            while self.position < limit:
                stop = self.run_once(limit, max(deadline - time.monotonic(), 0.1))
                at = self.position
                if at < here and stop.reason not in ("signal-received", "position"):
                    found = at, stop
                self.progress("replaying", at, here)
            if found is not None:
                return found
            end, width = begin, width * 8
        return None

    def step_back(self, count: int) -> StopInfo:
        """Go back some instructions; to the start if there are fewer. Raises UserError at the start."""
        here = self._before()
        return self.go_to(max(here - count, 0))

    def _before(self) -> int:
        """Return the position. Raises UserError at the start."""
        here = self.position
        if here == 0:
            raise UserError(f"this is {START}", "continue and timeline goto lead on")
        return here
