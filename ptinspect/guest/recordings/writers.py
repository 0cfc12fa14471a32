"""Who wrote a descriptor: its writes in a recorded run, found from the present position backwards.

A stretch of the recording is replayed, and stops for stores to every virtual address at which the descriptor
is known to be mapped, and to its physical one, for the time in which the MMU is off. What these miss shows by
its value: it is read physically at every stop, and at intervals. Where two values that must be equal are not,
the change in between is searched by division, to the very instruction, whichever way it was made. The address
that this instruction used is watched from then on, and the stretch is replayed again. So a write is missed
only if the next one undoes it before anybody looks, both by a way that is used for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from ptinspect.arch.a64_stores import written
from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, TargetTimeout
from ptinspect.guest.guest import PAGE, Guest
from ptinspect.guest.mappings import mapped_at
from ptinspect.guest.recordings.timeline import replay_of
from ptinspect.guest.writer import Writer, word_at, writer_at
from ptinspect.memory.source import number_at

if TYPE_CHECKING:
    from ptinspect.link.replay_scan import Hit

How = Literal["store", "hardware", "unknown"]
LOOK = 25_000_000
"""Instructions between two looks at the value where nothing stops the guest."""
PARTS = 200
"""Into so many parts a stretch is divided where a change is searched."""
WALKER_BITS = 1 << 10 | 1 << 7
"""AF and AP[2], which the table walk itself sets and clears (Arm ARM D8.5.5, hardware management)."""
MOST = 200
"""Most writes of one descriptor that are looked at."""


@dataclass(frozen=True)
class Write(Writer):
    """One write to a descriptor."""

    pa: PhysAddr
    position: int
    """Instructions executed, this one included."""
    before: int
    after: int
    how: How
    """By a store, by the walk of the CPU's MMU during this instruction, or in a way that nobody knows."""
    va: int | None
    """The address at which the store found the descriptor: a physical one while the MMU is off."""


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
    before: int | None = None
    """What it was one instruction before, which stored it; None where nobody knows of a store."""


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
        self._looks: dict[int, Mapping[int, int]] = {}
        """The values at positions."""

    def histories(self, *, every: bool) -> list[History]:
        """Return the last write of each, or every one since reset; none for what was never written."""
        first: dict[int, int] = {}
        try:
            with self.replay.without_breakpoints():
                found = self._stretch(0, self.here, list(self.aliases), every=True) if every else self._last()
                writes = self._described(found)
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
                tuple(writes[pa]),
                whole=every,
                cut=len(writes[pa]) >= MOST,
            )
            for pa in self.aliases
        ]

    def _last(self) -> dict[int, list[int]]:
        """Return the position after the last write of each, where there is one.

        The values at saved states tell where each was changed last: there it is learned by which address.
        """
        changed: dict[tuple[int, int], list[int]] = {}
        for pa in self.aliases:
            changed.setdefault(self._last_change(pa), []).append(pa)
        for (begin, end), wanted in changed.items():
            if end < self.here:
                points = self._replayed(begin, end, {pa: frozenset(self.aliases[pa]) for pa in wanted})
                for pa in wanted:
                    self._writes(pa, points[pa], every=False)
        begin = min((begin for begin, _ in changed), default=self.here)
        found = self._stretch(begin, self.here, list(self.aliases), every=False)
        return {pa: at for pa, at in found.items() if at}

    def _last_change(self, pa: int) -> tuple[int, int]:
        """Return two neighbours among the saved states of which only the first has another value than now.

        There may be later changes that were undone. The start and the present where there is no such state.
        """
        places = [
            self.since,
            *(at + 1 for at in sorted(self.replay.states) if self.since < at < self.here - 1),
        ]
        low, high = 0, len(places)
        while high - low > 1:
            middle = (low + high) // 2
            if self._look(places[middle])[pa] != self.now[pa]:
                low = middle
            else:
                high = middle
        if low == 0 and self._look(places[0])[pa] == self.now[pa]:
            high = len(places)
        return places[low], [*places, self.here][high]

    def _look(self, position: int) -> Mapping[int, int]:
        """Return all values at a position."""
        if position not in self._looks:
            self.replay.go_to(position, self._left())
            self._looks[position] = {pa: self._value(pa) for pa in self.aliases}
        return self._looks[position]

    def _described(self, found: Mapping[int, Sequence[int]]) -> dict[int, list[Write]]:
        """Look at all writes, on one way forwards."""
        writes: dict[int, list[Write]] = {pa: [] for pa in self.aliases}
        for at, pa in sorted((at, pa) for pa, positions in found.items() for at in positions):
            if (write := self._write(pa, at)) is not None:
                writes[pa].append(write)
        return writes

    def _stretch(self, begin: int, end: int, wanted: list[int], *, every: bool) -> dict[int, list[int]]:
        """Return the positions after the writes in a stretch, or after the last one of each."""
        done: dict[int, list[int]] = {}
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
                begin = min(done[pa][-1] - 1 if done.get(pa) else points[pa][-2].position for pa in wanted)

    def _replayed(self, begin: int, end: int, known: dict[int, frozenset[int]]) -> dict[int, list[_Point]]:
        """Replay a stretch, and return where the values were written, or may have been."""
        self.replay.go_to(begin, self._left())
        points = {pa: [_Point(begin, self._value(pa))] for pa in known}
        watched, here = sorted(frozenset().union(*known.values())), begin
        while here < end:
            limit = min(end, here // LOOK * LOOK + LOOK)
            seen = self.replay.scan(watched, tuple(known), [limit], self.deadline)
            for hit in seen.hits:
                self._note(points, known, hit)
            for look in seen.looks:
                for line, value in zip(points.values(), look.values, strict=True):
                    if value != line[-1].value:
                        line.append(_Point(look.position, value))
            here = (seen.looks or seen.hits)[-1].position
            self.guest.progress("replaying", here - begin, end - begin)
        return points

    @staticmethod
    def _note(points: dict[int, list[_Point]], known: dict[int, frozenset[int]], hit: Hit) -> None:
        """Note what an instruction stored, and what had changed before it."""
        area = None if hit.code is None else written(hit.code, hit.x, hit.sp)
        for (pa, line), before, after in zip(points.items(), hit.before, hit.after, strict=True):
            if before != line[-1].value:
                line.append(_Point(hit.position - 1, before))
            here = hit.pa is not None and hit.pa // PAGE == pa // PAGE
            same = hit.watched // PAGE * PAGE + pa % PAGE
            if before != after or (here and same in known[pa] and area is not None and area.covers(same)):
                line.append(_Point(hit.position, after, before))

    # -- writes -------------------------------------------------------------------------------------

    def _writes(self, pa: int, points: list[_Point], every: bool) -> list[int]:
        """Return the positions after the writes at or between some points, or after the last one."""
        found: list[int] = []
        for before, point in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
            end, value = point.position, point.value
            if point.before is not None:
                found.append(end)
                end, value = end - 1, point.before
            while value != before.value and (every or not found) and len(found) < MOST:
                changed = self._changed(pa, before.position, end, value)
                write = self._write(pa, changed)
                if write is None:
                    break
                found.append(changed)
                end, value = changed - 1, write.before
            if (found and not every) or len(found) >= MOST:
                break
        return found[::-1]

    def _changed(self, pa: int, begin: int, end: int, value: int) -> int:
        """Return where a descriptor got the value that it has at the end of a stretch for good.

        All values are noted at each look, since others often change nearby.
        """
        while True:
            between = sorted(at for at in self._looks if begin < at < end)
            begin = max((at for at in between if self._looks[at][pa] != value), default=begin)
            end = next((at for at in between if at > begin), end)
            if end - begin <= 1:
                return end
            self.replay.go_to(begin, self._left())
            parts = min(PARTS, end - begin)
            edges = [begin + (end - begin) * part // parts for part in range(1, parts)]
            for look in self.replay.scan((), tuple(self.aliases), edges, self.deadline).looks:
                self._looks[look.position] = dict(zip(self.aliases, look.values, strict=True))

    def _write(self, pa: int, position: int) -> Write | None:
        """Look at the instruction that ends at a position; None if it leaves the descriptor alone."""
        if (pa, position) not in self._seen:
            self._seen[pa, position] = self._looked_at(pa, position)
        return self._seen[pa, position]

    def _looked_at(self, pa: int, position: int) -> Write | None:
        self.replay.go_to(position - 1, self._left())
        state = self.session.cpu_state(self.session.current_cpu)
        before = self._value(pa)
        va, writer = self._store_to(pa, state), writer_at(self.guest, state, state.pc)
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
            **vars(writer), pa=PhysAddr(pa), position=position, before=before, after=after, how=how, va=va
        )

    def _store_to(self, pa: int, state: CpuState) -> int | None:
        """Return the address at which the next instruction stores to the descriptor; None if it does not."""
        word = word_at(self.guest, self.session.gva2gpa(state.pc))
        with suppress(PtinspectError):
            found = None if word is None else written(word, state.x, state.sp)
            if found is not None:
                for page in range(found.address & ~(PAGE - 1), found.address + found.size, PAGE):
                    va = page | pa % PAGE
                    if found.covers(va) and self.session.gva2gpa(va) == pa:
                        return va
        return None

    # -- small things -------------------------------------------------------------------------------

    def _aliases(self, pa: int) -> Iterable[int]:
        """Yield the addresses at which a descriptor is mapped now, and its own, for code without MMU."""
        yield pa
        yield from mapped_at(self.guest, PhysAddr(pa))

    def _value(self, pa: int) -> int:
        return number_at(self.session.memory, pa)

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TargetTimeout("the writes were not found in time", "a longer --timeout")
        return left
