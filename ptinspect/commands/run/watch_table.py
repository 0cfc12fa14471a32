"""`watch table`: stop the guest when a descriptor is written; and how a write that was seen is shown."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import ROOT, RULE, address_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.written import changes_of, value
from ptinspect.dataclass import dataclass
from ptinspect.guest.breakpoints.table_watches import SeenWrite, TableWatch, table_watches
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.path_writers import Place
from ptinspect.guest.roots import Tables
from ptinspect.output.encode import Hex
from ptinspect.output.model import Column, Note, Report, Table, escape


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
class SeenWriteResult:
    """A write to a watched descriptor."""

    watch: int
    descriptor_pa: PhysAddr
    level: int | None
    name: str
    before: Hex
    after: Hex
    changes: Sequence[str]
    """The words of diff; none where the value stayed, or where the level is not known."""
    how: str
    """store; unseen: since the last stop, in a way that was not watched."""
    way: str
    """What the address belongs to that the store used: physical, linear map, kernel image, fixmap, …"""
    va: VirtAddr | None
    pc: VirtAddr | None
    place: str
    instruction: str
    cpu: int | None
    el: int | None
    mmu_on: bool | None
    task: str
    pid: int | None
    calls: Sequence[str]
    source: str = ""
    """`file:line` of the instruction, where there is debug information of it."""


@command(
    "watch table",
    group="Run and stop",
    summary="Stop when a descriptor on the path of an address is written",
    example="watch table $sp --level pmd",
    arguments=(
        address_argument("address", metavar="ADDRESS"),
        argument("--level", "-l", type=arguments.level, metavar="LEVEL", help="only the one of this level"),
        ROOT,
        RULE,
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
    root: str | Address | None,
    regime: str | None,
) -> Report:
    """Watch the descriptors of a path."""
    watches = table_watches(guest)
    watch = watches.add(address, Tables(root, regime), level)
    found = [_watched(guest, watch, place) for place in watch.places]
    columns = (Column("descriptor"), Column("at"), Column("value"), Column("ways"))
    rows = [
        (
            f"{one.name} {one.level}".strip() if one.level is not None else "",
            f"pa:{one.descriptor_pa:#x}",
            _words(one.raw, place),
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
    raw = int.from_bytes(guest.stopped.memory.read(place.pa, 8), "little")
    left_out = {spot.va for spot in watch.left_out}
    addresses = [
        SpotResult(VirtAddr(spot.va), spot.way, spot.mapped, spot.va not in left_out)
        for spot in watch.addresses.get(place.pa, ())
    ]
    return WatchedResult(place.pa, place.level, place.name, Hex(raw), addresses)


def writes_seen(guest: Guest) -> tuple[list[SeenWriteResult], list[Note | Table]]:
    """Return the writes to watched descriptors since the guest was let run, and how they are shown."""
    seen = table_watches(guest).at_stop() if guest.state == "stopped" else ()
    return [_result(write) for write in seen], [part for write in seen for part in _shown(write)]


def in_short(write: SeenWriteResult) -> str:
    """Say in a few words what was written."""
    name = write.name or f"pa:{write.descriptor_pa:#x}"
    what = ", ".join(write.changes) or ("same value" if write.before == write.after else f"{write.after:#x}")
    return f"watch {write.watch}: {name} written, {what}"


def _result(write: SeenWrite) -> SeenWriteResult:
    who = write.writer
    return SeenWriteResult(
        watch=write.watch,
        descriptor_pa=write.place.pa,
        level=write.place.level,
        name=write.place.name,
        before=Hex(write.before),
        after=Hex(write.after),
        changes=_changes(write),
        how=write.how,
        way=write.way,
        va=None if write.va is None else VirtAddr(write.va),
        pc=None if who is None else VirtAddr(who.pc),
        place="" if who is None else who.place,
        instruction="" if who is None else who.instruction,
        cpu=None if who is None else who.cpu,
        el=None if who is None else who.el,
        mmu_on=None if who is None else who.mmu_on,
        task="" if who is None else who.task,
        pid=None if who is None else who.pid,
        calls=[] if who is None else list(who.calls),
        source="" if who is None else who.source,
    )


def _changes(write: SeenWrite) -> list[str]:
    return changes_of(write.before, write.after, write.place.level, write.place.regime)


def _words(raw: int, place: Place) -> str:
    return value(raw, place.level, place.regime)


def _shown(write: SeenWrite) -> list[Note | Table]:
    """Show one write, with all that is known of it."""
    place, who = write.place, write.writer
    name = f"{place.name} {place.level} at " if place.level is not None else ""
    head = Note(f"{name}pa:{place.pa:#x}, watch {write.watch}", "title")
    rows = [
        ("before", _words(write.before, place)),
        ("after", _words(write.after, place)),
        ("changed", ", ".join(_changes(write)) or ("same value" if write.before == write.after else "")),
    ]
    if who is None or write.va is None:
        rows.append(("by", "nobody saw it: since the last stop, in a way that no watchpoint stops at"))
    else:
        mmu = {True: ", MMU on", False: ", MMU off", None: ""}[who.mmu_on]
        rows += [
            ("by", f"{escape(who.place)}: {escape(who.instruction)}".rstrip(": ")),
            ("source", escape(who.source)),
            ("way", f"{write.way}, a store to {write.va:#x}, cpu {who.cpu}, EL{who.el}{mmu}"),
            ("task", f"{escape(who.task)} (pid {who.pid})" if who.task else ""),
            *(("called by" if n == 0 else "", escape(call)) for n, call in enumerate(who.calls)),
        ]
    return [head, Table((Column(""), Column("")), [row for row in rows if row[1]])]
