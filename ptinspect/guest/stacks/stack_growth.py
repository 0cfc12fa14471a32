"""How much deeper stacks get while the guest runs: scan or paint them, run, and scan again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, TargetTimeout
from ptinspect.guest.guest import Guest
from ptinspect.guest.run_control import run_for, until
from ptinspect.guest.stacks.kernel_stacks import lowest_sp, open_stacks, task_of
from ptinspect.link.journal import PAINT, Change
from ptinspect.linux.running.stacks import Stack, Stacks
from ptinspect.stack import highwater
from ptinspect.stack.highwater import HighWater


@dataclass(frozen=True)
class Growth:
    """The high water of one stack, before and after."""

    stack: Stack
    before: HighWater
    """How deep it had been; where it was painted, how deep it was."""
    after: HighWater
    """How deep it has been since."""
    painted: bool
    """Whether its free part was painted."""

    @property
    def grown(self) -> int:
        """Bytes that it got deeper than it was known to have been; 0 where it is not known."""
        if self.after.depth is None:
            return 0
        return max(self.after.depth - (self.before.depth or 0), 0)


@dataclass(frozen=True)
class Growths:
    """How a run went."""

    stacks: Sequence[Growth]
    """Those that could be read, what grew most first."""
    ended: str


def stacks_of(guest: Guest, whose: int | str) -> list[Stack]:
    """Return the stack of the task with a PID, or those of all tasks and the CPUs' IRQ stacks."""
    stacks = open_stacks(guest)
    if whose != "any":
        return [stacks.of_task(task_of(stacks, whose))]
    found = [stack for state in stacks.view.states for stack in stacks.of_cpu(state) if stack.kind == "irq"]
    return found + [stacks.of_task(task) for task in stacks.tasks.all().tasks]


def growths(
    guest: Guest, wanted: Sequence[Stack], places: Sequence[int], seconds: float, *, paint: bool = False
) -> Growths:
    """Let the guest run to one of the places or for a time, and return how deep these stacks got meanwhile.

    With `paint` their free part is filled with a pattern first, and what is left of it is taken out again.
    """
    stacks = open_stacks(guest)
    with _paint(guest, stacks, wanted if paint else ()) as painted:
        before = {**_scan(guest, wanted), **painted}
        ended = _run(guest, places, seconds)
        after = _scan(guest, wanted)
    found = [Growth(stack, before[stack.base], after[stack.base], stack.base in painted) for stack in wanted]
    return Growths(sorted(found, key=lambda each: (-each.grown, -(each.after.depth or 0))), ended)


def _scan(guest: Guest, wanted: Sequence[Stack]) -> Mapping[int, HighWater]:
    words = highwater.read_stacks(guest.view, wanted)
    return {stack.base: highwater.high_water(stack, words.get(stack.base)) for stack in wanted}


@contextlib.contextmanager
def _paint(guest: Guest, stacks: Stacks, wanted: Sequence[Stack]) -> Iterator[Mapping[int, HighWater]]:
    """Paint the free part of stacks, and take what is left of the paint out again at the end.

    Gives how deep those are that were painted: what was there before does not count.
    """
    painted: dict[int, HighWater] = {}
    changes: list[Change] = []
    for stack in wanted:
        sp = lowest_sp(stacks, stack)
        words = [] if sp is None else highwater.free_words(stacks.view, stack, sp)
        changes += [Change(pa, 0, highwater.PAINT, count=count, what=PAINT) for pa, count in words]
        if sp is not None and words:
            painted[stack.base] = HighWater(sp, stack.top - sp, "SP when it was painted")
    try:
        guest.stopped.changes.make(changes)
        yield painted
    finally:
        if changes and guest.state == "stopped":
            with contextlib.suppress(PtinspectError):
                guest.stopped.changes.undo(changes)


def _run(guest: Guest, places: Sequence[int], seconds: float) -> str:
    """Let the guest run; return why it stopped."""
    try:
        if not places:
            stop = run_for(guest, seconds)
            return "the time is over" if stop is None else f"stopped: {stop.words}"
        with contextlib.suppress(TargetTimeout):
            found = until(guest, places, seconds)
            return "reached" if found.reached else f"stopped: {found.stop.words}"
        return "the time is over"
    except KeyboardInterrupt:
        return "interrupted"
