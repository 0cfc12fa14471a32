"""The kernel's text form of its page tables, /sys/kernel/debug/kernel_page_tables: markers and columns.

Source: Linux arch/arm64/mm/ptdump.c (dump.c up to v5.8), arch/arm64/include/asm/{memory,pgtable,fixmap}.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptinspect.arch.levels import level_name
from ptinspect.arch.regime import Regime
from ptinspect.errors import UserError
from ptinspect.linux.releases import TEXT_FORMS, TextForm, parse, text_form

MIB, GIB = 1 << 20, 1 << 30
TOP = 1 << 64
VALID, USER, RDONLY, SHARED, AF, NG = 1, 1 << 6, 1 << 7, 3 << 8, 1 << 10, 1 << 11
TABLE_BIT, TYPE, ATTRINDX, GP = 2, 3, 7 << 2, 1 << 50
CONT, PXN, UXN = 1 << 52, 1 << 53, 1 << 54


OLDEST_FORM: Mapping[str, str] = {
    "v4.16 to v5.3": "4.16",
    "v5.4 to v5.10": "5.8",
    "v5.11 to v5.16": "5.11",
    "v5.17 to v6.4": "5.17",
    "v6.5 to v6.8": "6.5",
    "v6.9 and later": "6.9",
}
"""Variant of the address space (linux/layout.py) -> the form that stands for it where no release is known."""


@dataclass(frozen=True)
class Marker:
    """A line `---[ name ]---`, printed before the first entry at or above an address."""

    address: int
    """Where it belongs."""
    name: str
    """What stands in the brackets."""


@dataclass(frozen=True)
class Column:
    """One attribute: which text stands for which bits."""

    mask: int
    """The bits that are looked at."""
    value: int
    """What they must be."""
    yes: str
    """Printed if they are."""
    no: str | None
    """Printed if not; None: nothing at all."""


MEMORY_TYPES = {
    0x00: "DEVICE/nGnRnE",
    0x04: "DEVICE/nGnRE",
    0x0C: "DEVICE/GRE",
    0x44: "MEM/NORMAL-NC",
    0xFF: "MEM/NORMAL",
    0xF0: "MEM/NORMAL-TAGGED",
}
"""Attribute byte of MAIR_EL1 -> text."""
NORMAL = 0xFF


def columns(form: TextForm, mair: int) -> tuple[Column, ...]:
    """Return the attributes in order of their columns; the memory types come from MAIR_EL1.

    Without MTE the kernel has two indices with the attributes of normal memory, 0 and 1: the second one is
    the tagged type (asm/memory.h: MT_NORMAL 0, MT_NORMAL_TAGGED 1, from v5.10). Index 7 and up of a type that
    was there before is unused.
    """
    block = Column(TYPE, VALID, "BLK", "   ") if form.sect else Column(TABLE_BIT, TABLE_BIT, "   ", "BLK")
    fixed = [
        Column(VALID, VALID, " ", "F"),
        Column(USER, USER, "USR", "   "),
        Column(RDONLY, RDONLY, "ro", "RW"),
        Column(PXN, PXN, "NX", "x "),
        Column(SHARED, SHARED, "SHD", "   "),
        Column(AF, AF, "AF", "  "),
        Column(NG, NG, "NG", "  "),
        Column(CONT, CONT, "CON", "   "),
        block,
        Column(UXN, UXN, "UXN", "   "),
    ]
    if form.gp:
        fixed.append(Column(GP, GP, "GP", "  "))
    seen: set[str] = set()
    for index in range(8):
        byte = mair >> 8 * index & 0xFF
        text = MEMORY_TYPES.get(byte, "")
        if byte == NORMAL and index == 1:
            text = MEMORY_TYPES[0xF0]
        if text and text not in seen:
            seen.add(text)
            fixed.append(Column(ATTRINDX, index << 2, text, None))
    return tuple(fixed)


def mask_of(found: tuple[Column, ...]) -> int:
    """Return the bits that any column looks at, and the whole index of the memory type."""
    mask = ATTRINDX
    for column in found:
        mask |= column.mask
    return mask


def level_text(level: int, regime: Regime) -> str:
    """Return the kernel's name of a level of lookup: the root's is PGD."""
    return level_name(level, regime).upper()


def form_of(banner: str, layout: str) -> TextForm:
    """Return the form of a kernel's text: by the release in its banner, else by the layout of its addresses.

    Raises UserError if neither tells.
    """
    release = parse(banner)
    if release is not None:
        form = text_form(release)
        if form is None:
            raise UserError(f"Linux {release} is older than the oldest era, {next(iter(TEXT_FORMS))}")
        return form
    if layout not in OLDEST_FORM:
        raise UserError(
            "the snapshot does not tell which kernel it is of", f"--era, one of: {', '.join(TEXT_FORMS)}"
        )
    return TEXT_FORMS[OLDEST_FORM[layout]]


@dataclass(frozen=True)
class Facts:
    """Hold what markers depend on besides the arithmetic."""

    kasan: bool = False
    """The kernel has KASAN's shadow (generic)."""
    trampoline: int | None = None
    """Lowest address of the KPTI trampoline's text in the fixmap."""
    data_slot: bool = False
    """A slot for the trampoline's data lies behind its text: v5.17 to v5.19, and some stable releases."""
    vmemmap: bool = True
    """There is a vmemmap: from v5.13 on always."""
    early_page: bool = False
    """The slots for early mappings have a page more than 256 KiB."""


