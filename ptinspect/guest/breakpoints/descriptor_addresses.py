"""At which virtual addresses a descriptor can be written: where it is mapped, now or for a moment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from ptinspect.arch.bits import MASK64, PhysAddr
from ptinspect.arch.sysregs import mmu_on
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError
from ptinspect.guest.capturing import naming_facts
from ptinspect.guest.guest import Guest
from ptinspect.guest.mappings import mapped_at
from ptinspect.guest.regions import name_of
from ptinspect.guest.roots import source
from ptinspect.guest.table_choice import Tables
from ptinspect.memory.source import far
from ptinspect.snapshot.fact_names import LAYOUT

GIB = 1 << 30
"""What the start of RAM is rounded down to in the linear map, at most (ARM64_MEMSTART_ALIGN)."""
REACH = 16 << 20
"""Bytes after a CPU that are searched for code that switches its MMU on."""
SWITCH = re.compile(rb"[\x00-\x1e]\x10[\x18\x1c]\xd5")
"""`msr sctlr_el1, xN` and `msr sctlr_el2, xN` (Arm ARM C5.2, SCTLR_ELx), as bytes in memory."""
PHYSICAL, LINEAR, IMAGE = "physical", "linear map", "kernel image"


MOST_SWITCHES = 32
_SWITCHES = "code that switches the MMU on"


@dataclass(frozen=True)
class Spot:
    """An address at which a descriptor can be written."""

    va: int
    way: str
    """What the address belongs to: PHYSICAL for code without MMU or by the identity map, LINEAR, IMAGE, the
    fixmap, the window of the rewrite, or the region's name."""
    mapped: bool
    """It leads to the descriptor now, on the CPU that stopped."""


def spots(guest: Guest, pa: int, level: int | None) -> tuple[Spot, ...]:
    """Return the addresses of a descriptor of a table at `level`, None if that is not known.

    Those come first that matter most where not all can be watched.
    """
    now = dict.fromkeys(mapped_at(guest, PhysAddr(pa)))
    ways = {pa: PHYSICAL}
    for va, way in _predicted(guest, pa, level):
        ways.setdefault(va, way)
    found = [Spot(va, ways.get(va) or _region(guest, va), True) for va in now]
    flat = mmu_on(guest.stopped.cpu_state(guest.stopped.current_cpu)) is False
    physical = Spot(pa, PHYSICAL, flat)
    linear = any(spot.way == LINEAR for spot in found)  # which need not be guessed then
    later = [Spot(va, way, False) for va, way in ways.items() if va != pa and not (linear and way == LINEAR)]
    return first_of_each([physical, *found, *later] if flat else [*found, *later, physical])


def first_of_each(many: Iterable[Spot]) -> tuple[Spot, ...]:
    """Return the first spot of each address."""
    found: dict[int, Spot] = {}
    for spot in many:
        found.setdefault(spot.va, spot)
    return tuple(found.values())


def _region(guest: Guest, va: int) -> str:
    with suppress(PtinspectError):
        return name_of(guest, source(guest, Tables(), va), va) or "mapping"
    return "mapping"


def _predicted(guest: Guest, pa: int, level: int | None) -> list[tuple[int, str]]:
    """Return where a Linux kernel maps it later on, or for moments, as far as its code and its place tell."""
    from ptinspect.linux.kpti.windows import geometry_of_release, windows
    from ptinspect.linux.layout.geometry import by_name

    view = guest.view
    found: list[tuple[int, str]] = []
    with suppress(PtinspectError):
        link = view.link_of_pa(pa)
        if link is not None:
            found.append(((link + view.kaslr_offset) & MASK64, IMAGE))
    with suppress(PtinspectError):
        regime = view.regime
        made = by_name(naming_facts(guest)[LAYOUT], regime) or geometry_of_release(view.banner(), regime)
        if made is not None and view.image is not None:
            all_windows = windows(view.image, regime, made, level)
            found += [(window.va + pa % regime.granule, window.name) for window in all_windows]
            largest = max((block.size, block.start) for block in guest.stopped.ram if block.writable)
            found.append((made.linear.start + pa - largest[1] // GIB * GIB, LINEAR))
    return found


def mmu_switches(guest: Guest, pc: int) -> tuple[int, ...]:
    """Return the addresses after instructions near a CPU without MMU that may switch it on.

    None where reading that much takes long. The code is searched once.
    """
    memory = guest.stopped.memory
    block = next((block for block in guest.stopped.ram if block.contains(PhysAddr(pc))), None)
    if block is None or far(memory):
        return ()
    known: dict[int, tuple[int, ...]] = guest.kept.setdefault(_SWITCHES, {})
    start = max(pc // REACH * REACH, block.start)
    if start not in known:
        code = memory.read(PhysAddr(start), min(REACH + REACH // 2, block.end - start))
        found = [start + one.start() + 4 for one in SWITCH.finditer(code) if one.start() % 4 == 0]
        known[start] = tuple(found[:MOST_SWITCHES])
    return known[start]
