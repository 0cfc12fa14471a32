"""The markers of the kernel's text of its page tables, for a snapshot: its form, its geometry, its fixmap.

Source: Linux arch/arm64/mm/ptdump.c (dump.c up to v5.5), arch/arm64/include/asm/fixmap.h.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.linux.layout.choice import geometry_of, has_tables, with_shadow
from ptinspect.linux.layout.geometry import MIB, Geometry, geometry, least_bits, variant_of
from ptinspect.linux.layout.leaves import Leaves
from ptinspect.linux.layout.sections import trampoline
from ptinspect.linux.releases import (
    TEXT_FORMS,
    Release,
    TextForm,
    has_data_slot,
    has_early_page,
    parse,
    text_form,
)
from ptinspect.snapshot.model import Snapshot


@dataclass(frozen=True)
class Marker:
    """A line `---[ name ]---`, printed before the first entry at or above an address."""

    address: int
    """Where it belongs."""
    name: str
    """What stands in the brackets."""


@dataclass(frozen=True)
class Frame:
    """All that the text of a snapshot depends on besides its tables."""

    form: TextForm
    """Which lines and columns there are."""
    markers: tuple[Marker, ...]
    """In the order of the kernel's table, which is that of its addresses."""
    assumed: tuple[str, ...]
    """What had to be assumed, in sentences."""


def frame_of(snapshot: Snapshot, form: TextForm | None = None) -> Frame:
    """Return form and markers of a snapshot's text, of its own kernel's form or of another.

    Where the configuration of the kernel was not that of its CPU (52-bit kernels on 48-bit CPUs before
    v6.9) it begins as that of a kernel for the CPU does. Raises UserError if nothing tells which kernel
    it is, and no form is given.
    """
    regime, made = snapshot.regime, geometry_of(snapshot)
    release = Release(*form.since, 0) if form is not None else release_of(snapshot.meta.kernel, made)
    if made is None or (form is not None and made.variant is not variant_of(release)):
        made = with_shadow(geometry(variant_of(release), regime), snapshot)
    form = form or text_form(release)
    if form is None:
        raise UserError(f"Linux {release} is older than the oldest era, {next(iter(TEXT_FORMS))}")
    assumed = []
    if regime.va_bits > least_bits(regime.va_bits, regime) and release.series < (6, 9):
        assumed.append("the kernel is taken to have been started on a CPU with all its address bits")
    if has_early_page(release) is None:
        assumed.append("the slots for early mappings are taken to have no page more than 256 KiB")
    code = trampoline(Leaves.of(snapshot.tables, regime), made.fixmap)
    text = min((part.start for part in code), default=None)
    if text is None:
        assumed.append("no KPTI trampoline is mapped: where the fixmap begins depends on the configuration")
    vmemmap = release.series >= (5, 13) or has_tables(snapshot, made.vmemmap.start, made.vmemmap.end)
    found = markers(made, release, form, regime, text=text, vmemmap=vmemmap)
    return Frame(form, found, tuple(assumed))


def release_of(banner: str, made: Geometry | None) -> Release:
    """Return the release of a kernel: by its banner, else the usual one that has its geometry.

    Raises UserError if neither tells.
    """
    release = parse(banner)
    if release is None and made is not None:
        release = Release(*made.variant.usual, 0)
    if release is None:
        raise UserError(
            "the snapshot does not tell which kernel it is of", f"--era, one of: {', '.join(TEXT_FORMS)}"
        )
    return release


def markers(
    made: Geometry,
    release: Release,
    form: TextForm,
    regime: Regime,
    *,
    text: int | None = None,
    vmemmap: bool = True,
) -> tuple[Marker, ...]:
    """Return the markers in the order of the kernel's table, by what of its configuration they depend on.

    `text` is the lowest address of the KPTI trampoline's text in the fixmap, if there is one; `vmemmap` tells
    whether there is a vmemmap: from v5.13 on always.
    """
    kasan = _pair("Kasan shadow", made.shadow.start, made.shadow.end) if made.scale else ()
    bpf = _pair("BPF", made.bpf.start, made.bpf.end) if form.bpf and made.variant.bpf else ()
    area, end, linear = ("Area", "End", "Mapping") if form.capitals else ("area", "end", "mapping")
    vmalloc = (Marker(made.vmalloc.start, f"vmalloc() {area}"), Marker(made.vmalloc.end, f"vmalloc() {end}"))
    fix = _pair("Fixmap", _fixmap(made, release, form, regime, text), made.fixmap.end)
    pci = _pair("PCI I/O", made.pci.start, made.pci.end)
    pages = _pair("vmemmap", made.vmemmap.start, made.vmemmap.end) if vmemmap else ()
    modules = _pair("Modules", made.modules.start, made.modules.end)
    devices = (*fix, *pci, *pages) if release.series < (6, 9) else (*pages, *pci, *fix)
    if not made.variant.flipped:
        return (*kasan, *modules, *vmalloc, *devices, Marker(made.linear.start, f"Linear {linear}"))
    ends = _pair("Linear Mapping", made.linear.start, made.linear.end)
    return (*ends, *kasan, *bpf, *modules, *vmalloc, *devices)


def _pair(name: str, start: int, end: int) -> Sequence[Marker]:
    return Marker(start, f"{name} start"), Marker(end, f"{name} end")


def _fixmap(made: Geometry, release: Release, form: TextForm, regime: Regime, text: int | None) -> int:
    """Return FIXADDR_START, or FIXADDR_TOT_START, which counts the temporary slots too.

    How many permanent slots there are depends on the configuration. The trampoline has the last of them;
    without one it is the hole, a device tree of 2 MiB and its margin (2 MiB, from v6.4 on two pages), the
    early console and one slot for patching. Of the temporary ones there are seven of 256 KiB, and one for
    tables of each level (from v6.9 on of five).
    """
    page, top = regime.granule, made.fixmap.end
    if text is not None:
        start = text - (2 if has_data_slot(release) else 1) * page
    else:
        tree = 4 * MIB // page if release.series < (6, 4) else 2 * MIB // page + 2
        start = top - (tree + 3) * page
    if form.all_fixmap:
        early = max(256 * 1024 // page, 1) + bool(has_early_page(release))
        start -= (7 * early + (4 if release.series < (6, 9) else 5)) * page
    return start
