"""Whether the guest runs, and why it stopped: what GDB's events tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypedDict

from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import TargetError, TargetLost, TargetTimeout

QEMU_ENDED = "QEMU has ended (the guest switched off, or QEMU was ended)"

Listener = Callable[[str, Mapping[str, Any]], None]
"""Called with `running`, `stopped` or `lost` in GDB's reader thread, with `waiting` each second in that which
waits for the guest; must not use the session."""


class RunState(StrEnum):
    """Tell whether the guest can be examined."""

    STOPPED = "stopped"
    RUNNING = "running"
    DEAD = "dead"
    """GDB, QEMU or their connection has ended, or the session was left."""


REASONS = {
    "end-stepping-range": "stepped",
    "location-reached": "arrived",
    "function-finished": "returned",
    "signal-received": "by a signal",
}
"""GDB's reasons for a stop (GDB manual, GDB/MI Async Records), as people say them."""


@dataclass(frozen=True)
class StopInfo:
    """Describe one stop of the guest."""

    reason: str
    """GDB's reason: `breakpoint-hit`, `end-stepping-range`, `signal-received`, …; `attached` at first."""
    cpu: int
    """The CPU that stopped the guest, from 0."""
    breakpoint: int | None
    """Number of the breakpoint or watchpoint that was hit."""
    pc: int
    """Program counter of that CPU; a physical address while the MMU is off."""
    signal: str
    """`SIGINT` after an interrupt, else mostly empty."""
    spot: int | None = None
    """GDB's own number of what was hit, for whoever looks first at a stop on the way."""
    old: str = ""
    new: str = ""
    """What a watchpoint watches, before and after, as GDB writes it; of a load both are the same."""
    untold: str = ""
    """Why GDB could not tell whether the condition holds: it stops the guest then."""

    @property
    def words(self) -> str:
        """Why it stopped, as people say it."""
        untold = f", whose condition cannot be evaluated: {self.untold}" if self.untold else ""
        if self.breakpoint is not None and self.breakpoint < 0:
            return "a watched area"  # of a number that nobody sees (Session.watch_areas)
        if self.reason.endswith("watchpoint-trigger"):
            return f"watchpoint {self.breakpoint}{untold}"
        if self.breakpoint is not None:
            return f"breakpoint {self.breakpoint}{untold}"
        if self.signal == "SIGINT":
            return "interrupted"
        if self.signal:
            return f"{self.reason}, {self.signal}"
        return REASONS.get(self.reason, self.reason)


@dataclass(frozen=True)
class Breakpoint:
    """Describe a breakpoint or watchpoint that GDB knows."""

    id: int
    """GDB's number."""
    address: int | None
    """Value of the program counter that stops the guest, or what is watched; None if GDB tells none."""
    hardware: bool = True
    """Compared by the CPU or by QEMU; nothing is written into guest memory."""
    temporary: bool = False
    cpu: int | None = None
    """The only CPU that it stops, or None."""
    condition: str = ""
    """GDB expression that must hold."""
    hits: int = 0
    """How often it has stopped the guest, or was ignored."""
    ignore: int = 0
    """How many of the next hits do not stop it."""
    kind: str = "breakpoint"
    """GDB's word without `hw`: breakpoint, watchpoint, read watchpoint, acc watchpoint, catchpoint."""
    enabled: bool = True
    """It counts."""
    what: str = ""
    """What is watched, or where it was set, in GDB's words."""


class Manner(TypedDict, total=False):
    """How a breakpoint stops the guest."""

    hardware: bool
    """Compared by the CPU or by QEMU, which is the default; else an instruction is written into the guest."""
    temporary: bool
    """Once."""
    cpu: int | None
    """Only this one; others pass (GDB resumes them, at some cost per hit)."""
    condition: str | None
    """Where this holds."""


NEVER_STOPPED = StopInfo("attached", 0, None, 0, "")


WAITING_EVERY = 1.0
"""Seconds after which listeners hear that somebody still waits for the guest."""


class Refused(TargetError):
    """Report that GDB did not let the guest run after all."""


