"""How the depth of stacks went over a stretch of execution: minima, where, and who contributed."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.dataclass import dataclass, field

STEP, LADDER, SAMPLE = "step", "ladder", "sample"
"""Every instruction; every new depth, by watchpoints; SP at intervals."""
UNITS = {STEP: "instructions", LADDER: "milliseconds", SAMPLE: "milliseconds"}
"""What Point.at counts, by method."""
HOW = {
    STEP: "every instruction of one CPU, interrupts held back",
    LADDER: "a watchpoint below the lowest SP so far",
    SAMPLE: "SP at intervals; what lies between is missed",
}
"""What each method sees."""
Function = Callable[[int], tuple[str, int]]
"""Gives the function that an address lies in: its name and its first address."""
MAX_POINTS = 20_000
"""Points that a trace keeps."""
EL_MASK = 0xC
"""PSTATE bits [3:2]: the exception level (Arm ARM C5.2.2, CurrentEL)."""
Outer = Sequence[tuple[int, str, int]]
"""Frames that were on the stack when the trace began: SP, function, bytes; the innermost first."""


@dataclass(frozen=True)
class TracedStack:
    """Name a stack that SP was on."""

    kind: str
    """task, irq, overflow, …"""
    owner: str
    """The task, `comm (pid)`, or the CPU, `cpu 0`."""
    base: int
    """Its lowest address."""
    top: int
    """The first address past the end."""

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.top - self.base


@dataclass(frozen=True)
class Point:
    """Where SP was at one moment."""

    at: int
    """When, in the unit of the trace."""
    stack: int
    """Position in Trace.stacks; -1 on none that is known, or in user mode."""
    sp: int
    pc: int
    """The program counter: the instruction that is executed next."""


@dataclass(frozen=True)
class Part:
    """What one function has on a stack."""

    function: str
    """Its name, or an address."""
    size: int
    """Bytes of its own."""


@dataclass(frozen=True)
class Deepest:
    """The deepest point of one stack."""

    stack: int
    """Position in Trace.stacks."""
    used: int
    """Bytes in use there."""
    at: int
    """When, in the unit of the trace."""
    pc: int
    place: str
    """The same as `function+0x10`."""
    chain: tuple[Part, ...] = ()
    """The functions on the stack, the innermost first; as far as they are known."""


@dataclass(frozen=True)
class Trace:
    """Hold one trace."""

    method: str
    """STEP, LADDER or SAMPLE."""
    kernel: str
    """The kernel's banner, escaped; empty if unknown."""
    began: str
    """Where it began, as `0x… (function+0x10)`."""
    ended: str
    steps: int
    """Instructions, watchpoint hits or samples that were recorded."""
    seconds: float
    stacks: tuple[TracedStack, ...]
    points: tuple[Point, ...]
    """SP whenever it changed, in order of time."""
    deepest: tuple[Deepest, ...]
    """The deepest point of each stack, the deepest stack first."""
    functions: tuple[Part, ...] = field(default=())
    """The most that each function had on a stack at once, by size; empty if not measured."""
    thinned: bool = False
    """True if points were left out; the deepest ones are all there."""


class Contributions:
    """Follow calls by SP and PC alone, and count what each function takes off SP itself.

    A function is entered at its first instruction; it is left when the program counter is in another
    one anywhere else: its caller's, after a return, or a tail call's. Bytes that a function takes while
    it calls no other are its own, so that the sum over the chain is the depth since the trace began.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._chain: list[tuple[str, int]] = []
        self.most: dict[str, int] = {}
        """Function -> the most bytes of its own."""

    def step(self, pc: int, sp: int) -> None:
        """Take the next instruction on this stack."""
        name, start = self._function(pc)
        while len(self._chain) > 1 and self._chain[-1][1] < sp:
            self._chain.pop()
        if self._chain and self._chain[-1][1] < sp:
            self._chain[-1] = (self._chain[-1][0], sp)
        if not self._chain or (pc == start and name != self._chain[-1][0]):
            self._chain.append((name, sp))
        elif pc == start and sp < self._chain[-1][1]:
            self._chain.append((name, sp))  # it calls itself
        elif name != self._chain[-1][0]:
            self._leave(name, sp)
        name, entered = self._chain[-1]
        if entered - sp > self.most.get(name, -1):
            self.most[name] = entered - sp

    def _leave(self, name: str, sp: int) -> None:
        """Go back to the caller of that name; where there is none, it was there before the trace."""
        for depth in range(len(self._chain) - 1, -1, -1):
            if self._chain[depth][0] == name and self._chain[depth][1] >= sp:
                del self._chain[depth + 1 :]
                return
        entered = self._chain[-1][1]
        self._chain[-1] = (name, max(entered, sp))

    def chain(self, sp: int) -> tuple[Part, ...]:
        """Return who has how much of the stack now, the innermost first."""
        found, below = [], sp
        for name, entered in reversed(self._chain):
            found.append(Part(name, entered - below))
            below = entered
        return tuple(found)


def thin(points: Sequence[Point], most: int) -> tuple[tuple[Point, ...], bool]:
    """Return at most about `most` points, the extremes of each interval and stack among them."""
    if len(points) <= most:
        return tuple(points), False
    width = 4 * len(points) // most + 1
    kept: list[Point] = []
    for start in range(0, len(points), width):
        part = points[start : start + width]
        chosen = {0, len(part) - 1}
        for stack in {point.stack for point in part}:
            mine = [i for i, point in enumerate(part) if point.stack == stack]
            chosen |= {min(mine, key=lambda i: part[i].sp), max(mine, key=lambda i: part[i].sp)}
        kept += [part[i] for i in sorted(chosen)]
    return tuple(kept), True


@dataclass(frozen=True)
class Compared:
    """Compare what one name has in two traces."""

    name: str
    """A stack's owner, or a function."""
    before: int | None
    """Bytes in the first trace; None if it is not there."""
    after: int | None
    """Bytes in the second."""

    @property
    def grown(self) -> int:
        """Bytes that came on top; negative if it shrank."""
        return (self.after or 0) - (self.before or 0)