def shadow_places(form: TextForm, regime: Regime) -> tuple[int, int]:
    """Return addresses in KASAN's shadow, if there is any: its middle, and its last page.

    Nothing is mapped at either without KASAN; with CONFIG_KASAN_VMALLOC (from v5.11 on) the middle, the
    shadow of vmalloc memory, is mapped where that is in use.
    """
    low, high = _shadow(form, regime)
    return low + (high - low) // 2, high - regime.granule


def _shadow(form: TextForm, regime: Regime) -> tuple[int, int]:
    """Return where generic KASAN has its shadow: KASAN_SHADOW_START and _END.

    Source: Linux commit f4693c2716b3 ("arm64: mm: extend linear region for 52-bit VA configurations") (in
    v5.11) moved it to the end of the linear map's half.
    """
    least = least_bits(regime)
    size = 1 << least - 3
    if form.since < (5, 4):
        start = TOP - (1 << regime.va_bits)
        return start, start + size
    start = TOP - (1 << least - 1)
    return (start, start + size) if form.since < (5, 11) else (start - size, start)


def least_bits(regime: Regime) -> int:
    """Return VA_BITS_MIN: 52-bit kernels can do with 48 (16K: 47)."""
    if regime.va_bits <= 48:
        return regime.va_bits
    return 47 if regime.granule_bits == 14 else 48


