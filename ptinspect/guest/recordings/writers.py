"""Who wrote a descriptor: its writes in a recorded run, found from the present position backwards.

A stretch of the recording is replayed with watchpoints on every virtual address at which the descriptor is
known to be mapped, and on its physical one, for the time in which the MMU is off. What the watchpoints miss
shows by its value: it is read physically at every stop, and before and after every write that was found.
Where two values that must be equal are not, the change in between is searched by division, to the very
instruction, whichever way it was made. The address that this instruction used is watched from then on, and
the stretch is replayed again. So a write is missed only if the next one undoes it before anybody looks, both
by a way that is used for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

from ptinspect.arch.a64 import words
from ptinspect.arch.a64_stores import writes, written
from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.sysregs import CpuState, mmu_on
from ptinspect.dataclass import dataclass
from ptinspect.errors import MiError, PtinspectError, TargetTimeout
from ptinspect.guest.guest import PAGE, Guest
from ptinspect.guest.recordings.timeline import replay_of
from ptinspect.guest.roots import Tables
from ptinspect.link.session import StopInfo

How = Literal["store", "hardware", "unknown"]
FIRST = 2_000_000
"""Instructions of the first stretch before the present position; each further one is eight times as long."""
LOOK = 25_000_000
"""Instructions between two looks at the value where nothing stops the guest."""
PARTS = 16
"""Into so many parts a stretch is divided where a change is searched."""
WALKER_BITS = 1 << 10 | 1 << 7
"""AF and AP[2], which the table walk itself sets and clears (Arm ARM D8.5.5, hardware management)."""
CALLS = 12
MOST = 200
"""Most writes of one descriptor that are looked at."""


@dataclass(frozen=True)
class Write:
    """One write to a descriptor."""

    position: int
    """Instructions executed, this one included."""
    before: int
    after: int
    how: How
    """By a store, by the walk of the CPU's MMU during this instruction, or in a way that nobody knows."""
    pc: int
    """The instruction."""
    place: str
    """The same with its symbol."""
    instruction: str
    """Disassembled."""
    va: int | None
    """The address at which the store found the descriptor: a physical one while the MMU is off."""
    cpu: int
    el: int
    mmu_on: bool | None
    task: str
    """Name of the task; empty where there is none, or nobody can tell."""
    pid: int | None
    calls: tuple[str, ...]
    """The chain of callers, innermost first."""


@dataclass(frozen=True)
class History:
    """The writes of one descriptor."""

    pa: PhysAddr
    first: int | None
    """Its value at reset: of the firmware, a loader of QEMU's, or RAM as it was; None if nobody looked."""
    now: int
    writes: tuple[Write, ...]
    """The oldest first."""
    whole: bool
    """They are all of them since reset."""
    cut: bool = False
    """There are more than could be looked at."""


@dataclass(frozen=True)
class _Point:
    """The value of a descriptor at a position."""

    position: int
    value: int
    hit: bool
    """A watchpoint stopped the guest here."""


