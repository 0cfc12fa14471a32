"""The ways of following SP: every instruction, every new depth, or at intervals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ptinspect.arch.bits import bit
from ptinspect.commands.framework.context import Context
from ptinspect.errors import PtinspectError, TargetTimeout, UserError
from ptinspect.link.session import Capability
from ptinspect.output.model import escape

if TYPE_CHECKING:
    from ptinspect.link.gdb.recorder import Rung, Tracer
    from ptinspect.link.session import StopInfo
    from ptinspect.linux.running.stacks import Stack, Stacks
    from ptinspect.stack.kernel_code import KernelCode
    from ptinspect.stack.trace import Part, Point, Trace, TracedStack
    from ptinspect.stack.unwind import Frame

STEPS_AT_ONCE = 4096
SLICE = 2.0
"""Seconds that a ladder runs before it says how far it is."""
ENDS = {
    "count": "the number of steps is done",
    "place": "reached",
    "time": "the time is over",
    "hits": "too many new depths",
}
"""How a trace ended, for people."""
MAX_HITS = 4096
"""New depths after which a ladder ends."""
END_MARK = 16
"""Bytes at the base of a stack that are not watched: the end mark."""


@dataclass(frozen=True)
class Limits:
    """Say how far to follow."""

    cpu: int
    """The CPU that is stepped."""
    places: Sequence[int]
    """Addresses that end the trace."""
    steps: int
    """Instructions at most, when stepping."""
    seconds: float
    """Time at most, otherwise."""
    every: float
    """Seconds between two samples."""


class Way:
    """One trace being made."""

    def __init__(self, ctx: Context, stacks: Stacks, limits: Limits, wanted: Sequence[Stack]) -> None:
        """`wanted`: the stacks that are told apart; a ladder watches them all."""
        from ptinspect.stack.kernel_code import KernelCode
        from ptinspect.stack.trace import Finder, Series

        self.ctx, self.stacks, self.limits, self.wanted = ctx, stacks, limits, list(wanted)
        self.code = KernelCode(stacks.view)
        finder = Finder(traced(stack) for stack in self.wanted)
        self.series = Series(finder, namer(self.code), self.code.symbol, self._outer())
        self.began = ctx.place(ctx.stopped.cpu_state(limits.cpu).pc)
        self.started = time.monotonic()
        self.steps = 0

    def _outer(self) -> list[tuple[int, str, int]]:
        """Return the frames that are on the stack now: the outer end of later chains."""
        frames = self._frames(self.limits.cpu)
        return [(f.sp, p.function, p.size) for f, p in zip(frames, chain_of(frames, self.code), strict=True)]

    def _frames(self, cpu: int) -> Sequence[Frame]:
        from ptinspect.stack.depth import depth_of_cpu

        try:
            frames = depth_of_cpu(self.stacks, self.ctx.stopped.cpu_state(cpu)).unwound.frames
        except PtinspectError:
            return ()
        return [frame for frame in frames if frame.kind != "user"]

    def step(self) -> Trace:
        """Follow every instruction of one CPU; the others stand still, interrupts are held back."""
        from ptinspect.link.gdb.recorder import Tracer
        from ptinspect.stack.trace import STEP

        limits, tracer, ended = self.limits, Tracer(self.ctx.stopped), "count"
        while self.steps < limits.steps and ended == "count":
            count = min(STEPS_AT_ONCE, limits.steps - self.steps)
            try:
                records, ended = tracer.step(limits.cpu, count, limits.places)
            except KeyboardInterrupt:
                records, ended = tracer.take()[0], "interrupted"
            finally:
                self.ctx.forget_stop()
            skip = 1 if self.steps else 0  # the first record repeats the last one of the portion before
            self.series.add_steps(records[skip:], self.steps + skip)
            self.steps += max(len(records) - 1, 0)
            self.ctx.progress("stepping", self.steps, limits.steps)
        return self._trace(STEP, ended)

    def ladder(self) -> Trace:
        """Stop at each store below the lowest SP so far: exact, at one stop for each new depth."""
        from ptinspect.link.gdb.recorder import Rung, Tracer
        from ptinspect.stack.trace import LADDER

        session = self.ctx.stopped
        if Capability.PIPELINE not in session.capabilities:
            raise UserError("a ladder needs GDB's socket, which cannot be told here", "--method sample")
        rungs = {s.top: Rung(s.base + END_MARK, min(self._saved(s), s.top), s.top) for s in self.wanted}
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
            finally:
                self.ctx.forget_stop()
            self._add(records, before, rungs, tracer)
            self.ctx.progress("looking for new depths", int(self._elapsed()), int(self.limits.seconds))
        return self._trace(LADDER, ended)

    def _add(self, records: Any, before: float, rungs: dict[int, Rung], tracer: Tracer) -> None:
        """Take the records of one portion; the chain of the deepest point comes from the stack kept there."""
        from ptinspect.link.gdb.recorder import Rung
        from ptinspect.stack.trace import Point

        found = []
        lowest: dict[int, int] = {}
        for ms, thread, top, pc, sp, _, x29, x30 in records.tolist():
            self.ctx.stopped.current_cpu = int(thread) - 1
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
        from ptinspect.stack.depth import unwinder

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
        return chain_of([frame for frame in found.frames if frame.kind != "user"], self.code)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _left(self) -> float:
        return self.limits.seconds - self._elapsed()

    def sample(self) -> Trace:
        """Stop the guest at intervals and look at every CPU: cheap, and what lies between is not seen."""
        from ptinspect.stack.trace import SAMPLE

        places = self._break()
        ended = "the time is over"
        try:
            while self._left() > 0:
                stop = self._slice(self.limits.every)
                if stop is not None:
                    ended = "reached" if stop.breakpoint in places else f"stopped: {stop.reason}"
                    break
                self.steps += 1
                for cpu in range(self.ctx.stopped.cpu_count):
                    self._look(cpu)
                self.ctx.progress("sampling", int(self._elapsed()), int(self.limits.seconds))
        except KeyboardInterrupt:
            ended = "interrupted"
            self._stand()
        finally:
            self._clear(list(places))
        return self._trace(SAMPLE, ended)

    def _saved(self, stack: Stack) -> int:
        """Return the SP of a stack now: live, or as its task saved it; the top where nobody is on it."""
        for state in self.stacks.view.states:
            if stack.holds_sp(state.sp) and state.el != 0:
                return state.sp
        task = stack.task
        if task is not None and task.cpu is None and stack.holds_sp(task.saved_sp):
            return task.saved_sp
        return stack.top

    def _look(self, cpu: int) -> None:
        """Note where a CPU's SP is, with the functions on its stack."""
        from ptinspect.stack.trace import Point

        state = self.ctx.stopped.cpu_state(cpu)
        stack = self.series.finder.find(state.sp) if state.el else -1
        at = round(1000 * self._elapsed())
        chain = chain_of(self._frames(cpu), self.code) if stack >= 0 else ()
        self.series.add(Point(at, stack, state.sp, state.pc), chain)

    def _break(self) -> set[int]:
        return {self.ctx.stopped.set_breakpoint(place).id for place in self.limits.places}

    def _slice(self, seconds: float) -> StopInfo | None:
        """Let the guest run for a while; None if nothing but the time stopped it."""
        if seconds <= 0:
            return None
        session = self.ctx.stopped
        self.ctx.forget_stop()
        session.resume()
        try:
            return session.wait_stop(seconds)
        except TargetTimeout:
            stop = session.interrupt(5.0)
            return None if stop.breakpoint is None else stop
        finally:
            self.ctx.forget_stop()

    def _stand(self) -> None:
        with contextlib.suppress(PtinspectError):
            self.ctx.target.interrupt(5.0)
        self.ctx.forget_stop()

    def _clear(self, numbers: Sequence[int]) -> None:
        if self.ctx.state == "running":
            self._stand()
        for number in numbers:
            with contextlib.suppress(PtinspectError):
                self.ctx.stopped.delete_breakpoint(number)
        self.ctx.forget_stop()

    def _trace(self, method: str, ended: str) -> Trace:
        from ptinspect.stack.trace import MAX_POINTS, Trace, thin

        points, thinned = thin(self.series.points, MAX_POINTS)
        state = self.ctx.stopped.cpu_state(self.ctx.stopped.current_cpu)
        return Trace(
            method,
            escape(self.stacks.view.banner()),
            self.began,
            f"{ENDS.get(ended, ended)}, cpu {state.cpu} at {self.ctx.place(state.pc)}",
            self.steps,
            round(self._elapsed(), 3),
            tuple(self.series.finder.used),
            points,
            self.series.deepest(),
            self.series.functions(),
            thinned,
        )


def traced(stack: Stack) -> TracedStack:
    """Return a stack as a trace names it."""
    from ptinspect.stack.trace import TracedStack

    task = stack.task
    owner = f"cpu {stack.cpu}" if task is None else f"{escape(task.comm)} ({task.pid})"
    return TracedStack(stack.kind, owner, stack.base, stack.top)


def chain_of(frames: Sequence[Frame], code: KernelCode) -> tuple[Part, ...]:
    """Return the functions of frames, the innermost first, with their own bytes."""
    from ptinspect.stack.trace import Part

    return tuple(
        Part(code.symbol(frame.pc, returns=frame.returns).partition("+")[0], frame.size) for frame in frames
    )


def namer(code: KernelCode) -> Callable[[int], tuple[str, int]]:
    """Return what gives the function of an address and its start; kept, since code repeats itself."""

    @lru_cache(maxsize=65_536)
    def function(pc: int) -> tuple[str, int]:
        start = code.start(pc)
        if start is None:
            return ("user" if not bit(pc, 55) and pc < 1 << 30 else f"{pc & ~0xFFF:#x}", -1)
        return code.symbol(start).partition("+")[0], start

    return function
