"""Watches of descriptors: a live guest stops when one is written, whichever way that is done.

Watchpoints compare virtual addresses, and a descriptor has many: all at which it is mapped, those of the
windows through which the kernel writes tables, and its physical one for code without MMU. Each stop is looked
at before anybody learns of it: a load, or a store to another page that a window shows just then, is passed
over, and the values are compared in guest-physical memory. What changed without a stop shows at the next one.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from itertools import zip_longest
from typing import Literal

from ptinspect.arch.a64_stores import writes, written
from ptinspect.arch.bits import bit
from ptinspect.arch.levels import level_number
from ptinspect.arch.sysregs import CpuState, mmu_on
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import MiError, OutOfSlots, PtinspectError
from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints
from ptinspect.guest.breakpoints.descriptor_addresses import LINEAR, Spot, first_of_each, mmu_switches, spots
from ptinspect.guest.expression import Address
from ptinspect.guest.expression import address as typed
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import names
from ptinspect.guest.recordings.path_writers import Place, places
from ptinspect.guest.roots import Source, source
from ptinspect.guest.table_choice import Tables
from ptinspect.guest.writer import Writer, instruction_at, translated, writer_at
from ptinspect.link.gdb.agent import load_line
from ptinspect.link.gdb.mi import SECONDS
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.session import Session, StopInfo
from ptinspect.memory.source import number_at
from ptinspect.tables.walk import walk

How = Literal["store", "unseen"]
SCRIPT = "ptinspect_pass.py"
STRETCH = 0.25
"""Seconds for which GDB passes over stores by itself: so long an interrupt may have to wait."""
PASS_SECONDS = 100.0
"""Longer than it waits for the guest to stop after that, and to step over stores."""
MAPPED = "bootmem_init"
"""What the kernel calls when it has mapped all memory (arch/arm64/mm/init.c, called after paging_init)."""


@dataclass(frozen=True)
class SeenWrite:
    """A write to a watched descriptor."""

    watch: int
    place: Place
    before: int
    after: int
    how: How
    """By the store before the program counter, or since the last stop in a way that nobody saw."""
    va: int | None
    """The address that the store used: a physical one while the MMU is off."""
    way: str
    """What that address belongs to; empty if the write was not seen."""
    writer: Writer | None
    """The store; None if it was not seen."""


@dataclass
class TableWatch:
    """A watch on the descriptors of a path, or on one of them."""

    id: int
    owner: TableWatches
    address: Address
    """What was typed."""
    tables: Tables
    va: int | None
    """The address that is translated; None for a descriptor that was named by its own place."""
    level: int | None
    """The only level that is watched; None for all."""
    source: Source | None
    """Where the path begins."""
    places: tuple[Place, ...]
    above: tuple[Place, ...] = ()
    """Those on the path to them, which are followed."""
    addresses: dict[int, tuple[Spot, ...]] = field(default_factory=dict)
    """Where each can be written, by its physical address."""
    left_out: tuple[Spot, ...] = ()
    """Addresses for which the CPU has no watchpoint left."""
    hits: int = 0
    """How often it has stopped the guest."""
    enabled: bool = True
    moved: bool = False
    """The last write to the path led it elsewhere."""
    numbers: Collection[int] = ()

    @property
    def followed(self) -> tuple[Place, ...]:
        """All descriptors that matter."""
        return (*self.above, *self.places)

    @property
    def words(self) -> str:
        """What it stops at."""
        where = "" if self.level is None or self.source is None else f", level {self.level}"
        return f"tables of {self.address.text}{where}"

    def enable(self, on: bool) -> None:
        """Have it stop the guest, or not; what was written in between is nobody's business."""
        self.enabled = on
        self.owner.rest()
        if on:
            self.owner.renew(arm=False)

    def delete(self) -> None:
        """Watch no more."""
        self.owner.all.remove(self)
        self.owner.rest()


