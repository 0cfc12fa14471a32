"""`watch table`: stop the guest when a descriptor is written; and how a write that was seen is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import TABLES, address_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.written import (
    StoreResult,
    call_rows,
    changes_of,
    value,
    value_rows,
    way,
    what_changed,
    writer_rows,
)
from ptinspect.dataclass import dataclass
from ptinspect.guest.breakpoints.table_watches import SeenWrite, TableWatch, table_watches
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.path_writers import Place
from ptinspect.guest.table_choice import Tables
from ptinspect.memory.source import number_at
from ptinspect.output.encode import Hex
from ptinspect.output.model import Note, Report, Table, escape, facts, headings


@dataclass(frozen=True)
class SpotResult:
    """An address at which a descriptor can be written."""

    va: VirtAddr
    way: str
    mapped: bool
    """It leads there now."""
    watched: bool
    """False where the CPU has no watchpoint left."""


@dataclass(frozen=True)
class WatchedResult:
    """A descriptor that is watched."""

    descriptor_pa: PhysAddr
    level: int | None
    name: str
    raw: Hex
    addresses: Sequence[SpotResult]


@dataclass(frozen=True)
class WatchTableResult:
    """A watch on the descriptors of a path."""

    id: int
    descriptors: Sequence[WatchedResult]


@dataclass(frozen=True)
class SeenWriteResult(StoreResult):
    """A write to a watched descriptor."""

    watch: int
    descriptor_pa: PhysAddr
    level: int | None
    name: str
    way: str
    """What the address belongs to that the store used: physical, linear map, kernel image, fixmap, …"""


NOBODY: Mapping[str, Any] = {
    **dict.fromkeys(("place", "instruction", "task", "source"), ""),
    **dict.fromkeys(("pc", "cpu", "el", "mmu_on", "pid")),
    "calls": (),
}
"""What is known of who wrote where nobody saw it."""


@command(
    "watch table",
    group="Run and stop",
    summary="Stop when a descriptor on the path of an address is written",
    example="watch table $sp --level pmd",
    arguments=(
        address_argument("address", metavar="ADDRESS"),
        argument("--level", "-l", type=arguments.level, metavar="LEVEL", help="only the one of this level"),
        *TABLES[:2],
    ),
    result=WatchTableResult,
    needs=Needs.STOPPED,
    details="For a virtual address each descriptor on its path, which is followed when a table on it is "
    "replaced; pa:ADDRESS is one descriptor's place. It does not matter which way the kernel writes: by the "
    "linear map, the fixmap, the window of the rewrite, or physically with the MMU off. What nobody saw, as"
    " the table walk setting AF, is told at the next stop. Under KVM the CPU has few watchpoints. "
    "break lists it, delete N ends it. who ADDRESS looks back, in a recording.",
)
def watch_table(
    guest: Guest,
    *,
    address: Address,
    level: int | str | None,
    tables: Tables,
) -> Report:
    """Watch the descriptors of a path."""
    watches = table_watches(guest)
    watch = watches.add(address, tables, level)
    found = [_watched(guest, watch, place) for place in watch.places]
    columns = headings("descriptor", "at", "value", "ways")
    rows = [
        (
            f"{one.name} {one.level}".strip() if one.level is not None else "",
            f"pa:{one.descriptor_pa:#x}",
            value(one.raw, place.level, place.regime),
            ", ".join(dict.fromkeys(spot.way for spot in one.addresses if spot.watched)),
        )
        for one, place in zip(found, watch.places, strict=True)
    ]
    missing = sum(not spot.watched for one in found for spot in one.addresses)
    short = "the CPU has too few watchpoints"
    notes = [Note(f"{short}: {missing} addresses are not watched", "changed")] if missing else []
    head = Note(f"watch {watch.id} on the tables of {escape(watch.address.text)}", "title")
    return Report(WatchTableResult(watch.id, found), (head, Table(columns, rows), *notes))


def _watched(guest: Guest, watch: TableWatch, place: Place) -> WatchedResult:
    raw = number_at(guest.stopped.memory, place.pa)
    left_out = {spot.va for spot in watch.left_out}
    addresses = [
        SpotResult(VirtAddr(spot.va), spot.way, spot.mapped, spot.va not in left_out)
        for spot in watch.addresses.get(place.pa, ())
    ]
    return WatchedResult(place.pa, place.level, place.name, Hex(raw), addresses)


def writes_seen(guest: Guest) -> tuple[list[SeenWriteResult], list[Note | Table]]:
    """Return the writes to watched descriptors since the guest was let run, and how they are shown."""
    seen = table_watches(guest).at_stop() if guest.state == "stopped" else ()
    found = [_result(write) for write in seen]
    shown = [part for write, one in zip(found, seen, strict=True) for part in _shown(write, one.place)]
    return found, shown


def in_short(write: SeenWriteResult) -> str:
    """Say in a few words what was written."""
    name = write.name or f"pa:{write.descriptor_pa:#x}"
    what = what_changed(write) or f"{write.after:#x}"
    return f"watch {write.watch}: {name} written, {what}"


def _result(write: SeenWrite) -> SeenWriteResult:
    place = write.place
    return SeenWriteResult(
        watch=write.watch,
        descriptor_pa=place.pa,
        level=place.level,
        name=place.name,
        before=Hex(write.before),
        after=Hex(write.after),
        changes=changes_of(write.before, write.after, place.level, place.regime),
        how=write.how,
        way=write.way,
        va=None if write.va is None else VirtAddr(write.va),
        **(NOBODY if write.writer is None else vars(write.writer)),
    )


def _shown(write: SeenWriteResult, place: Place) -> list[Note | Table]:
    """Show one write, with all that is known of it."""
    name = f"{place.name} {place.level} at " if place.level is not None else ""
    head = Note(f"{name}pa:{place.pa:#x}, watch {write.watch}", "title")
    rows = value_rows(write, place.level, place.regime)
    if write.how == "unseen":
        rows.append(("by", "nobody saw it: since the last stop, in a way that no watchpoint stops at"))
    else:
        rows += [*writer_rows(write, f"{write.way}, {way(write)}"), *call_rows(write)]
    return [head, facts(rows)]
