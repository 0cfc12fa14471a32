"""Make a trace of recorded instructions, hits or samples."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptinspect.stack.trace import Contributions, Deepest, Function, Part, Point, TracedStack

MAX_POINTS = 20_000
"""Points that a trace keeps."""
EL_MASK = 0xC
"""PSTATE bits [3:2]: the exception level (Arm ARM C5.2.2, CurrentEL)."""

Outer = Sequence[tuple[int, str, int]]
"""Frames that were on the stack when the trace began: SP, function, bytes; the innermost first."""


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

    def add_steps(self, records: NDArray[np.void], first: int = 0) -> None:
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
        """Return the most that each function had of its own, where every instruction was seen."""
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
