"""The stores of the rewrite: recorded one by one, and the way to a chosen one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.levels import level_number
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames
from ptinspect.guest.rewrite.rewrite import NotReached, Runner, stopped_at
from ptinspect.guest.rewrite.state import STORES, Standing, standing

if TYPE_CHECKING:
    from ptinspect.link.gdb.recorder import Store
    from ptinspect.linux.kpti.progress import Target
    from ptinspect.linux.kpti.stores import Recording

SECONDS = 120.0
"""Limit of a recording without the last level."""
RATE = 500
"""Stores per second that a slow machine records; measured: 600 to 800 on two shared cores."""


@dataclass(frozen=True)
class Percent:
    """The point at which a share of the descriptors that the walk has to rewrite is done."""

    value: float
    """0 to 100."""


@dataclass(frozen=True)
class NthOfLevel:
    """The descriptor number `number`, from 1, of those of a level that are left."""

    level: int | str
    """As `arch.levels.level_number` takes it."""
    number: int


Place = Percent | NthOfLevel | Address
"""A point of the rewrite; an address: the leaf that maps it is next."""


def run_to(guest: Guest, place: Place, timeout: float) -> Target | NotReached:
    """Run until the boot CPU is about to load or store the descriptor at a point of the rewrite.

    Raises UserError if the point is passed already or there is none, TargetTimeout, GuestError.
    """
    from ptinspect.linux.kpti.code import POST_ORDER

    runner = Runner(guest, timeout)
    if not runner.reach():
        return NotReached(False, runner.reason)
    found = standing(guest, "(kpti until)")
    target = _descriptor(guest, found, place)
    runner.run_to_load(target)
    if found.state.algorithm != POST_ORDER or target.level < LEVEL_LAST:
        runner.run_to_store(target.level)
    return target


def _descriptor(guest: Guest, found: Standing, place: Place) -> Target:
    from ptinspect.linux.kpti.progress import by_address, by_number, by_percent

    snapshot, state = found.tables, found.state
    if isinstance(place, Percent):
        return by_percent(snapshot, state, place.value, found.total)
    if isinstance(place, NthOfLevel):
        level = level_number(place.level, snapshot.regime.start_level)
        return by_number(snapshot, state, level, place.number)
    return by_address(snapshot, state, place.value(GuestNames(guest)))


def record(
    guest: Guest, levels: Sequence[int | str] = (), timeout: float | None = None
) -> Recording | NotReached:
    """Record the stores to these levels (default: all but the last), to past the last store.

    Runs to the rewrite first if need be; its stores are made with the other CPUs stopped, which do nothing
    but wait for its end. What was recorded is kept for `judgement`, also where the guest stops halfway.
    Raises UserError then, or if there is no such level, GuestError, TargetError.
    """
    runner = Runner(guest, timeout or SECONDS)
    _claim(runner, levels)
    return _record(runner, levels, timeout) if runner.reach() else NotReached(False, runner.reason)


def _claim(runner: Runner, levels: Sequence[int | str]) -> None:
    """Make sure that there are slots for the stores before the guest runs, for its boot cannot be had back.

    The kernel's code tells which levels there are before it is known where it runs. Raises OutOfSlots.
    """
    code, slots = runner.code, runner.session.slots
    if slots.limited and code.stores:
        wanted = level_numbers(levels, min(store.level for store in code.stores))
        slots.claim(
            code.entry_va + offset
            for offset in (*(s.offset for s in code.stores if s.level in wanted), code.points["after_writes"])
        )


def _record(runner: Runner, levels: Sequence[int | str], timeout: float | None) -> Recording:
    from ptinspect.link.gdb.recorder import StoreRecorder
    from ptinspect.linux.kpti.progress import left_of
    from ptinspect.linux.kpti.stores import recording

    guest = runner.guest
    found_before = standing(guest, "(before kpti writes)")
    before, where = found_before.tables, found_before.state.position
    whole = where is not None and where.phase == "before"
    stores = _stores(runner, level_numbers(levels, before.regime.start_level))
    places = {store.pc: place for store, place in stores}
    if any(level == LEVEL_LAST for _, level in places.values()):
        count = left_of(before, found_before.state, LEVEL_LAST)
        guest.progress(f"recording up to {count} stores to pages: about {count // RATE + 1} seconds")
        if timeout is None:
            runner.deadline += 2 * count / RATE
    end = runner.point("after_writes")
    if whole:
        _to_first_write(runner)
    runner.session.slots.claim([*places, end])
    recorder = StoreRecorder(runner.session)
    recorder.start([store for store, _ in stores])
    begun = time.monotonic()
    try:
        stop = runner.run_to([end])
    finally:
        if runner.session.state.name == "STOPPED":
            recorder.stop()
            seconds = time.monotonic() - begun
            found = recording(
                before,
                runner.code.algorithm,
                places,
                recorder.take(),
                whole=whole and runner.session.stop.pc == end,
                seconds=seconds,
            )
            guest.kept[STORES] = found
    if stop.pc != end:
        raise UserError(
            f"{stopped_at(guest, stop, 'in the middle of the rewrite')}; {len(found)} stores recorded",
            "kpti verdict judges them; delete the breakpoint, and kpti writes records the others",
        )
    return found


def _to_first_write(runner: Runner) -> None:
    """Run until the other CPUs wait, and the boot CPU can be run without them."""
    first = runner.point("before_first_write")
    state = runner.boot()
    if state is not None and state.pc != first:
        stop = runner.run_to([first])
        if stop.pc != first:
            raise UserError(
                stopped_at(runner.guest, stop, "before the first store of the rewrite"),
                "break lists the breakpoints; delete all",
            )


def level_numbers(wanted: Sequence[int | str], start: int) -> set[int]:
    """Return the levels that are wanted, all but the last if none is. Raises UserError for no level."""
    if not wanted:
        return set(range(start, LEVEL_LAST))
    levels = {level_number(value, start) for value in wanted}
    for level in levels:
        if not start <= level <= LEVEL_LAST:
            raise UserError(f"there is no level {level} here", f"levels: {start} to {LEVEL_LAST}")
    return levels


def _stores(runner: Runner, levels: set[int]) -> list[tuple[Store, tuple[int, int]]]:
    """Return the stores of these levels, each with its offset and level."""
    from ptinspect.link.gdb.recorder import Store

    windowed = runner.code.algorithm == "temp-pgd-pre-order"
    bits = runner.guest.view.regime.granule_bits
    found = []
    for site in runner.code.stores:
        if site.level in levels:
            pc = runner.physical(runner.code.entry_va + site.offset)
            window = (0, bits) if windowed else (None, 0)
            store = Store(pc, site.register, site.base, site.displacement, *window)
            found.append((store, (site.offset, site.level)))
    if not found:
        raise UserError("the kernel's code has no store for these levels")
    return found