def compare(a: Trace, b: Trace) -> tuple[tuple[Compared, ...], tuple[Compared, ...]]:
    """Compare two traces: stacks by kind and owner, then functions; what grew most comes first."""
    return _compared(_stacks(a), _stacks(b)), _compared(_functions(a), _functions(b))


def _stacks(trace: Trace) -> dict[str, int]:
    found: dict[str, int] = {}
    for deepest in trace.deepest:
        stack = trace.stacks[deepest.stack]
        name = f"{stack.kind} stack of {stack.owner}"
        found[name] = max(deepest.used, found.get(name, 0))
    return found


def _functions(trace: Trace) -> dict[str, int]:
    found = {part.function: part.size for part in trace.functions}
    for deepest in trace.deepest if not found else ():
        for part in deepest.chain:
            found[part.function] = max(part.size, found.get(part.function, 0))
    return found


def _compared(a: dict[str, int], b: dict[str, int]) -> tuple[Compared, ...]:
    rows = [Compared(name, a.get(name), b.get(name)) for name in {**a, **b}]
    return tuple(sorted(rows, key=lambda row: (-row.grown, row.name)))


class Finder:
    """Find the stack that an address is on."""

    def __init__(self, stacks: Iterable[TracedStack]) -> None:
        """`stacks` may overlap in their first and last byte only."""
        self._stacks = sorted(stacks, key=lambda stack: stack.base)
        self._bases = [stack.base for stack in self._stacks]
        self.used: list[TracedStack] = []
        """Stacks that were found so far; the positions in it are what `find` returns."""
        self._number: dict[TracedStack, int] = {}

    def find(self, sp: int) -> int:
        """Return the position in `used` of the stack that SP is on; -1 if it is on none."""
        at = bisect.bisect_right(self._bases, sp) - 1
        for stack in self._stacks[max(at - 1, 0) : at + 1]:
            if stack.base < sp <= stack.top or stack.base <= sp < stack.top:
                if stack not in self._number:
                    self._number[stack] = len(self.used)
                    self.used.append(stack)
                return self._number[stack]
        return -1


@dataclass
class Series:
    """Collect points and what is deepest."""

    finder: Finder
    function: Function
    place: Callable[[int], str]
    outer: Outer = ()
    points: list[Point] = field(default_factory=list)
    _deepest: dict[int, Deepest] = field(default_factory=dict)
    _own: dict[int, Contributions] = field(default_factory=dict)
    _last: tuple[int, int] = (-2, 0)

    def add_steps(self, records: NDArray[np.void], first: int) -> None:
        """Take every instruction of one CPU; SP is what it was before each. `first`: its number."""
        rows = zip(*(records[name].tolist() for name in ("pc", "sp", "pstate")), strict=True)
        for at, (pc, sp, pstate) in enumerate(rows, first):
            stack = self.finder.find(sp) if pstate & EL_MASK else -1
            if (stack, sp) != self._last:
                self.points.append(Point(at, stack, sp, pc))
                self._last = (stack, sp)
            if stack < 0:
                continue
            own = self._own.setdefault(stack, Contributions(self.function))
            own.step(pc, sp)
            if self._is_new(stack, sp):
                self._note(Point(at, stack, sp, pc), self._whole(own.chain(sp), sp))

    def add(self, point: Point, chain: Sequence[Part] = ()) -> None:
        """Take one hit or sample, with the functions that are on the stack."""
        self.points.append(point)
        if point.stack >= 0 and self._is_new(point.stack, point.sp):
            self._note(point, tuple(chain))

    def deepest(self) -> tuple[Deepest, ...]:
        """Return the deepest point of each stack, with what the code there is called."""
        found = sorted(self._deepest.values(), key=lambda d: -d.used)
        return tuple(Deepest(d.stack, d.used, d.at, d.pc, self.place(d.pc), d.chain) for d in found)

    def functions(self) -> tuple[Part, ...]:
        """Return the most that each function had of its own, where every instruction was recorded."""
        most: dict[str, int] = {}
        for own in self._own.values():
            for name, size in own.most.items():
                most[name] = max(size, most.get(name, 0))
        return tuple(
            Part(name, size) for name, size in sorted(most.items(), key=lambda item: (-item[1], item[0]))
        )

    def _is_new(self, stack: int, sp: int) -> bool:
        deepest = self._deepest.get(stack)
        return deepest is None or self.finder.used[stack].top - sp > deepest.used

    def _note(self, point: Point, chain: tuple[Part, ...]) -> None:
        used = self.finder.used[point.stack].top - point.sp
        self._deepest[point.stack] = Deepest(point.stack, used, point.at, point.pc, "", chain)

    def _whole(self, chain: tuple[Part, ...], sp: int) -> tuple[Part, ...]:
        """Return the chain with the frames above it that were there when the trace began."""
        above = sp + sum(part.size for part in chain)
        return (*chain, *(Part(name, size) for start, name, size in self.outer if start >= above))
