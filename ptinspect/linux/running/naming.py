"""Names for the addresses of a snapshot: found in the live guest, kept in it, and read from it again."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.analysis.regions import half_namer
from ptinspect.arch.levels import levels_of
from ptinspect.arch.regime import Regime
from ptinspect.errors import PtinspectError
from ptinspect.linux.layout.choice import chosen, layout, of_variant, view_layout, with_shadow
from ptinspect.linux.layout.geometry import TOP, Geometry, by_name, least_bits, variant_of
from ptinspect.linux.layout.regions import Layout, Region
from ptinspect.linux.releases import parse
from ptinspect.linux.running.stacks import Stack, Stacks
from ptinspect.linux.running.view import GuestView
from ptinspect.snapshot.facts import AREAS, LAYOUT, LOWER, REGIONS
from ptinspect.tables.capture import capture
from ptinspect.tables.model import Meta, Snapshot

MAX_TABLES = 16_384
"""Tables that are read at most to learn the layout."""
MAX_REGIONS = 65_536
STACK_NAMES = {
    "irq": "IRQ stack",
    "overflow": "overflow stack",
    "sdei-normal": "SDEI stack",
    "sdei-critical": "critical SDEI stack",
}


def facts(view: GuestView) -> dict[str, str]:
    """Return what a snapshot keeps so that its addresses have names without guest and kernel file.

    Without names where the kernel's own table was not found, as in a guest that runs no Linux.
    """
    try:
        if not view.confirmed:
            return {LAYOUT: ""}
        regime, root = view.regime, view.swapper()
        half = _half_of_image(view, regime)
        tables, _ = capture(view.memory, root.pa, regime, va_range=half, max_tables=MAX_TABLES)
        part = Snapshot("", root, regime, tables, view.states, view.ram, Meta("", ""))
        made = view_layout(view, part, more=stacks(view), used=_used(view, regime, root.pa))
    except PtinspectError:
        return {LAYOUT: ""}
    return {LAYOUT: made.variant, REGIONS: encode(made.known)}


def _half_of_image(view: GuestView, regime: Regime) -> tuple[int, int]:
    """Return the half of the kernel's addresses that its code is in; the linear map has the other one."""
    middle = TOP - (1 << least_bits(regime.va_bits, regime) - 1)
    places = [state.system.get("VBAR_EL1", 0) for state in view.states]
    if view.image is not None and view.image.linked:
        places = [view.image.text_va]
    below = any(regime.va_min <= place < middle for place in places)
    return (int(regime.va_min), middle - 1) if below else (middle, TOP - 1)


def _used(view: GuestView, regime: Regime, root: int) -> list[int]:
    """Return the first address of each entry of the root that is in use."""
    level = levels_of(regime)[0]
    raw = view.memory.read(root, 8 * regime.entries(level))
    return [
        regime.va_min + index * regime.entry_size(level)
        for index in range(regime.entries(level))
        if raw[8 * index] & 1
    ]


def stacks(view: GuestView) -> list[Region]:
    """Return the stacks of tasks and CPUs as regions; what cannot be found is left out."""
    found: list[Stack] = []
    try:
        known = Stacks(view)
        for state in view.states:
            found += known.of_cpu(state)
        found += [known.of_task(task) for task in known.tasks.all().tasks]
    except PtinspectError:
        pass  # too early, or a kernel file without types: there are no names then
    return [Region(stack.base, stack.top, _stack_name(stack)) for stack in found if stack.base < stack.top]


def _stack_name(stack: Stack) -> str:
    if stack.task is None:
        return f"{STACK_NAMES.get(stack.kind, stack.kind)} (cpu {stack.cpu})"
    comm = "".join(c if c.isprintable() else "?" for c in stack.task.comm)
    return f"task stack ({stack.task.pid} {comm})"


def encode(regions: tuple[Region, ...]) -> str:
    """Write regions as text, one a line."""
    return "\n".join(f"{r.start:x}-{r.end - 1:x} {r.name}" for r in regions[:MAX_REGIONS])


def decode(text: str) -> list[Region]:
    """Read regions from text; lines that make no sense are left out, for files may be anybody's."""
    found = []
    for line in text.split("\n", MAX_REGIONS)[:MAX_REGIONS]:
        place, _, name = line.partition(" ")
        first, _, last = place.partition("-")
        try:
            start, end = int(first, 16), int(last, 16) + 1
        except ValueError:
            continue
        if 0 <= start < end <= TOP and name:
            found.append(Region(start, end, name))
    return found


def geometry_of(snapshot: Snapshot) -> Geometry | None:
    """Return where the parts of a snapshot's address space lie: as it says itself, else as its tables tell.

    None for a lower half, and where it says that nothing tells, or the tables tell nothing.
    """
    said = snapshot.meta.extra.get(LAYOUT)
    if not snapshot.regime.upper or said == "":
        return None
    stored = by_name(said, snapshot.regime) if said else None
    release = parse(snapshot.meta.kernel)
    if stored is not None and (release is None or variant_of(release) is stored.variant):
        return with_shadow(stored, snapshot)
    return chosen(snapshot) or stored


def layout_of(snapshot: Snapshot, also: Snapshot | None = None) -> Layout:
    """Return the names that a snapshot knows, and after them those of an earlier one.

    Without facts of its own (older files) a snapshot of a Linux kernel is named by its tables; one of
    anything else has only the names of the halves.
    """
    extra = snapshot.meta.extra
    if snapshot.regime.upper and LAYOUT not in extra and snapshot.meta.kernel:
        return layout(snapshot)
    made = geometry_of(snapshot)
    if made is not None:
        extra = {**extra, LAYOUT: made.name}
    return layout_from(snapshot.regime, extra, {} if also is None else also.meta.extra)


def layout_from(regime: Regime, extra: Mapping[str, str], also: Mapping[str, str]) -> Layout:
    """Return the names that facts tell, and after them those of other facts."""
    if not regime.upper:
        areas = decode(extra.get(AREAS, ""))
        all_of_it = Region(0, 1 << regime.va_bits, extra.get(LOWER, half_namer(regime)(0)))
        return Layout((*areas, all_of_it), "the lower half", known=tuple(areas))
    name = extra.get(LAYOUT, "")
    known = (*decode(extra.get(REGIONS, "")), *decode(also.get(REGIONS, "")))
    return of_variant(regime, name, known)