class RunTracker:
    """Follow GDB's events; safe for several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.state = RunState.STOPPED
        self.stop = NEVER_STOPPED
        """The last stop."""
        self.token = 0
        """A number that changes whenever the guest may have changed."""
        self.cpu = 0
        """The CPU that GDB's own commands are about: the one that stopped, or the one chosen since."""
        self.why_dead = ""
        """Why the session is over."""
        self._refused = ""
        self.listeners: list[Listener] = []
        self.inner: set[int] = set()
        """GDB's numbers of the breakpoints at which somebody looks first (`link.escort`)."""
        self.numbers: dict[int, int] = {}
        """GDB's number -> that under which people know the breakpoint, which may have several places."""
        self.asked = False
        """Somebody wants the guest stopped."""
        self.glimpse = False
        """The escort has asked GDB to stop it."""
        self._escorted = False
        self._visit: StopInfo | None = None
        self._trouble: Exception | None = None

    def attached(self) -> None:
        """Name the stop that connecting to the stub is."""
        with self._changed:
            self.stop = replace(self.stop, reason=NEVER_STOPPED.reason)

    def touch(self) -> None:
        """Make everything that was cached stale: something wrote to the guest."""
        with self._changed:
            self.token += 1

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Take an event of GDB."""
        if self.state is RunState.DEAD or (name == "running" and self.state is RunState.RUNNING):
            return
        if name == "running":
            self._refused = ""
            self._set(RunState.RUNNING)
            self._tell(name, fields)
        elif name == "stopped":
            self._stopped(_stop_info(fields), fields)
        elif name == "refused":
            self._refuse(str(fields.get("text", "")))
        elif name == "thread-selected":
            self.cpu = max(_number(fields.get("id", "1")) - 1, 0)
        elif name == "thread-group-exited":
            self.lost(QEMU_ENDED)

    # Breakpoints with several places

    def note_place(self, number: int, known_as: int | None, *, inner: bool) -> None:
        """Note GDB's number of a place, and that of its breakpoint; None for one that nobody sees."""
        if inner:
            self.inner.add(number)
        if known_as is not None:
            self.numbers[number] = known_as

    def forget_place(self, number: int) -> None:
        """Note that a place is deleted."""
        self.inner.discard(number)
        self.numbers.pop(number, None)

    def places_of(self, number: int) -> list[int]:
        """Return GDB's numbers of a breakpoint's places."""
        return [place for place, known_as in self.numbers.items() if known_as == number] or [number]

    # Stops on the way

    def begin(self, *, escorted: bool) -> None:
        """Note that the guest is about to run; `escorted`: somebody looks at stops on the way."""
        with self._changed:
            self._escorted, self._visit, self._trouble = escorted, None, None
            self.asked = self.glimpse = False

    def alone(self) -> None:
        """Note that nobody looks at stops of the next run: one that was to begin may not have."""
        with self._changed:
            self._escorted = self._escorted and self.state is RunState.RUNNING

    def await_visit(self, timeout: float) -> StopInfo | None:
        """Return the next stop on the way; None if there is none in time, or the run is over."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._visit is None and self.state is RunState.RUNNING:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._visit

    def go_on(self) -> bool:
        """Note that the guest runs on from a stop on the way; False if somebody wants it stopped."""
        with self._changed:
            if self.asked or self._visit is None:
                return False
            self._visit = None
            self.token += 1
            return True

    def end_visit(
        self,
        trouble: Exception | None = None,
        stop: StopInfo | None = None,
        *,
        passed: bool = False,
        pc: int | None = None,
    ) -> None:
        """Let everybody know of the stop on the way; `trouble` is raised where somebody waits for it.

        `stop`: that from which the guest was to run on, and did not. `passed`: it was nobody's stop. `pc`:
        where the CPU stands since, if a steward had it run.
        """
        with self._changed:
            stop, self._visit, self._trouble = self._visit or stop, None, trouble
            if stop is None or self.state is not RunState.RUNNING:
                return
            if pc is not None:
                stop = replace(stop, pc=pc)
            if passed or stop.breakpoint not in self.numbers.values():
                stop = replace(stop, breakpoint=None)
                if self.asked:
                    stop = replace(stop, reason="signal-received", signal="SIGINT")
        self._set(RunState.STOPPED, stop)
        self._tell("stopped", {"reason": stop.reason})

    def _stopped(self, stop: StopInfo, fields: Mapping[str, Any]) -> None:
        """Take a stop: one on the way is for the escort, the others are everybody's."""
        known = self.numbers.get(stop.breakpoint or 0, stop.breakpoint)
        asked = stop.breakpoint is None and stop.signal == "SIGINT"
        ours = stop.breakpoint in self.inner or (self.glimpse and asked)
        ours = ours and self._escorted and self.state is RunState.RUNNING
        self.glimpse = self.glimpse and not asked
        stop = replace(stop, breakpoint=known, spot=stop.breakpoint if ours else None)
        if ours:
            with self._changed:
                self._visit, self.cpu = stop, stop.cpu
                self.token += 1
                self._changed.notify_all()
            return
        self._set(RunState.STOPPED, stop)
        self._tell("stopped", fields)

    def lost(self, reason: str) -> None:
        """Note that the session is over; only the first reason is kept."""
        with self._changed:
            first = self.state is not RunState.DEAD
            self.state = RunState.DEAD
            self.token += 1
            self.why_dead = self.why_dead or reason
            self._changed.notify_all()
        if first:
            self._tell("lost", {"reason": reason})

    def wait(self, timeout: float, whole: float | None = None) -> StopInfo:
        """Wait until the guest stops. Raises TargetTimeout, TargetLost, and what a look on the way raised.

        `whole`: how long is waited in all, where this is the last part of it.
        """
        deadline = time.monotonic() + timeout
        while not self._stands(min(max(deadline - time.monotonic(), 0.0), WAITING_EVERY)):
            if time.monotonic() >= deadline:
                raise TargetTimeout(
                    f"the guest did not stop within {whole or timeout:g} s", "it runs on; interrupt stops it"
                )
            self._tell("waiting", {})
        with self._changed:
            if self.state is RunState.DEAD:
                raise TargetLost(f"the session is over: {self.why_dead}")
            refused, self._refused = self._refused, ""
            if refused:
                raise Refused(f"GDB did not let the guest run: {refused}")
            trouble, self._trouble = self._trouble, None
            if trouble is not None:
                raise trouble
            return self.stop

    def _stands(self, seconds: float) -> bool:
        """Wait that long until the guest does not run; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self.state is not RunState.RUNNING, seconds)

    def _refuse(self, text: str) -> None:
        """Take back that the guest runs: GDB had reported that, and then could not insert its breakpoints."""
        with self._changed:
            if self.state is not RunState.RUNNING:
                return
            self._refused = " ".join(text.split()) or "no reason given"
        self._set(RunState.STOPPED)

    def _set(self, state: RunState, stop: StopInfo | None = None) -> None:
        with self._changed:
            if self.state is RunState.DEAD:
                return
            self.state = state
            self.token += 1
            self._escorted = self._escorted and state is RunState.RUNNING
            if stop is not None:
                self.stop, self.cpu = stop, stop.cpu
            self._changed.notify_all()

    def _tell(self, name: str, fields: Mapping[str, Any]) -> None:
        for listener in tuple(self.listeners):
            listener(name, fields)


def _stop_info(fields: Mapping[str, Any]) -> StopInfo:
    frame = fields.get("frame")
    address = frame.get("addr", "0") if isinstance(frame, dict) else "0"
    number = str(fields.get("bkptno", _watchpoint(fields)))
    old, new = _watched(fields)
    return StopInfo(
        str(fields.get("reason", "stopped")),
        max(_number(fields.get("thread-id", "1")) - 1, 0),
        int(number) if number.removeprefix("-").isdecimal() else None,
        _number(address),
        str(fields.get("signal-name", "")),
        old=old,
        new=new,
        untold=str(fields.get("untold", "")),
    )


def _watched(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Return the values that a watchpoint saw."""
    found = fields.get("value")
    if not isinstance(found, Mapping):
        return "", ""
    now = str(found.get("new", found.get("value", "")))  # an access that changes nothing has no old one
    return str(found.get("old", now)), now


def _watchpoint(fields: Mapping[str, Any]) -> str:
    """Return the number of the watchpoint that was hit: GDB/MI names it by the kind of watchpoint."""
    for name in ("wpt", "hw-awpt", "hw-rwpt"):
        found = fields.get(name)
        if isinstance(found, dict):
            return str(found.get("number", ""))
    return ""


def _number(text: object) -> int:
    try:
        return int(str(text), 0)
    except ValueError:
        return 0
