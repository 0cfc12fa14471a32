"""The kernel's text form of its page tables, /sys/kernel/debug/kernel_page_tables: eras and markers.

Source: Linux arch/arm64/mm/ptdump.c (dump.c up to v5.8), arch/arm64/include/asm/{memory,pgtable,fixmap}.h.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ptinspect.arch.levels import level_name
from ptinspect.arch.regime import Regime
from ptinspect.errors import UserError

MIB, GIB = 1 << 20, 1 << 30
TOP = 1 << 64
VALID, USER, RDONLY, SHARED, AF, NG = 1, 1 << 6, 1 << 7, 3 << 8, 1 << 10, 1 << 11
TABLE_BIT, TYPE, ATTRINDX, GP = 2, 3, 7 << 2, 1 << 50
CONT, PXN, UXN = 1 << 52, 1 << 53, 1 << 54


@dataclass(frozen=True)
class Era:
    """Describe one form of the text."""

    name: str
    """First release that has it."""
    since: tuple[int, int]
    """The same as a number."""
    layout: str
    """Variant of the address space (linux/layout.py) that stands for it where no version is known."""
    holes: bool = True
    """What is not mapped has lines too."""
    sect: bool = False
    """`BLK` is told by both type bits, not by the table bit alone."""
    gp: bool = True
    """There is a column for PTE_GP."""
    zero: bool = False
    """It begins at address 0, for its state is not set up: a line too many, and no first marker."""


ERAS: Mapping[str, Era] = {
    era.name: era
    for era in (
        Era("4.16", (4, 16), "v4.16 to v5.3", holes=False, gp=False),
        Era("5.4", (5, 4), "", holes=False, gp=False),
        Era("5.6", (5, 6), "", gp=False, zero=True),
        Era("5.8", (5, 8), "v5.4 to v5.10", zero=True),
        Era("5.11", (5, 11), "v5.11 to v5.16"),
        Era("5.17", (5, 17), "v5.17 to v6.4"),
        Era("6.5", (6, 5), "v6.5 to v6.8"),
        Era("6.9", (6, 9), "v6.9 and later"),
        Era("6.15", (6, 15), "", sect=True),
    )
}
"""By name, oldest first.

Sources: arch/arm64/mm/{dump,ptdump}.c of the releases: "arm64: mm: display non-present entries in ptdump" is
in v5.6, the column GP in v5.8; Linux commits b89ddf4cca43 (no region for BPF, in v5.17), f5e93819e2cc
("arm64/ptdump: Test PMD_TYPE_MASK for block mapping", in v6.15).
"""


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


def columns(era: Era, mair: int) -> tuple[Column, ...]:
    """Return the attributes in order of their columns; the memory types come from MAIR_EL1.

    Without MTE the kernel has two indices with the attributes of normal memory, 0 and 1: the second one is
    the tagged type (asm/memory.h: MT_NORMAL 0, MT_NORMAL_TAGGED 1, from v5.10). Index 7 and up of a type that
    was there before is unused.
    """
    block = Column(TYPE, VALID, "BLK", "   ") if era.sect else Column(TABLE_BIT, TABLE_BIT, "   ", "BLK")
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
    if era.gp:
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


DATA_SLOT = {(4, 14): 271, (4, 19): 234, (5, 4): 184, (5, 10): 105, (5, 15): 28, (5, 16): 14}
"""Stable release -> its first version with three pages of trampoline text and its data behind them.

Source: Linux commit bd09128d16fa ("arm64: Add percpu vectors for EL1", in v5.17) and its kind in stable
releases; 1c9a8e8768e4 ("arm64: entry: simplify trampoline data page") (in v6.0) undid the slot.
"""


def version_of(banner: str) -> tuple[int, int, int] | None:
    """Return the version in a banner; None if there is none. Debian's kernels tell theirs at the end only."""
    found = re.search(r"#\d+ [\w ]*Debian (\d{1,3})\.(\d{1,3})\.(\d{1,4})", banner) or re.search(
        r"Linux version (\d{1,3})\.(\d{1,3})(?:\.(\d{1,4}))?", banner
    )
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))


def has_data_slot(banner: str, era: Era) -> bool:
    """Tell whether the trampoline's data has a slot behind its text, by the version in the banner."""
    found = version_of(banner)
    if found is None:
        return (5, 17) <= era.since < (6, 0)
    if found[:2] >= (5, 17):
        return found[:2] < (6, 0)
    first = DATA_SLOT.get(found[:2])
    return first is not None and found[2] >= first


def era_of(banner: str, layout: str) -> Era:
    """Return the era of a kernel: by the version in its banner, else by the layout of its addresses.

    Raises UserError if neither tells.
    """
    found = re.search(r"Linux version (\d{1,3})\.(\d{1,3})", banner)
    if found is not None:
        version = (int(found[1]), int(found[2]))
        fitting = [era for era in ERAS.values() if era.since <= version]
        if fitting:
            return fitting[-1]
        raise UserError(f"Linux {found[1]}.{found[2]} is older than the oldest era, {next(iter(ERAS))}")
    by_layout = [era for era in ERAS.values() if era.layout and era.layout == layout]
    if not by_layout:
        raise UserError(
            "the snapshot does not tell which kernel it is of", f"--era, one of: {', '.join(ERAS)}"
        )
    return by_layout[0]


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


