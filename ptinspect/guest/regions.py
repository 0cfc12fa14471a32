"""Names of the parts of the address space, for commands that show addresses."""

from __future__ import annotations

from ptinspect.errors import PtinspectError
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.analysis.map import RegionNamer
    from ptinspect.guest.guest import Guest
    from ptinspect.guest.roots import Source
    from ptinspect.linux.layout.regions import Layout
    from ptinspect.snapshot.model import Snapshot


def names_of(snapshot: Snapshot, also: Snapshot | None = None) -> tuple[RegionNamer, Layout]:
    """Return what names the addresses of a snapshot, and of an earlier one whose stacks count too."""
    from ptinspect.linux.layout.choice import layout_of, region_namer

    made = layout_of(snapshot, also)
    return region_namer(made, snapshot.regime), made


def name_of(guest: Guest, where: Source, va: int) -> str:
    """Return the name of the region of one address, of the guest or of a snapshot; empty if none."""
    from ptinspect.guest.capturing import naming_facts
    from ptinspect.linux.layout.choice import layout_from, region_namer

    if where.snapshot is not None:
        return names_of(where.snapshot)[0](va)
    try:
        facts = {**naming_facts(guest), **where.facts}
    except PtinspectError:
        facts = dict(where.facts)
    return region_namer(layout_from(where.regime, facts, {}), where.regime)(va)
