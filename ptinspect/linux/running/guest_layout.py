"""What a running guest tells about the layout of its addresses: variant, image, and its stacks by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ptinspect.arch.regime import Regime
from ptinspect.errors import PtinspectError
from ptinspect.linux.layout.choice import encode_regions, layout
from ptinspect.linux.layout.geometry import TOP, least_bits
from ptinspect.linux.layout.regions import Layout, Region
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.stacks import Stack, Stacks
from ptinspect.snapshot.fact_names import LAYOUT, REGIONS
from ptinspect.snapshot.model import Meta, Snapshot
from ptinspect.tables.capture import capture

MAX_TABLES = 16_384
"""Tables that are read at most to learn the layout."""
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
    return {LAYOUT: made.variant, REGIONS: encode_regions(made.known)}


def view_layout(
    view: GuestView, snapshot: Snapshot, *, more: Iterable[Region] = (), used: Sequence[int] = ()
) -> Layout:
    """Name the parts of the address space of a live guest, whose tables `snapshot` holds."""
    try:
        offset = view.kaslr_offset if view.image is not None else None
    except PtinspectError:
        offset = None
    return layout(snapshot, view.image if offset is not None else None, offset, more=more, used=used)


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
    level = regime.start_level
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
    return f"task stack ({stack.task.pid} {stack.task.printable})"