def shadow_places(era: Era, regime: Regime) -> tuple[int, int]:
    """Return addresses in KASAN's shadow, if there is any: its middle, and its last page.

    Nothing is mapped at either without KASAN; with CONFIG_KASAN_VMALLOC (from v5.11 on) the middle, the
    shadow of vmalloc memory, is mapped where that is in use.
    """
    low, high = _shadow(era, regime)
    return low + (high - low) // 2, high - regime.granule


def _shadow(era: Era, regime: Regime) -> tuple[int, int]:
    """Return where generic KASAN has its shadow: KASAN_SHADOW_START and _END.

    Source: Linux commit f4693c2716b3 ("arm64: mm: extend linear region for 52-bit VA configurations") (in
    v5.11) moved it to the end of the linear map's half.
    """
    least = least_bits(regime)
    size = 1 << least - 3
    if era.since < (5, 4):
        start = TOP - (1 << regime.va_bits)
        return start, start + size
    start = TOP - (1 << least - 1)
    return (start, start + size) if era.since < (5, 11) else (start - size, start)


def least_bits(regime: Regime) -> int:
    """Return VA_BITS_MIN: 52-bit kernels can do with 48 (16K: 47)."""
    if regime.va_bits <= 48:
        return regime.va_bits
    return 47 if regime.granule_bits == 14 else 48


def markers(era: Era, regime: Regime, facts: Facts) -> tuple[Marker, ...]:
    """Return the markers in the order of the kernel's table, which is that of its addresses.

    Where the configuration of the kernel was not that of its CPU (52-bit kernels on 48-bit CPUs before
    v6.9) they are those of a kernel for the CPU.
    """
    if era.since < (5, 4):
        return _before_flip(era, regime, facts)
    least, shift = least_bits(regime), regime.granule_bits - 6
    offset, middle = TOP - (1 << regime.va_bits), TOP - (1 << least - 1)
    size = middle - offset >> shift
    shadow = _shadow(era, regime)
    linear_end = shadow[0] if facts.kasan else middle
    modules = shadow[1] if facts.kasan and era.since < (5, 11) else middle
    bpf = (5, 8) <= era.since < (5, 17)
    if era.since < (5, 17):
        modules += 128 * MIB
    modules_end = modules + (128 * MIB if era.since < (6, 5) else 2 * GIB)
    if era.since < (5, 11):
        vmemmap = TOP - size - 2 * MIB
        pci_end = vmemmap - 2 * MIB
        fix_top = pci_end - 16 * MIB - 2 * MIB
        vmalloc_end = TOP - pud_size(regime) - size - 64 * 1024
    elif era.since < (6, 9):
        vmemmap = TOP - (1 << regime.va_bits - shift)
        pci_end, fix_top, vmalloc_end = vmemmap - 8 * MIB, vmemmap - 32 * MIB, vmemmap - 256 * MIB
    else:
        vmemmap = TOP - GIB - size
        pci_end, fix_top, vmalloc_end = TOP - GIB + 24 * MIB, TOP - 8 * MIB, vmemmap - 8 * MIB
    kasan = [Marker(shadow[0], "Kasan shadow start"), Marker(shadow[1], "Kasan shadow end")]
    fix = [Marker(_fixmap(era, regime, facts, fix_top), "Fixmap start"), Marker(fix_top, "Fixmap end")]
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
        *((*fix, *pci, *pages) if era.since < (6, 9) else (*pages, *pci, *fix)),
    )


def pud_size(regime: Regime) -> int:
    """Return PUD_SIZE: what an entry at level 1 maps, or one of the root where that level is folded."""
    return 1 << regime.shift(max(1, regime.start_level))


def _before_flip(era: Era, regime: Regime, facts: Facts) -> tuple[Marker, ...]:
    """Return the markers of kernels that have the linear map on top."""
    start, offset = TOP - (1 << regime.va_bits), TOP - (1 << regime.va_bits - 1)
    size = 1 << regime.va_bits - 1 - (regime.granule_bits - 6)
    shadow = _shadow(era, regime)
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
        Marker(_fixmap(era, regime, facts, top), "Fixmap start"),
        Marker(top, "Fixmap end"),
        Marker(pci_end - 16 * MIB, "PCI I/O start"),
        Marker(pci_end, "PCI I/O end"),
        Marker(vmemmap, "vmemmap start"),
        Marker(vmemmap + size, "vmemmap end"),
        Marker(offset, "Linear mapping"),
    )


def _fixmap(era: Era, regime: Regime, facts: Facts, top: int) -> int:
    """Return FIXADDR_START; from v6.6 on FIXADDR_TOT_START, which counts the temporary slots too.

    How many permanent slots there are depends on the configuration. The trampoline has the last of them;
    without one it is a device tree of 4 MiB, the hole, the early console and one slot for patching.
    """
    page = regime.granule
    if facts.trampoline is None:
        start = top - (4 * MIB // page + 3) * page
    else:
        start = facts.trampoline - (2 if facts.data_slot else 1) * page
    if era.since >= (6, 9):
        slots = 7 * (max(256 * 1024 // page, 1) + facts.early_page) + (5 if regime.start_level >= 0 else 6)
        start -= slots * page
    return start
