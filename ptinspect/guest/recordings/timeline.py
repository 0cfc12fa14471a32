"""A recorded boot: record it, open it again, and move in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import PtinspectError, TargetError, TargetLost, TargetTimeout, UserError
from ptinspect.guest import opening
from ptinspect.guest.guest import Guest
from ptinspect.guest.opening import RECORDING
from ptinspect.text import escape

if TYPE_CHECKING:
    from ptinspect.link.qemu.recording import Recording
    from ptinspect.link.replay import Replay
    from ptinspect.link.session import StopInfo

KPTI_ENTRY, KPTI_END = "kpti-entry", "kpti-end"
MEASURE_SECONDS = 900.0
"""How long it may take to find out where a recording ends."""
STRIDES = (32_000_000, 800_000, 20_000)
"""Instructions between two looks whether a recording that broke off goes on: smaller each time it did not."""


@dataclass(frozen=True)
class Timeline:
    """Where a guest stands in a recorded run."""

    mode: str
    """record or replay."""
    position: int
    """Instructions executed since the start."""
    end: int | None
    """The last position; None while it is being recorded, or where nobody knows."""
    directory: str
    """The recording; empty if QEMU was started by somebody else."""


@dataclass(frozen=True)
class Positions:
    """Where a guest stands, and the positions that have names or saved states."""

    here: Timeline
    events: Mapping[str, int]
    states: tuple[int, ...]
    period: int | None = None
    """Nanoseconds of the guest's clock that an instruction takes; None where nobody knows."""


def timeline(guest: Guest) -> Timeline | None:
    """Return where the stopped guest stands in a recorded run; None if it is in none."""
    replay = guest.stopped.replay
    if replay is None:
        return None
    recording = recording_of(guest)
    directory = "" if recording is None else str(recording.directory)
    return Timeline(replay.mode, replay.position, replay.last, directory)


def recording_of(guest: Guest) -> Recording | None:
    """Return the recording that the guest belongs to, if it is known."""
    found: Recording | None = guest.kept.get(RECORDING)
    return found


def replay_of(guest: Guest) -> Replay:
    """Return the replay that the stopped guest is. Raises UserError where it cannot go back."""
    replay = guest.stopped.replay
    if replay is None:
        raise UserError(
            "this guest runs forwards only: it is not the replay of a recording",
            "launch --timeline DIR records a boot, timeline open DIR replays it",
        )
    if replay.mode == "record":
        raise UserError("the guest is being recorded", "detach, then timeline open DIR replays it")
    return replay


def positions(guest: Guest) -> Positions:
    """Return where the guest stands, and which positions are known. Raises UserError outside a recording."""
    from ptinspect.link.qemu.recording import SHIFT

    here, recording = timeline(guest), recording_of(guest)
    period = None if recording is None else 1 << SHIFT
    if here is not None and here.mode == "record":
        return Positions(here, {}, (), period)
    states = tuple(sorted(replay_of(guest).states))
    assert here is not None
    return Positions(here, {} if recording is None else dict(recording.events), states, period)


def open_recording(
    guest: Guest, directory: Path, qemu: str | None, timeout: float = 10.0, *, trust: bool = False
) -> Timeline:
    """Replay a recording, from its start; how long it is, is measured if nobody has noted it.

    Without `qemu` one of this machine is started that has the version of the recording: never what that
    names. Raises UserError if a guest is attached already, if there is no recording, if it is another QEMU's,
    or if it has further arguments for QEMU, which may name files or programs, and nobody trusts them.
    """
    from ptinspect.link.qemu.recording import load
    from ptinspect.link.replay import START

    opening.refuse_second(guest)
    recording = load(directory)
    if recording.foreign and not trust:
        words = " ".join(map(escape, recording.foreign))
        raise UserError(
            f"the recording starts QEMU with: {words}", "if these are yours: timeline open DIR --trust"
        )
    program = opening.program(qemu) if qemu else _of_version(recording.qemu)
    if recording.end is None:
        recording = replace(recording, end=_measured(guest, recording, program, timeout))
        recording.save()
    _start(guest, recording, program, timeout)
    found = timeline(guest)
    if found is None:
        raise TargetError("QEMU does not replay the recording")
    replay_of(guest).stands(START)
    return found


def discard(directory: Path) -> None:
    """Remove a recording, if the directory holds one. Raises TargetError if it cannot be removed."""
    import shutil

    from ptinspect.link.qemu.recording import load

    with contextlib.suppress(UserError):
        load(directory)
        try:
            shutil.rmtree(directory)
        except OSError as error:
            raise TargetError(f"cannot remove {directory}: {error.strerror or error}") from error


def _of_version(version: str) -> str:
    """Return the QEMU of this machine that is of this version; nothing, for the usual one, if none is."""
    from ptinspect.link.qemu.machine import find_program
    from ptinspect.link.qemu.recording import qemu_version

    for name in ("", "newer"):
        with contextlib.suppress(PtinspectError):
            found = find_program(opening.program(name))
            if qemu_version(found) == version:
                return found
    return ""


