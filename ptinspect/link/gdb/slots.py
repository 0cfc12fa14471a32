"""The few hardware breakpoints and watchpoints of a CPU under KVM: how many, who has them, what fits one.

Under KVM QEMU has the CPU compare addresses, with the debug registers that the host's CPU has, one
pool for all CPUs (QEMU target/arm/kvm64.c, insert_hw_breakpoint and insert_hw_watchpoint); it refuses
one too many with E22. Under TCG there is no limit. This module neither asks nor sets anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Literal

from ptinspect.dataclass import dataclass

Kind = Literal["breakpoint", "watchpoint"]
LARGEST_AREA = 1 << 15
"""Bytes that one watchpoint can cover: QEMU reads four bits of the mask back (check_watchpoint_in_range),
and takes a hit in a larger area for one of the guest's own."""
WORD = 8
"""Bytes that DBGWCR.BAS can choose from (Arm ARM D2.10.5)."""
REFUSED = r"(?i)(?:Could not|Cannot) insert (?:hardware )?(?:breakpoint|watchpoint)|^Command aborted"
"""What GDB prints if the stub refuses a breakpoint, at the moment when the guest should run."""


class Purpose(IntEnum):
    """Tell what a slot is for; the lower the number, the more it matters.

    The nets of `stack guard` come first: what they miss is lost with the stack. Then the points of the
    rewrite, which happens once in a boot. The user's own can be set again. Nobody's breakpoint is taken
    away for another: the order tells which ones a command does without, and which one to delete.
    """

    GUARD = 1
    REWRITE = 2
    USER = 3
    PLACE = 4
    """Where it becomes known where the kernel runs."""


OWNERS = {
    Purpose.GUARD: "stack guard",
    Purpose.REWRITE: "kpti",
    Purpose.USER: "yours",
    Purpose.PLACE: "for the kernel's place",
}


@dataclass(frozen=True)
class Capacity:
    """Hold how many slots there are."""

    breakpoints: int
    watchpoints: int
    source: str
    """How that is known."""

    def of(self, kind: Kind) -> int:
        """Return the number of one kind."""
        return self.breakpoints if kind == "breakpoint" else self.watchpoints


@dataclass(frozen=True)
class Held:
    """Describe what holds a slot."""

    number: int
    """GDB's number."""
    kind: Kind
    place: str
    """Address, or what is watched: two of the same share a slot."""
    purpose: Purpose = Purpose.USER


@dataclass(frozen=True)
class Usage:
    """Hold how many slots are used, for `status`."""

    capacity: Capacity
    breakpoints: int
    watchpoints: int

    def as_json(self) -> dict[str, int]:
        """Return the numbers."""
        return {
            "breakpoints": self.capacity.breakpoints,
            "breakpoints_used": self.breakpoints,
            "breakpoints_free": max(self.capacity.breakpoints - self.breakpoints, 0),
            "watchpoints": self.capacity.watchpoints,
            "watchpoints_used": self.watchpoints,
            "watchpoints_free": max(self.capacity.watchpoints - self.watchpoints, 0),
        }

    def __str__(self) -> str:
        """Write it as people read it."""
        total = self.capacity
        breakpoints = f"{self.breakpoints} of {total.breakpoints} hardware breakpoints in use"
        return f"{breakpoints}, {self.watchpoints} of {total.watchpoints} watchpoints ({total.source})"


def capacity_of(dfr0: int) -> Capacity:
    """Return what ID_AA64DFR0_EL1 holds: BRPs and WRPs, each less one (Arm ARM D19.2.59)."""
    return Capacity((dfr0 >> 12 & 15) + 1, (dfr0 >> 20 & 15) + 1, "ID_AA64DFR0_EL1")


def dfr0_of(registers: Mapping[str, int]) -> int | None:
    """Return ID_AA64DFR0_EL1, under whatever name the stub gives it; None if it does not offer it."""
    return registers.get("ID_AA64DFR0_EL1", registers.get("ID_AA64DFR0"))


def used(held: Iterable[Held], kind: Kind) -> int:
    """Count slots in use: GDB sets one for all breakpoints at the same place."""
    return len({each.place for each in held if each.kind == kind})


def missing(held: Sequence[Held], kind: Kind, total: int, places: Iterable[str]) -> int:
    """Return how many slots are missing to set these as well; 0 if they fit."""
    taken = {each.place for each in held if each.kind == kind}
    return max(len(taken | set(places)) - total, 0)


def going(held: Iterable[Held]) -> list[list[Held]]:
    """Return what holds each slot, the slot that matters least first, and of those the latest."""
    slots: dict[str, list[Held]] = {}
    for each in held:
        slots.setdefault(each.place, []).append(each)
    return sorted(
        slots.values(), key=lambda slot: (-min(e.purpose for e in slot), -max(e.number for e in slot))
    )


def shortage(held: Sequence[Held], kind: Kind, total: int, lacking: int) -> tuple[str, str]:
    """Return the message that slots have run out, and a hint what to do about it."""
    mine = sorted((each for each in held if each.kind == kind), key=lambda each: each.number)
    who = ", ".join(f"{each.number} ({OWNERS[each.purpose]})" for each in mine)
    taken = f"in use: {who}" if who else "none is in use"
    message = f"under KVM the CPU has {total} hardware {kind}s, {lacking} too few; {taken}"
    order = going(mine)
    if len(order) < lacking:
        return message, "the command needs more than this CPU has"
    numbers = [each.number for slot in order[:lacking] for each in slot]
    return message, f"delete {' '.join(map(str, numbers))}"


def fitting(wanted: Sequence[int], free: int | None) -> tuple[list[int], list[int]]:
    """Part addresses, the most important first, into those that get a slot and those that do not."""
    unique = list(dict.fromkeys(wanted))
    return (unique, []) if free is None else (unique[:free], unique[free:])


def watch_fault(address: int, length: int) -> str:
    """Return why one watchpoint of QEMU's under KVM cannot watch exactly these bytes; empty if it can.

    Up to 8 bytes must lie in one aligned word; more must be a power of two, aligned to itself. QEMU cuts off
    others, or moves them down, without a message (kvm64.c, insert_hw_watchpoint).
    """
    if length <= 0:
        return "no bytes"
    if length <= WORD:
        return "" if address % WORD + length <= WORD else "it crosses an aligned word of 8 bytes"
    if length & (length - 1):
        return f"{length} bytes are no power of two"
    if address % length:
        return f"{address:#x} is not aligned to {length} bytes"
    return "" if length <= LARGEST_AREA else f"more than {LARGEST_AREA} bytes"


def largest_area(low: int, high: int) -> tuple[int, int] | None:
    """Return the largest part of [low, high) that one watchpoint can watch: address and length.

    Of several of one size the highest, which a stack that grows down reaches first.
    """
    size = LARGEST_AREA
    while size >= WORD:
        start = (high // size - 1) * size
        if start >= low:
            return start, size
        size //= 2
    return None
