"""Follow the stack over a stretch of execution: every instruction, every new depth, or at intervals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from ptinspect.arch.bits import bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, OutOfSlots, PtinspectError, UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.run_control import run_for
from ptinspect.guest.stacks.kernel_stacks import lowest_sp, open_stacks, task_of
from ptinspect.link.gdb.recorder import Rung, Tracer
from ptinspect.link.session import Capability
from ptinspect.linux.running.stacks import Stack, Stacks
from ptinspect.stack.depth import depth_of_cpu, unwinder
from ptinspect.stack.guard import END_MARK
from ptinspect.stack.kernel_code import KernelCode
from ptinspect.stack.trace import (
    LADDER,
    MAX_POINTS,
    SAMPLE,
    STEP,
    Finder,
    Part,
    Point,
    Series,
    Trace,
    TracedStack,
    thin,
)
from ptinspect.stack.unwind import Frame
from ptinspect.text import escape

Method = Literal["step", "ladder", "sample"]
Whose = int | str
"""Whose stacks a ladder watches besides the CPUs' own: of a PID or name, of `any`, of the `current` task."""
STEPS_AT_ONCE = 4096
SLICE = 2.0
"""Seconds that a ladder, or stepping, goes on before it says how far it is."""
ENDS = {
    "count": "the number of steps is done",
    "place": "reached",
    "time": "the time is over",
    "hits": "too many new depths",
}
"""How a trace ended, for people."""
MAX_HITS = 4096
"""New depths after which a ladder ends."""


@dataclass(frozen=True)
class Limits:
    """Say how far to follow."""

    cpu: int
    places: Sequence[int]
    """Addresses that end the trace."""
    steps: int
    """Instructions at most, when stepping."""
    seconds: float
    """Time at most; infinite: none, when stepping."""
    every: float
    """Seconds between two samples."""


def follow(guest: Guest, limits: Limits, method: Method | None = None, whose: Whose = "current") -> Trace:
    """Follow SP; without a method by a ladder, or by samples where the CPU has few watchpoints.

    Raises OutOfSlots for a ladder there, UserError, GuestError.
    """
    limited = guest.stopped.slots.limited
    if limited and method == "ladder":
        raise OutOfSlots("no ladder under KVM: its watchpoints are many, and of any size", "--method sample")
    method = method or ("sample" if limited else "ladder")
    stacks = open_stacks(guest)
    run = _Run(
        guest, stacks, limits, _wanted(guest, stacks, limits.cpu, None if method != "ladder" else whose)
    )
    return {"step": run.step, "ladder": run.ladder, "sample": run.sample}[method]()


def _wanted(guest: Guest, stacks: Stacks, cpu: int, whose: Whose | None) -> list[Stack]:
    """Return the stacks that a ladder watches; None: all, to name the one that SP is on."""
    session = guest.stopped
    states = [session.cpu_state(number) for number in range(session.cpu_count)]
    found = [stack for state in states for stack in stacks.of_cpu(state)]
    if whose is not None:
        found = [stack for stack in found if stack.kind == "irq"]
    tasks = []
    if whose is None or whose == "any":
        with contextlib.suppress(PtinspectError):
            tasks = list(stacks.tasks.all().tasks)
    elif whose == "current":
        task = stacks.tasks.current(states[cpu])
        if task is None:
            raise GuestError("there is no current task yet", "--task any, or let the guest run further")
        tasks = [task]
    else:
        tasks = [task_of(stacks, whose)]
    if whose is None:
        tasks += [task for task in map(stacks.tasks.current, states) if task is not None]
    return list({stack.base: stack for stack in (*found, *map(stacks.of_task, tasks))}.values())