def _start(guest: Guest, recording: Recording, program: str, timeout: float) -> Replay:
    symbols = Path(recording.symbols)
    symbols = symbols if recording.symbols and symbols.is_file() else recording.kernel
    guest.progress("starting QEMU")
    opening.start(guest, recording.replayed(program), symbols, timeout)
    guest.kept[RECORDING] = recording
    if guest.qemu is not None and recording.console.is_file():
        guest.qemu.console = recording.console  # a replay from a saved state prints but the rest
    replay = replay_of(guest)
    replay.last, replay.progress = recording.end, guest.progress
    return replay


def _measured(guest: Guest, recording: Recording, program: str, timeout: float) -> int:
    """Replay a recording to its end, and return where that is.

    One whose QEMU was killed breaks off, and takes the QEMU that replays it along. Then it is tried in
    smaller and smaller strides how far it goes; states that are saved on the way make later tries short.
    """
    deadline = time.monotonic() + MEASURE_SECONDS
    if not recording.complete(program):
        return _measured_in_strides(guest, recording, program, timeout, deadline)
    try:
        replay, session = _start(guest, recording, program, timeout), guest.stopped
        guest.progress("measuring the recording")
        session.resume()
        session.wait_stop(MEASURE_SECONDS)
        return replay.position
    except TargetLost:
        return _measured_in_strides(guest, recording, program, timeout, deadline)
    finally:
        opening.abandon(guest)


def _measured_in_strides(
    guest: Guest, recording: Recording, program: str, timeout: float, deadline: float
) -> int:
    """Return how far a recording goes that breaks off, but for less than the smallest stride."""
    reached = 0
    for stride in STRIDES:
        replay = _start(guest, recording, program, timeout)
        try:
            replay.go_to(reached)
            while time.monotonic() < deadline:
                replay.go_to(reached + stride)
                reached += stride
            raise TargetTimeout("the recording has no end in time")
        except TargetLost:
            continue
        finally:
            opening.abandon(guest)
    return reached


def go_to(guest: Guest, place: int | str, seconds: float) -> StopInfo:
    """Go to a position: a number, start, end, or an event's name. Raises UserError, TargetTimeout."""
    replay = replay_of(guest)
    if place in (KPTI_ENTRY, KPTI_END):
        place = _event(guest, replay, str(place), seconds)
    if place == "end":
        if replay.last is None:
            raise UserError("nobody knows where this recording ends", "timeline open DIR finds out")
        place = replay.last
    return replay.go_to(0 if place == "start" else int(place), seconds)


def _event(guest: Guest, replay: Replay, name: str, seconds: float) -> int:
    """Return the position of the rewrite's first instruction, or of its end; both are noted once found.

    A recording may end before the rewrite does.
    """
    here, recording = replay.position, recording_of(guest)
    if recording is not None and name in recording.events:
        return recording.events[name]
    from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints
    from ptinspect.guest.rewrite.rewrite import Runner

    with symbol_breakpoints(guest).aside(), replay.without_breakpoints():
        replay.go_to(0, seconds)
        try:
            runner = Runner(guest, seconds)
            runner.place_kernel()
            if not runner.enter():
                raise UserError(f"there is no rewrite in this recording: {runner.reason}")
            events, end = {KPTI_ENTRY: replay.position}, runner.point("return")
            stop = runner.run_to([end])
            if stop.pc == end:
                events[KPTI_END] = replay.position
            elif name == KPTI_END:
                raise TargetError(f"the guest stopped at {stop.pc:#x} before the rewrite returned")
        except BaseException:
            replay.go_to(here, seconds)
            raise
    if recording is not None:
        recording = guest.kept[RECORDING] = replace(recording, events={**recording.events, **events})
        recording.save()
    return events[name]


def step_back(guest: Guest, count: int) -> StopInfo:
    """Go back some instructions."""
    return replay_of(guest).step_back(count)


def back_to_call(guest: Guest, seconds: float) -> StopInfo:
    """Run backwards to the call of the function at the program counter, in the same task and frame.

    Raises UserError if the caller is not known, TargetTimeout; the guest stands where it stood then.
    """
    from ptinspect.guest.run_control import calling, same_call

    replay = replay_of(guest)
    here, deadline = replay.position, time.monotonic() + seconds
    state, caller = calling(guest, None)
    call = replace(caller, pc=caller.pc - 4)
    session = guest.stopped
    with replay.without_breakpoints():
        own = session.set_breakpoint(call.pc)
        try:
            while True:
                stop = replay.back(max(deadline - time.monotonic(), 0.1))
                if stop.pc != call.pc:
                    break
                if same_call(guest, call, state, session.cpu_state(stop.cpu)):
                    return replay.stands("location-reached")
        finally:
            session.delete_breakpoint(own.id)
        replay.go_to(here)
    raise UserError("the call is not in the recording", "bt shows the chain of callers")