class TableWatches:
    """The watches of one session, and the steward that keeps them on the way."""

    def __init__(self, guest: Guest, session: Session) -> None:
        self._guest, self.session = guest, session
        self.all: list[TableWatch] = []
        """By number."""
        self.seen: tuple[SeenWrite, ...] = ()
        """What the guest was stopped for."""
        self._alone, self._loaded, self._elsewhere = True, False, False
        self._told: int | None = None
        """The stop at which `seen` was told."""
        self._values: dict[int, int] = {}
        self._set: dict[int, int] = {}
        """GDB's number -> the address."""
        self._landmarks: dict[int, int] = {}
        """GDB's number -> where the guest is looked at on the way, because mappings change there."""
        session.escort.stewards.append(self)

    # -- what people set ------------------------------------------------------------------------

    def add(self, address: Address, tables: Tables, level: int | str | None) -> TableWatch:
        """Watch the descriptors on the path of an address, or the one at a physical address.

        Raises UserError where the path has none at `level`, or the address is none of a descriptor.
        """
        found = places(self._guest, address, tables, level)
        value = address.value(names(self._guest, tables.cpu))
        where = None if address.physical else source(self._guest, tables, value)
        number = None if level is None or where is None else level_number(level, where.regime.start_level)
        watch = TableWatch(
            self.session.reserve_breakpoint(), self, address, tables, None if where is None else value,
            number, where, tuple(found),
        )  # fmt: skip
        self.all.append(watch)
        try:
            self.renew(arm=self.session.slots.limited)  # else watchpoints are set when the guest is to run
        except BaseException:
            watch.delete()
            raise
        symbol_breakpoints(self._guest).others[watch.id] = watch
        return watch

    @property
    def active(self) -> list[TableWatch]:
        """Those that are not disabled."""
        return [watch for watch in self.all if watch.enabled]

    @property
    def followed(self) -> set[int]:
        """The descriptors that matter to them."""
        return {place.pa for watch in self.active for place in watch.followed}

    # -- at a stop ------------------------------------------------------------------------------

    def at_stop(self) -> tuple[SeenWrite, ...]:
        """Return the writes since the guest was let run: those that stopped it, and those that nobody saw.

        After a step from one stop to the next only those of the step.
        """
        if not self.active:
            return ()
        if self._told not in (None, self.session.stop_token):
            self.seen = ()
        self._told = self.session.stop_token
        if self._elsewhere:
            self._elsewhere = False
            if self.session.stop.reason != "end-stepping-range":
                self.seen = ()
                self.renew(arm=False)
        self.seen += self._changes(self.session.stop, None)
        return self.seen

    # -- on the way -----------------------------------------------------------------------------

    pause: float | None = None

    def depart(self) -> None:
        """Have all watchpoints where they are to be; the guest is about to run."""
        self.seen, self._alone, self._elsewhere, self._told = (), True, False, None
        if self.active or self._set:
            self.renew()

    def passes(self, stop: StopInfo) -> bool:
        """Look at a stop; tell whether the guest runs on, since nothing was written that is watched."""
        if stop.spot in self._landmarks:
            self.renew()
            return True
        va = self._set.get(stop.spot or -1)
        if va is None:
            return True
        found = self._changes(stop, va)
        if not found:
            self._pass_over()
            return True
        self.seen, self._elsewhere = self.seen + found, False
        for watch in self.all:
            watch.hits += any(write.watch == watch.id for write in found)
        return False

    def _pass_over(self) -> None:
        """Have GDB run past further stores of no interest by itself, which takes a tenth of the time."""
        session = self.session
        if not self._alone or session.slots.limited or session.replay is not None:
            return
        try:
            if not self._loaded:
                session.escort.command(load_line(SCRIPT), SECONDS)
                self._loaded = True
            lists = (",".join(f"{each:x}" for each in many) for many in (self._set.values(), self._values))
            words = f"ptinspect-pass {STRETCH * 1000:.0f} {' '.join(lists)}"
            text = session.escort.command(words, PASS_SECONDS)
        except MiError:
            self._alone = False
            return
        self._alone = not text.partition(" ")[2].startswith("no:")

    def rest(self) -> None:
        """Take all watchpoints away: the guest runs with nobody to look at their stops."""
        self._elsewhere = self.session.replay is not None  # which may be about to go to another position
        if self._guest.state == "stopped":
            self._clear()

    # -- what was written -----------------------------------------------------------------------

    def _changes(self, stop: StopInfo, va: int | None) -> tuple[SeenWrite, ...]:
        """Return what was written by the instruction before a stop, which touched `va`, and unseen before.

        Where only the path to what is watched was written, it is followed, and nothing is returned unless
        it leads elsewhere.
        """
        state = self.session.cpu_state(stop.cpu)
        hit = None if va is None else self._written_at(state, va)
        changed = {pa for pa, before in self._values.items() if self._value(pa) != before}
        if not changed and hit is None:
            return ()
        found: list[SeenWrite] = []
        for watch in self.active:
            touched = [p for p in watch.followed if p.pa in changed or p.pa == hit]
            if watch.va is not None and any(place.pa in changed for place in touched):
                watch.moved = self._follow(watch)
            wanted = touched if watch.moved else [p for p in touched if p in watch.places]
            found += [self._seen(watch, place, state, va if hit == place.pa else None) for place in wanted]
        self._note_values()
        if any(watch.moved for watch in self.all):
            self._find_addresses()
            self._arm()
        return tuple(found)

    def _written_at(self, state: CpuState, va: int) -> int | None:
        """Return the descriptor at an address, if the instruction before the stop may have written it."""
        word = instruction_at(self._guest, state, state.pc - 4)
        if word is not None and not writes(word):
            return None
        pa = translated(self._guest, state, va)
        return pa if pa in self._values else None

    def _seen(self, watch: TableWatch, place: Place, state: CpuState, va: int | None) -> SeenWrite:
        before, after = self._values[place.pa], self._value(place.pa)
        if va is None:
            va = self._stored(place, state)
        spot = next((s for s in watch.addresses.get(place.pa, ()) if s.va == va), None)
        if va is None or spot is None:
            return SeenWrite(watch.id, place, before, after, "unseen", None, "", None)
        writer = writer_at(self._guest, state, state.pc - 4)
        return SeenWrite(watch.id, place, before, after, "store", va, spot.way, writer)

    def _stored(self, place: Place, state: CpuState) -> int | None:
        """Return the address at which the instruction before the stop wrote a descriptor; None if it did not.

        It is known by the registers after it, so not of those that change the register with the address.
        """
        word = instruction_at(self._guest, state, state.pc - 4)
        found = None if word is None else written(word, state.x, state.sp)
        if found is None:
            return None
        for watch in self.all:
            for spot in watch.addresses.get(place.pa, ()):
                if found.covers(spot.va) and translated(self._guest, state, spot.va) == place.pa:
                    return spot.va
        return None

    def follow(self) -> None:
        """Look at everything again, from the same roots."""
        for watch in self.active:
            self._follow(watch)
        self._find_addresses()
        self._note_values()

    def met(self, stop: StopInfo, va: int | None) -> tuple[SeenWrite, ...]:
        """Return what the instruction before a stop has written, to `va`; it is told as forwards."""
        found = self._changes(stop, va)
        if found:
            self.seen, self._elsewhere, self._told = found, False, self.session.stop_token
        return found

    # -- keeping up -----------------------------------------------------------------------------

    def renew(self, *, arm: bool = True) -> None:
        """Look at everything again: roots, paths, addresses, values."""
        for watch in self.active:
            watch.moved = False
            if watch.va is not None and watch.tables.root in (None, "swapper") and bit(watch.va, 55):
                with suppress(PtinspectError):
                    watch.source = source(self._guest, watch.tables, watch.va)
            self._follow(watch)
            if watch.va is None and watch.places[0].level is None:  # it may be part of a table by now
                here = typed(f"pa:{watch.places[0].pa:#x}")
                watch.places = tuple(places(self._guest, here, watch.tables, None))
        self._find_addresses()
        if arm:
            self._arm()
            self._stop_where_mappings_change()
        self._note_values()

    def _follow(self, watch: TableWatch) -> bool:
        """Walk the path again; tell whether it leads elsewhere now."""
        if watch.va is None or watch.source is None:
            return False
        where = watch.source
        steps = walk(where.memory, watch.va, where.root.pa, where.regime).steps
        path = [Place(step.descriptor_pa, step.level, where.regime) for step in steps]
        places = tuple(p for p in path if watch.level in (None, p.level))
        above = tuple(p for p in path if watch.level is not None and (p.level or 0) < watch.level)
        before = {p.pa for p in watch.places}
        watch.places, watch.above = places, above
        return {p.pa for p in places} != before

    def _note_values(self) -> None:
        self._values = {pa: self._value(pa) for pa in self.followed}

    def _value(self, pa: int) -> int:
        return number_at(self.session.memory, pa)

    def _find_addresses(self) -> None:
        """Find out where each descriptor can be written; what was known before counts on."""
        for watch in self.active:
            known = watch.addresses
            watch.addresses = {}
            for place in watch.followed:
                now = spots(self._guest, place.pa, place.level)
                old = (replace(spot, mapped=False) for spot in known.get(place.pa, ()))
                watch.addresses[place.pa] = first_of_each((*now, *old))

    # -- watchpoints ----------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have a watchpoint at each address, as far as the CPU has them."""
        wanted: dict[int, tuple[Spot, int]] = {}
        named = [(watch, place) for watch in self.active for place in watch.places]
        above = [(watch, place) for watch in self.active for place in watch.above]
        for some in (named, above):  # the first address of each descriptor, then the second
            lists = [[(spot, w.id) for spot in w.addresses.get(place.pa, ())] for w, place in some]
            for row in zip_longest(*lists):
                for spot, number in filter(None, row):
                    wanted.setdefault(spot.va, (spot, number))
        for number in [n for n, va in self._set.items() if va not in wanted]:
            self._drop(number)
            del self._set[number]
        there = set(self._set.values())
        missing: list[Spot] = []
        for va, (spot, owner) in wanted.items():
            if va not in there and not self._watch(va, owner):
                missing.append(spot)
        for watch in self.active:
            mine = {s.va for found in watch.addresses.values() for s in found}
            watch.left_out = tuple(spot for spot in missing if spot.va in mine)

    def _watch(self, va: int, owner: int) -> bool:
        try:
            number = self.session.watch_access(va & ~7, 8, Purpose.USER, of=owner)
        except OutOfSlots:
            return False
        self._set[number] = va
        return True

    def _stop_where_mappings_change(self) -> None:
        """Stop on the way where a CPU switches its MMU on, and when the kernel has mapped all memory."""
        wanted = set() if self.session.slots.limited or not self.active else self._changes_to_come()
        for number in [number for number, at in self._landmarks.items() if at not in wanted]:
            self._drop(number)
            del self._landmarks[number]
        for at in sorted(wanted - set(self._landmarks.values())):
            made = self.session.set_breakpoint(at, purpose=Purpose.PLACE, inner=True)
            self._landmarks[made.id] = at

    def _changes_to_come(self) -> set[int]:
        guest, session = self._guest, self.session
        states = [session.cpu_state(cpu) for cpu in range(session.cpu_count)]
        found = {at for state in states if mmu_on(state) is False for at in mmu_switches(guest, state.pc)}
        linear = [
            any(s.mapped and s.way == LINEAR for s in w.addresses[p.pa])
            for w in self.active
            for p in w.places
        ]
        if guest.kernel is not None and not all(linear):
            with suppress(PtinspectError):
                found.add(guest.view.symbol(MAPPED))
        return found - {session.cpu_state(session.current_cpu).pc}

    def _clear(self) -> None:
        for number in (*self._set, *self._landmarks):
            self._drop(number)
        self._set.clear()
        self._landmarks.clear()

    def _drop(self, number: int) -> None:
        with suppress(MiError):  # somebody has deleted it in GDB
            self.session.delete_place(number)


def table_watches(guest: Guest) -> TableWatches:
    """Return the watches of the guest's session. Raises UserError, TargetLost."""
    session = guest.target
    for found in session.escort.stewards:
        if isinstance(found, TableWatches):
            return found
    symbol_breakpoints(guest)  # which follow the kernel first
    return TableWatches(guest, session)