class _Run:
    """One trace being made."""

    def __init__(self, guest: Guest, stacks: Stacks, limits: Limits, wanted: Sequence[Stack]) -> None:
        """`wanted`: the stacks by which SP is named; a ladder watches them all."""
        self.guest, self.stacks, self.limits, self.wanted = guest, stacks, limits, list(wanted)
        self.code = KernelCode(stacks.view)
        finder = Finder(TracedStack(s.kind, s.owner, s.base, s.top) for s in self.wanted)
        self.series = Series(finder, _namer(self.code), self.code.symbol, self._outer())
        began = guest.stopped.cpu_state(limits.cpu)
        self.began = guest.place(began.pc, state=began)
        self.started = time.monotonic()
        self.steps = 0

    def _outer(self) -> list[tuple[int, str, int]]:
        """Return the frames that are on the stack now: the outer end of later chains."""
        frames = self._frames(self.limits.cpu)
        return [(f.sp, p.function, p.size) for f, p in zip(frames, _chain_of(frames, self.code), strict=True)]

    def _frames(self, cpu: int) -> Sequence[Frame]:
        try:
            frames = depth_of_cpu(self.stacks, self.guest.stopped.cpu_state(cpu)).unwound.frames
        except PtinspectError:
            return ()
        return [frame for frame in frames if frame.kind != "user"]

    def step(self) -> Trace:
        """Follow every instruction of one CPU; the others stand still, interrupts are held back."""
        limits, tracer, ended = self.limits, Tracer(self.guest.stopped), "count"
        while self.steps < limits.steps and ended in ("count", "time") and (left := self._left()) > 0:
            count = min(STEPS_AT_ONCE, limits.steps - self.steps)
            try:
                records, ended = tracer.step(
                    limits.cpu, count, int(1000 * min(left, SLICE)) + 1, limits.places
                )
            except KeyboardInterrupt:
                records, ended = tracer.take()[0], "interrupted"
            skip = 1 if self.steps else 0  # the first record repeats the last one of the portion before
            self.series.add_steps(records[skip:], self.steps + skip)
            self.steps += max(len(records) - 1, 0)
            self.guest.progress("stepping", self.steps, limits.steps)
        if ended in ("count", "time"):
            ended = "count" if self.steps >= limits.steps else "time"
        return self._trace(STEP, ended)

    def ladder(self) -> Trace:
        """Stop at each store below the lowest SP so far: exact, at one stop for each new depth."""
        session = self.guest.stopped
        if Capability.PIPELINE not in session.capabilities:
            raise UserError("a ladder needs GDB's socket, which is not known here", "--method sample")
        lowest = {s.top: lowest_sp(self.stacks, s) or s.top for s in self.wanted}
        rungs = {s.top: Rung(s.base + END_MARK, min(lowest[s.top], s.top), s.top) for s in self.wanted}
        for cpu in range(session.cpu_count):
            self._look(cpu)
        tracer, ended = Tracer(session), "time"
        while ended == "time" and (left := self._left()) > 0 and self.steps < MAX_HITS:
            before = self._elapsed()
            try:
                records, ended = tracer.ladder(
                    int(1000 * min(left, SLICE)) + 1,
                    MAX_HITS - self.steps,
                    list(rungs.values()),
                    self.limits.places,
                )
            except KeyboardInterrupt:
                records, ended = tracer.take()[0], "interrupted"
            self._add(records, before, rungs, tracer)
            self.guest.progress("looking for new depths", int(self._elapsed()), int(self.limits.seconds))
        return self._trace(LADDER, ended)

    def _add(self, records: Any, before: float, rungs: dict[int, Rung], tracer: Tracer) -> None:
        """Take the records of one portion; the chain of the deepest point comes from the stack kept there."""
        found = []
        lowest: dict[int, int] = {}
        for ms, thread, top, pc, sp, _, x29, x30 in records.tolist():
            self.guest.stopped.current_cpu = int(thread) - 1
            if top:
                self.steps += 1
                found.append(
                    (Point(round(1000 * before) + ms, self.series.finder.find(sp), sp, pc), top, x29, x30)
                )
                lowest[top] = sp
        for point, top, x29, x30 in found:
            chain = self._kept(tracer, point, top, x29, x30) if point.sp == lowest[top] else ()
            self.series.add(point, chain)
        for top, sp in lowest.items():
            rungs[top] = Rung(rungs[top].base, sp, top)

    def _kept(self, tracer: Tracer, point: Point, top: int, x29: int, x30: int) -> tuple[Part, ...]:
        """Return the chain at a hit, from the copy of the stack that was made there."""
        start, data = tracer.stack(top)
        if start != point.sp or not data:
            return ()

        def read(va: int, length: int) -> bytes:
            if start <= va and va + length <= start + len(data):
                return data[va - start : va - start + length]
            return self.stacks.view.read_virt(va, length)

        try:
            found = unwinder(self.stacks, self.wanted, read).unwind(point.pc + 4, point.sp, x29, x30)
        except PtinspectError:
            return ()
        return _chain_of([frame for frame in found.frames if frame.kind != "user"], self.code)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _left(self) -> float:
        return self.limits.seconds - self._elapsed()

    def sample(self) -> Trace:
        """Stop the guest at intervals and look at every CPU: cheap, and what lies between is missed."""
        session = self.guest.stopped
        places: set[int] = set()
        ended = "time"
        try:
            for place in self.limits.places:
                places.add(session.set_breakpoint(place).id)
            while self._left() > 0:
                stop = run_for(self.guest, self.limits.every)
                if stop is not None:
                    ended = "place" if stop.breakpoint in places else f"stopped: {stop.words}"
                    break
                self.steps += 1
                for cpu in range(session.cpu_count):
                    self._look(cpu)
                self.guest.progress("sampling", int(self._elapsed()), int(self.limits.seconds))
        except KeyboardInterrupt:
            ended = "interrupted"
        finally:
            for number in places:
                with contextlib.suppress(PtinspectError):
                    session.delete_breakpoint(number)
        return self._trace(SAMPLE, ended)

    def _look(self, cpu: int) -> None:
        """Note where a CPU's SP is, with the functions on its stack."""
        state = self.guest.stopped.cpu_state(cpu)
        stack = self.series.finder.find(state.sp) if state.el else -1
        at = round(1000 * self._elapsed())
        chain = _chain_of(self._frames(cpu), self.code) if stack >= 0 else ()
        self.series.add(Point(at, stack, state.sp, state.pc), chain)

    def _trace(self, method: str, ended: str) -> Trace:
        points, thinned = thin(self.series.points, MAX_POINTS)
        state = self.guest.stopped.cpu_state(self.guest.stopped.current_cpu)
        return Trace(
            method,
            escape(self.stacks.view.banner()),
            self.began,
            f"{ENDS.get(ended, ended)}, cpu {state.cpu} at {self.guest.place(state.pc, state=state)}",
            self.steps,
            round(self._elapsed(), 3),
            tuple(self.series.finder.used),
            points,
            self.series.deepest(),
            self.series.functions(),
            thinned,
        )


def _chain_of(frames: Sequence[Frame], code: KernelCode) -> tuple[Part, ...]:
    """Return the functions of frames, the innermost first, with their own bytes."""
    return tuple(
        Part(code.symbol(frame.pc, returns=frame.returns).partition("+")[0], frame.size) for frame in frames
    )


def _namer(code: KernelCode) -> Callable[[int], tuple[str, int]]:
    """Return what gives the function of an address and its start; kept, since code repeats itself."""

    @lru_cache(maxsize=65_536)
    def function(pc: int) -> tuple[str, int]:
        start = code.start(pc)
        if start is None:
            return ("user" if not bit(pc, 55) and pc < 1 << 30 else f"{pc & ~0xFFF:#x}", -1)
        return code.symbol(start).partition("+")[0], start

    return function