def markers(form: TextForm, regime: Regime, facts: Facts) -> tuple[Marker, ...]:
    """Return the markers in the order of the kernel's table, which is that of its addresses.

    Where the configuration of the kernel was not that of its CPU (52-bit kernels on 48-bit CPUs before
    v6.9) they are those of a kernel for the CPU.
    """
    if form.since < (5, 4):
        return _before_flip(form, regime, facts)
    least, shift = least_bits(regime), regime.granule_bits - 6
    offset, middle = TOP - (1 << regime.va_bits), TOP - (1 << least - 1)
    size = middle - offset >> shift
    shadow = _shadow(form, regime)
    linear_end = shadow[0] if facts.kasan else middle
    modules = shadow[1] if facts.kasan and form.since < (5, 11) else middle
    bpf = (5, 8) <= form.since < (5, 17)
    if form.since < (5, 17):
        modules += 128 * MIB
    modules_end = modules + (128 * MIB if form.since < (6, 5) else 2 * GIB)
    if form.since < (5, 11):
        vmemmap = TOP - size - 2 * MIB
        pci_end = vmemmap - 2 * MIB
        fix_top = pci_end - 16 * MIB - 2 * MIB
        vmalloc_end = TOP - pud_size(regime) - size - 64 * 1024
    elif form.since < (6, 9):
        vmemmap = TOP - (1 << regime.va_bits - shift)
        pci_end, fix_top, vmalloc_end = vmemmap - 8 * MIB, vmemmap - 32 * MIB, vmemmap - 256 * MIB
    else:
        vmemmap = TOP - GIB - size
        pci_end, fix_top, vmalloc_end = TOP - GIB + 24 * MIB, TOP - 8 * MIB, vmemmap - 8 * MIB
    kasan = [Marker(shadow[0], "Kasan shadow start"), Marker(shadow[1], "Kasan shadow end")]
    fix = [Marker(_fixmap(form, regime, facts, fix_top), "Fixmap start"), Marker(fix_top, "Fixmap end")]
    pci = [Marker(pci_end - 16 * MIB, "PCI I/O start"), Marker(pci_end, "PCI I/O end")]
    pages = [Marker(vmemmap, "vmemmap start"), Marker(vmemmap + size, "vmemmap end")]
    pages = pages if facts.vmemmap else []
    return (
        Marker(offset, "Linear Mapping start"),
        Marker(linear_end, "Linear Mapping end"),
        *(kasan if facts.kasan else ()),
        *([Marker(modules - 128 * MIB, "BPF start"), Marker(modules, "BPF end")] if bpf else ()),
        Marker(modules, "Modules start"),
        Marker(modules_end, "Modules end"),
        Marker(modules_end, "vmalloc() area"),
        Marker(vmalloc_end, "vmalloc() end"),
        *((*fix, *pci, *pages) if form.since < (6, 9) else (*pages, *pci, *fix)),
    )


def pud_size(regime: Regime) -> int:
    """Return PUD_SIZE: what an entry at level 1 maps, or one of the root where that level is folded."""
    return 1 << regime.shift(max(1, regime.start_level))


def _before_flip(form: TextForm, regime: Regime, facts: Facts) -> tuple[Marker, ...]:
    """Return the markers of kernels that have the linear map on top."""
    start, offset = TOP - (1 << regime.va_bits), TOP - (1 << regime.va_bits - 1)
    size = 1 << regime.va_bits - 1 - (regime.granule_bits - 6)
    shadow = _shadow(form, regime)
    modules = shadow[1] if facts.kasan else start
    vmemmap = offset - size
    pci_end = vmemmap - 2 * MIB
    top = pci_end - 16 * MIB - 2 * MIB
    kasan = (Marker(shadow[0], "Kasan shadow start"), Marker(shadow[1], "Kasan shadow end"))
    return (
        *(kasan if facts.kasan else ()),
        Marker(modules, "Modules start"),
        Marker(modules + 128 * MIB, "Modules end"),
        Marker(modules + 128 * MIB, "vmalloc() area"),
        Marker(offset - pud_size(regime) - size - 64 * 1024, "vmalloc() end"),
        Marker(_fixmap(form, regime, facts, top), "Fixmap start"),
        Marker(top, "Fixmap end"),
        Marker(pci_end - 16 * MIB, "PCI I/O start"),
        Marker(pci_end, "PCI I/O end"),
        Marker(vmemmap, "vmemmap start"),
        Marker(vmemmap + size, "vmemmap end"),
        Marker(offset, "Linear mapping"),
    )


def _fixmap(form: TextForm, regime: Regime, facts: Facts, top: int) -> int:
    """Return FIXADDR_START; from v6.6 on FIXADDR_TOT_START, which counts the temporary slots too.

    How many permanent slots there are depends on the configuration. The trampoline has the last of them;
    without one it is a device tree of 4 MiB, the hole, the early console and one slot for patching.
    """
    page = regime.granule
    if facts.trampoline is None:
        start = top - (4 * MIB // page + 3) * page
    else:
        start = facts.trampoline - (2 if facts.data_slot else 1) * page
    if form.since >= (6, 9):
        slots = 7 * (max(256 * 1024 // page, 1) + facts.early_page) + (5 if regime.start_level >= 0 else 6)
        start -= slots * page
    return start