class Writers:
    """Search the writes of some descriptors before the present position."""

    def __init__(self, guest: Guest, descriptors: Iterable[int], seconds: float, since: int = 0) -> None:
        """Note under which addresses they are mapped now. Raises UserError outside a replay.

        Where the last write of each is searched, none is looked for at or before the position `since`.
        """
        self.guest, self.session, self.replay = guest, guest.stopped, replay_of(guest)
        self.here, self.since = self.replay.position, since
        self.deadline = time.monotonic() + seconds
        self.aliases = {pa: set(self._aliases(pa)) for pa in dict.fromkeys(descriptors)}
        self.now = {pa: self._value(pa) for pa in self.aliases}
        self._seen: dict[tuple[int, int], Write | None] = {}

    def histories(self, *, every: bool) -> list[History]:
        """Return the last write of each, or every one since reset; none for what was never written."""
        first: dict[int, int] = {}
        try:
            with self.replay.without_breakpoints():
                found = self._stretch(0, self.here, list(self.aliases), every=True) if every else self._last()
                if every or not (self.since or all(found.get(pa) for pa in self.aliases)):
                    self.replay.go_to(0)
                    first = {pa: self._value(pa) for pa in self.aliases}
        finally:
            self.replay.go_to(self.here)
        return [
            History(
                PhysAddr(pa),
                first.get(pa),
                self.now[pa],
                tuple(found.get(pa, ())),
                whole=every,
                cut=len(found.get(pa, ())) >= MOST,
            )
            for pa in self.aliases
        ]

    def _last(self) -> dict[int, list[Write]]:
        found: dict[int, list[Write]] = {}
        end, width = self.here, FIRST
        while end > self.since and len(found) < len(self.aliases):
            begin = max(end - width, self.since)
            missing = [pa for pa in self.aliases if pa not in found]
            with self.replay.nearby(begin, self._left()):
                found |= {pa: w for pa, w in self._stretch(begin, end, missing, every=False).items() if w}
            end, width = begin, width * 8
        return found

    def _stretch(self, begin: int, end: int, wanted: list[int], *, every: bool) -> dict[int, list[Write]]:
        """Return the writes in a stretch, or the last one of each."""
        done: dict[int, list[Write]] = {}
        while True:
            known = {pa: frozenset(self.aliases[pa]) for pa in wanted}
            points = self._replayed(begin, end, known)
            for pa in sorted(wanted, key=lambda pa: points[pa][-1].position):
                if self.aliases[pa] == known[pa]:  # else a neighbour's address leads there sooner
                    done[pa] = self._writes(pa, points[pa], every)
            wanted = [pa for pa in wanted if self.aliases[pa] != known[pa] and (every or len(points[pa]) > 1)]
            if not wanted:
                return done
            if not every:  # what came after the last write that was found may have been hidden
                begin = min(
                    done[pa][-1].position - 1 if done.get(pa) else points[pa][-2].position for pa in wanted
                )

    def _replayed(self, begin: int, end: int, known: dict[int, frozenset[int]]) -> dict[int, list[_Point]]:
        """Replay a stretch, and return where the values may have been written."""
        self.replay.go_to(begin, self._left())
        points = {pa: [_Point(begin, self._value(pa), False)] for pa in known}
        numbers = {
            self.session.watch_access(va, 8): (pa, va) for pa, many in known.items() for va in sorted(many)
        }
        here = begin
        try:
            while here < end:
                stop = self.replay.run_once(min(end, here // LOOK * LOOK + LOOK), self._left())
                here = self.replay.position
                watched = numbers.get(stop.breakpoint or -1)
                if watched is None or here == end or self.session.gva2gpa(watched[1]) == watched[0]:
                    self._note(points, here, watched, stop)
                self.guest.progress("replaying", here - begin, end - begin)
        finally:
            for number in numbers:
                self.session.delete_breakpoint(number)
        return points

    def _note(
        self,
        points: dict[int, list[_Point]],
        at: int,
        watched: tuple[int, int] | None,
        stop: StopInfo,
    ) -> None:
        """Note where values are others than before, and where they may have been written again."""
        store = None
        for pa, known in points.items():
            value = self._value(pa)
            hit = watched is not None and value != known[-1].value
            if (
                watched is None or watched[0] == pa
            ):  # a stop at a limit hides a watchpoint's at the same place
                store = self._is_store(stop.pc - 4) if store is None else store
                hit = hit or store
            if hit or value != known[-1].value:
                known.append(_Point(at, value, hit))

    def _is_store(self, pc: int) -> bool:
        """Tell whether the instruction at an address writes memory; it may where it cannot be read."""
        code = self.session.gva2gpa(pc)
        with suppress(PtinspectError):
            return code is None or writes(words(self.session.memory.read(PhysAddr(code), 4))[0])
        return True

    # -- writes -------------------------------------------------------------------------------------

    def _writes(self, pa: int, points: list[_Point], every: bool) -> list[Write]:
        """Return the writes that lie at or between some points, the oldest first; or the last one."""
        found: list[Write] = []
        for before, point in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
            end, value = point.position, point.value
            if point.hit and (write := self._write(pa, end)) is not None:
                found.append(write)
                end, value = end - 1, write.before
            while value != before.value and (every or not found) and len(found) < MOST:
                with self.replay.nearby(before.position, self._left()):
                    changed = self._changed(pa, before.position, end, value)
                write = self._write(pa, changed)
                if write is None:
                    break
                found.append(write)
                end, value = changed - 1, write.before
            if (found and not every) or len(found) >= MOST:
                break
        return found[::-1]

    def _changed(self, pa: int, begin: int, end: int, value: int) -> int:
        """Return where a descriptor got the value that it has at the end of a stretch for good."""
        while end - begin > 1:
            self.replay.go_to(begin, self._left())
            parts = min(PARTS, end - begin)
            edges = [begin + (end - begin) * part // parts for part in range(1, parts)] + [end]
            last = begin
            for edge in edges[:-1]:
                self.replay.run_to(edge, self.deadline)
                if self._value(pa) != value:
                    last = edge
            begin, end = last, next(edge for edge in edges if edge > last)
        return end

    def _write(self, pa: int, position: int) -> Write | None:
        """Look at the instruction that ends at a position; None if it leaves the descriptor alone."""
        if (pa, position) not in self._seen:
            self._seen[pa, position] = self._looked_at(pa, position)
        return self._seen[pa, position]

    def _looked_at(self, pa: int, position: int) -> Write | None:
        self.replay.go_to(position - 1, self._left())
        state = self.session.cpu_state(self.session.current_cpu)
        before = self._value(pa)
        instruction = self._instruction()
        va = self._store_to(pa, state)
        task, pid = self._task(state)
        calls, place = self._calls(state), self.guest.place(state.pc)
        self.replay.run_to(position, self.deadline)
        after = self._value(pa)
        if va is None and before == after:
            return None
        if va is not None:
            for other in self.aliases:
                if other // PAGE == pa // PAGE:
                    self.aliases[other].add(va - pa % PAGE + other % PAGE)
        walker = not (before ^ after) & ~WALKER_BITS
        how: How = "store" if va is not None else "hardware" if walker else "unknown"
        return Write(
            position, before, after, how, state.pc, place, instruction, va, state.cpu, state.el,
            mmu_on(state), task, pid, calls,
        )  # fmt: skip

    def _instruction(self) -> str:
        """Return the instruction that is next; empty where the debugger cannot read it: the CPU still may."""
        try:
            text = self.session.gdb_command("x/i $pc").strip().rpartition("\t")
        except MiError:
            return ""
        return f"{text[0].rpartition(chr(9))[2]} {text[2]}".strip()

    def _store_to(self, pa: int, state: CpuState) -> int | None:
        """Return the address at which the next instruction stores to the descriptor; None if it does not."""
        code = self.session.gva2gpa(state.pc)
        with suppress(PtinspectError):
            found = None
            if code is not None:
                found = written(words(self.session.memory.read(code, 4))[0], state.x, state.sp)
            if found is not None:
                for page in range(found.address & ~(PAGE - 1), found.address + found.size, PAGE):
                    va = page | pa % PAGE
                    if found.covers(va) and self.session.gva2gpa(va) == pa:
                        return va
        return None

    def _task(self, state: CpuState) -> tuple[str, int | None]:
        from ptinspect.linux.running.tasks import Tasks

        with suppress(PtinspectError):
            task = Tasks(self.guest.view).current(state)
            if task is not None:
                return task.comm, task.pid
        return "", None

    def _calls(self, state: CpuState) -> tuple[str, ...]:
        from ptinspect.stack.depth import start_of_cpu

        with suppress(PtinspectError):
            found = start_of_cpu(self.guest.view, state).frames(CALLS)
            frames = [*found.frames[1:], *(() if found.last is None else (found.last,))]
            return tuple(self.guest.place(f.pc, returns=f.returns) for f in frames if f.kind != "end")
        return ()

    # -- small things -------------------------------------------------------------------------------

    def _aliases(self, pa: int) -> Iterable[int]:
        """Yield the addresses at which a descriptor is mapped now, and its own, for code without MMU."""
        from ptinspect.guest.mappings import ways_to

        yield pa
        for root in (None, "ttbr0", "ttbr1"):
            with suppress(PtinspectError):
                for hit in ways_to(self.guest, Tables(root), PhysAddr(pa), 16).items:
                    if hit.kind == "leaf":
                        yield VirtAddr(hit.va)

    def _value(self, pa: int) -> int:
        return int.from_bytes(self.session.memory.read(PhysAddr(pa), 8), "little")

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TargetTimeout("the writes were not found in time", "a longer --timeout")
        return left
