"""Who wrote the descriptors on the path of an address, and which those are."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.levels import level_name, level_number
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import names
from ptinspect.guest.recordings.timeline import replay_of
from ptinspect.guest.roots import source
from ptinspect.guest.table_choice import Tables

if TYPE_CHECKING:
    from ptinspect.guest.recordings.writers import History


@dataclass(frozen=True)
class Place:
    """A descriptor."""

    pa: PhysAddr
    level: int | None
    """Level of its table; None where that is not known."""
    regime: Regime | None
    """By whose rules it is read; None where that is not known."""

    @property
    def name(self) -> str:
        """Name of its level; empty where that is not known."""
        return "" if self.level is None or self.regime is None else level_name(self.level, self.regime)


def path_histories(
    guest: Guest, address: Address, tables: Tables, level: int | str | None, *, every: bool, seconds: float
) -> list[tuple[Place, History]]:
    """Return the last write to each descriptor on a path before the present position, or `every` one.

    Raises as `places` does, UserError outside a replay, TargetTimeout.
    """
    from ptinspect.guest.recordings.writers import Writers

    replay_of(guest)  # an address need not be understood where nobody can tell
    found = places(guest, address, tables, level)
    histories = Writers(guest, [place.pa for place in found], seconds).histories(every=every)
    return list(zip(found, histories, strict=True))


def places(guest: Guest, address: Address, tables: Tables, level: int | str | None) -> list[Place]:
    """Return the descriptors on the path of an address, or the one at a physical address.

    Raises UserError where the path has none at `level`, or the physical address is none of a descriptor.
    """
    value = address.value(names(guest, tables.cpu))
    if address.physical:
        return [_at(guest, value, tables, level)]
    from ptinspect.tables.walk import walk

    where = source(guest, tables, value)
    steps = walk(where.memory, value, where.root.pa, where.regime).steps
    number = None if level is None else level_number(level, where.regime.start_level)
    found = [
        Place(step.descriptor_pa, step.level, where.regime) for step in steps if number in (None, step.level)
    ]
    if not found:
        what = f"no descriptor at level {level}" if steps else "no table"
        raise UserError(f"the path of {value:#x} has {what}", "walk shows it")
    return found


def _at(guest: Guest, pa: int, tables: Tables, level: int | str | None) -> Place:
    """Return the descriptor at a physical address; its level is known where a table holds it."""
    from ptinspect.guest.mappings import ways_to

    if pa % 8:
        raise UserError(f"pa:{pa:#x} is no place of a descriptor", "a multiple of 8")
    guest.stopped.memory.read(PhysAddr(pa), 8)
    with suppress(PtinspectError):
        regime = source(guest, tables).regime
        if level is not None:
            return Place(PhysAddr(pa), level_number(level, regime.start_level), regime)
        for hit in ways_to(guest, tables, PhysAddr(pa), 64).items:
            if hit.kind == "table":
                return Place(PhysAddr(pa), hit.level, regime)
    return Place(PhysAddr(pa), None, None)
