"""How the depth of stacks went over a stretch of execution: minima, where, and who contributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

STEP, LADDER, SAMPLE = "step", "ladder", "sample"
"""Every instruction; every new depth, by watchpoints; SP at intervals."""
UNITS = {STEP: "instructions", LADDER: "milliseconds", SAMPLE: "milliseconds"}
"""What Point.at counts, by method."""


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
    """The first address behind it."""

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
    """The stack pointer."""
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
    """The program counter."""
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
    """Where and why it ended."""
    steps: int
    """Instructions, watchpoint hits or samples that were recorded."""
    seconds: float
    """How long it took."""
    stacks: tuple[TracedStack, ...]
    """The stacks that SP was on."""
    points: tuple[Point, ...]
    """SP whenever it changed, in order of time."""
    deepest: tuple[Deepest, ...]
    """The deepest point of each stack, the deepest stack first."""
    functions: tuple[Part, ...] = field(default=())
    """The most that each function had on a stack at once, by size; empty if the method cannot tell."""
    thinned: bool = False
    """True if points were left out; the deepest ones are all there."""


Function = Callable[[int], tuple[str, int]]
"""Gives the function that an address lies in: its name and its first address."""


class Contributions:
    """Follow calls by SP and PC alone, and count what each function takes off SP itself.

    A function is entered at its first instruction; it is left when the program counter is in another
    one anywhere else: its caller's, after a return, or a tail call's. Bytes that a function takes while
    it calls nobody are its own, so that the sum over the chain is the depth since the trace began.
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
