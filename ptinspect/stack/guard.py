"""What a guard of kernel stacks watches, and what a stop of the guest means to it; pure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from ptinspect.arch.esr import EC_DABT, decode_esr
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import UserError

if TYPE_CHECKING:
    from ptinspect.linux.running.stacks import Stack

Way = Literal["margin", "recursive-fault", "bad-stack", "other", "time", "interrupted"]
"""`margin`: a store into the guarded part; `recursive-fault`: the exception entry's own store faulted;
`bad-stack`: the kernel found too little room itself; the rest are not alarms."""
ALARMS: tuple[Way, ...] = ("margin", "recursive-fault", "bad-stack")
END_MARK = 32
"""Lowest bytes that are left out: the kernel itself writes its end mark there, and notes of its own about a
stack that is free (struct vm_stack, kernel/fork.c since 5.18)."""
ROOM = 1024
"""Bytes of a stack that no margin may take: a task could not run with less."""
MAX_STACKS = 1024
"""Stacks that are watched at most: each costs a comparison in every TLB miss of QEMU's."""
BURST, PER_SECOND = 8.0, 3.0
"""Stops for faults that are not an alarm: at once, and in the long run."""


def margin_bytes(text: str, size: int) -> int:
    """Read a margin in bytes, as 2K, or in percent of a stack. Raises UserError if it leaves no room."""
    matched = re.fullmatch(r"(\d+)([K%]?)", text)
    units = {"": 100, "K": 100 << 10, "%": size}
    value = 0 if matched is None else int(matched[1]) * units[matched[2]] // 100
    if not END_MARK < value <= size - ROOM:
        raise UserError(f"--margin {text}: not between {END_MARK} and {size - ROOM} bytes")
    return value


def watched(stack: Stack, margin: int) -> tuple[int, int]:
    """Return the first watched address of a stack and one past the last: the margin without the end mark."""
    return stack.base + END_MARK, stack.base + margin


def in_danger(stack: Stack, sp: int, margin: int) -> bool:
    """Tell whether a stack pointer is in the guarded part of a stack, or below the stack."""
    return stack.base - stack.size <= sp < watched(stack, margin)[1]


def few(wanted: Sequence[Stack], slots: int) -> list[Stack]:
    """Return the stacks to watch where no more than `slots` can be: those of running tasks come first."""
    return sorted(wanted, key=lambda stack: stack.task is None or stack.task.cpu is None)[:slots]


@dataclass
class Budget:
    """Stops that may be spent, refilled as time goes by."""

    left: float = BURST
    """Stops that may be spent now."""
    clock: Callable[[], float] = time.monotonic
    _since: float | None = None

    def refill(self) -> float:
        """Add what time has brought, and return what is left."""
        now = self.clock()
        if self._since is not None:
            self.left = min(BURST, self.left + (now - self._since) * PER_SECOND)
        self._since = now
        return self.left

    def spend(self) -> bool:
        """Take one; False if that was the last."""
        self.left = self.refill() - 1
        return self.left >= 1


@dataclass
class Wires:
    """What is armed: GDB's numbers, and what they mean."""

    ways: dict[int, Way] = field(default_factory=dict)
    """Number of a breakpoint -> the way down that it marks."""
    stacks: dict[int, Stack] = field(default_factory=dict)
    """Number of a watchpoint -> the stack."""
    entries: set[int] = field(default_factory=set)
    """Breakpoints that every fault in the kernel hits, not only a recursive one."""
    skipped: int = 0
    """Stacks that are not watched because there are too many."""
    false_hits: int = 0
    """Stops that were no alarm."""

    @property
    def bases(self) -> set[int]:
        """The stacks under watch."""
        return {stack.base for stack in self.stacks.values()}


def judge(
    wires: Wires, number: int | None, state: CpuState, margin: int, entry: list[tuple[int, int]]
) -> Way | None:
    """Return what a stop at breakpoint `number` is; None if it is a false hit of the guard's own.

    `entry`: where the exception entry stores registers, as (first address, one past the last).
    """
    if number is None:
        return "other"
    if number in wires.stacks:
        return "margin" if in_danger(wires.stacks[number], state.sp, margin) else None
    way = wires.ways.get(number)
    if way is None:
        return "other"
    if way == "recursive-fault" and not _recursive(state, entry):
        return None
    return way


def _recursive(state: CpuState, entry: list[tuple[int, int]]) -> bool:
    """Tell whether the exception that a CPU has just taken is a data abort of the entry's own store."""
    elr = state.system.get(translation_register(state, "ELR"), 0)
    esr = decode_esr(state.system.get(translation_register(state, "ESR"), 0))
    return esr.ec == EC_DABT and any(low <= elr < high for low, high in entry)
