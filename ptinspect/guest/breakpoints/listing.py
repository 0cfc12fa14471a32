"""All that stops the guest, as people see it: one list, one way to delete, to disable, to set a condition."""

from __future__ import annotations

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.breakpoints.breakpoints import (
    SymbolBreakpoint,
    SymbolBreakpoints,
    condition_for_gdb,
    symbol_breakpoints,
)
from ptinspect.guest.guest import Guest
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.session import Breakpoint

KINDS = {"acc watchpoint": "access watchpoint", "watchpoint": "watchpoint"}
"""GDB's word -> that of people."""


@dataclass(frozen=True)
class Listed:
    """A breakpoint, a watchpoint, or what is made of such."""

    number: int
    kind: str
    """breakpoint, watchpoint, read watchpoint, access watchpoint, or GDB's word."""
    address: int | None
    """Where it is, or what is watched: as linked while it is pending; None if nobody tells."""
    what: str
    """The same in words: the address with its symbol, the expression that is watched."""
    hits: int
    """How often it has stopped the guest, or was ignored."""
    condition: str = ""
    """What must hold for that; empty: nothing."""
    enabled: bool = True
    temporary: bool = False
    cpu: int | None = None
    """The only CPU that it stops, or None."""
    purpose: Purpose = Purpose.USER
    pending: bool = False
    """It is not known yet where its code will run."""
    places: tuple[int, ...] | None = None
    """Where it is now, if it follows a symbol."""
    ignore: int = 0
    """How many of the next hits do not stop the guest."""


def listed(guest: Guest) -> list[Listed]:
    """Return all breakpoints and watchpoints of people's, by number. Raises UserError, TargetLost."""
    ours = symbol_breakpoints(guest)
    ours.refresh()
    known = guest.target.breakpoints
    parts = {number for other in ours.others.values() for number in other.numbers}
    found = {b.id: _of_gdb(guest, ours, b) for b in known if b.id not in parts}
    for one in ours.all:
        found[one.id] = _of_symbol(guest, ours, one)
    for number, other in ours.others.items():
        found[number] = Listed(number, "watchpoint", None, other.words, other.hits, enabled=other.enabled)
    return [found[number] for number in sorted(found)]


def numbered(guest: Guest, number: int) -> Listed:
    """Return the one of a number. Raises UserError if there is none."""
    found = next((one for one in listed(guest) if one.number == number), None)
    if found is None:
        raise _unknown(number)
    return found


def _of_gdb(guest: Guest, ours: SymbolBreakpoints, one: Breakpoint) -> Listed:
    watched = ours.watched.get(one.id)
    if watched is not None:
        what = f"{watched.text} ({watched.type.name} at {watched.address:#x})"
    elif one.kind.endswith("watchpoint") or one.address is None:
        what = one.what
    else:
        what = guest.place(one.address)
    return Listed(
        one.id,
        KINDS.get(one.kind, one.kind),
        one.address,
        what,
        one.hits,
        one.condition and (ours.typed.get(one.id) or one.condition),
        one.enabled,
        one.temporary,
        one.cpu,
        guest.target.slots.purpose(one.id),
        ignore=one.ignore,
    )


def _of_symbol(guest: Guest, ours: SymbolBreakpoints, one: SymbolBreakpoint) -> Listed:
    places, pending = tuple(one.places), bool(ours.waits_until(one.address))
    fixed = bool(places) and not pending
    address = places[0] if fixed else ours.linked_at(one.address)
    what = guest.place(address) if fixed else one.address.text
    more = (one.condition or "", one.enabled, one.temporary, one.cpu, one.purpose, not fixed, places)
    hits = ours.hits(one)
    return Listed(one.id, "breakpoint", address, what, hits, *more, max(one.ignored - hits, 0))


def hits_of(guest: Guest, number: int) -> int:
    """Return how often a breakpoint or watchpoint has stopped the guest."""
    ours = symbol_breakpoints(guest)
    if number in ours.others:
        return ours.others[number].hits
    before = sum(one.hits for one in ours.all if one.id == number)
    return before + sum(b.hits for b in guest.target.breakpoints if b.id == number)


def ignore(guest: Guest, number: int, count: int) -> None:
    """Have the next hits of one, so many, not stop the guest. Raises UserError if that cannot be."""
    ours = symbol_breakpoints(guest)
    if number in ours.others:
        raise UserError(f"{number}: {ours.others[number].words}: none of its hits is ignored")
    if not ours.alter(number, ignore=count):
        need(guest, number)
        guest.stopped.alter_place(number, ignore=count)


def delete(guest: Guest, number: int) -> None:
    """Delete one. Raises UserError if there is none of this number."""
    ours = symbol_breakpoints(guest)
    if number in ours.others:
        ours.others.pop(number).delete()
    elif not ours.delete(number):
        need(guest, number)
        guest.stopped.delete_breakpoint(number)


def enable(guest: Guest, number: int, on: bool) -> None:
    """Have one stop the guest, or not. Raises UserError if there is none of this number."""
    ours = symbol_breakpoints(guest)
    if number in ours.others:
        ours.others[number].enable(on)
    elif not ours.alter(number, enabled=on):
        need(guest, number)
        guest.stopped.alter_place(number, enabled=on)


def set_condition(guest: Guest, number: int, condition: str) -> None:
    """Have one stop the guest only where a condition holds; an empty one: always.

    Raises UserError if there is none of this number, MiError if GDB does not understand it.
    """
    ours = symbol_breakpoints(guest)
    if number in ours.others:
        raise UserError(f"{number}: {ours.others[number].words}: it takes no condition")
    if not ours.alter(number, condition=condition):
        need(guest, number)
        guest.stopped.alter_place(number, condition=condition_for_gdb(guest, condition))
        ours.typed[number] = condition


def need(guest: Guest, number: int) -> None:
    """Raise UserError if nothing has this number."""
    ours = symbol_breakpoints(guest)
    known = {b.id for b in guest.target.breakpoints} | {one.id for one in ours.all} | ours.others.keys()
    if number not in known:
        raise _unknown(number)


def _unknown(number: int) -> UserError:
    return UserError(f"no breakpoint {number}", "break lists them")
