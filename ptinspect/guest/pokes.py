"""Descriptors of the guest that are changed to inject a fault, and changed back."""

from __future__ import annotations

from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.link.journal import POKE, Change


def descriptor_at(guest: Guest, pa: int) -> int:
    """Return the descriptor at a physical address of the stopped guest. Raises UserError, MemoryReadError."""
    if pa % 8:
        raise UserError(f"pa:{pa:#x}: a descriptor is eight bytes at a multiple of 8")
    return int.from_bytes(guest.stopped.memory.read(pa, 8), "little")


def poke(guest: Guest, pa: int, value: int) -> Change:
    """Write a descriptor and remember what was there. Raises UserError, MemoryReadError, TargetError."""
    made = Change(pa, descriptor_at(guest, pa), value, what=POKE)
    guest.stopped.changes.make([made])
    guest.forget_stop()
    return made


def undo_poke(guest: Guest) -> Change:
    """Write back what the last poke replaced, and return that poke.

    Raises UserError if there was none, or the guest has changed the descriptor since.
    """
    changes = guest.stopped.changes
    done = changes.made(POKE)
    if not done:
        raise UserError("nothing was poked")
    last = done[-1]
    now = descriptor_at(guest, last.pa)
    if now != last.new:
        raise UserError(f"pa:{last.pa:#x} holds {now:#x}, not {last.new:#x}: the guest changed it since")
    changes.undo([last])
    guest.forget_stop()
    return last
