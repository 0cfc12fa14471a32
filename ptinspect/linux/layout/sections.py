"""The sections of the kernel's image, and what tables alone tell of them: text and trampoline."""

from __future__ import annotations

from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.layout.geometry import KIB, MIB, TOP
from ptinspect.linux.layout.leaves import Leaves
from ptinspect.linux.layout.regions import Region

SMALLEST_TEXT = 256 * KIB
"""Executable memory in one piece that is taken for the kernel's text where no symbols are known."""
SECTIONS = (
    ("kernel text", ("_stext",), ("_etext",)),
    ("kernel rodata", ("__start_rodata", "_etext"), ("__init_begin", "__inittext_begin", "__end_rodata")),
    ("kernel init", ("__init_begin",), ("__init_end", "_einittext")),
    ("kernel data", ("_sdata",), ("_edata",)),
    ("kernel bss", ("__bss_start",), ("__bss_stop",)),
)
"""Name, symbols one of which begins it, and ends it (include/asm-generic/sections.h).

The first symbol that is there counts. An Image whose kernel lacks CONFIG_KALLSYMS_ALL names no data.
"""
PAGE, LARGEST_HEAD = 4096, 2 * MIB
HEAD = "kernel head"
"""What lies before _stext: the header of the Image, and nothing that runs after boot."""


def image_regions(image: KernelImage | None, offset: int | None, leaves: Leaves) -> list[Region]:
    """Return the sections of the image that symbols delimit, and after them the whole image.

    `offset` is that of KASLR. From v5.11 on what lies before _stext is not text (Linux commit e2a073dde921,
    "arm64: omit [_text, _stext) from permanent kernel mapping"): its addresses are left to vmalloc, whose
    memory begins there, until later releases (seen in v6.18) map it again, read-only.
    """
    if image is None or offset is None:
        return []
    start, end = image.text_va + offset, image.text_va + offset + image.size
    found = []
    for name, firsts, lasts in SECTIONS:
        first = next((image.symbols[symbol][0] for symbol in firsts if symbol in image.symbols), None)
        last = next((image.symbols[symbol][0] for symbol in lasts if symbol in image.symbols), None)
        if first is not None and last is not None and first < last:
            found.append(Region(first + offset, last + offset, name))
    text = image.symbols.get("_stext", (image.text_va, ""))[0] + offset
    at = leaves.at(start % TOP)
    own = _own_pages(start, text, leaves)
    begun = at is not None and leaves.executable[at] and own == [(start, text)]
    if begun and found and found[0].start == text:
        found[0] = Region(start, found[0].end, found[0].name)
    else:
        found += [Region(first, last, HEAD) for first, last in own]
    found.append(Region(text, end, "kernel image"))
    return [Region(r.start % TOP, (r.end - 1) % TOP + 1, r.name) for r in found]


def _own_pages(start: int, text: int, leaves: Leaves) -> list[tuple[int, int]]:
    """Return the parts of [start, text) that are not mapped, or to the bytes of the image that lie there."""
    there = leaves.translated(text % TOP)
    found: list[tuple[int, int]] = []
    for va in range(start, min(text, start + LARGEST_HEAD), PAGE):
        here = leaves.translated(va % TOP)
        if here is not None and (there is None or there - here != text - va):
            continue
        if found and found[-1][1] == va:
            found[-1] = (found[-1][0], va + PAGE)
        else:
            found.append((va, va + PAGE))
    return found


def text_by_tables(leaves: Leaves, linear: Region) -> list[Region]:
    """Return the largest executable memory in one piece outside the linear map, if it is large enough."""
    best: tuple[int, int] = (0, 0)
    start = end = 0
    for va, size in leaves.executable_ranges():
        start = start if va == end else va
        end = va + size
        if end - start > best[1] - best[0] and not linear.start <= start < linear.end:
            best = (start, end)
    return [Region(*best, "kernel text")] if best[1] - best[0] >= SMALLEST_TEXT else []


def trampoline(leaves: Leaves, fixmap: Region) -> list[Region]:
    """Return what is executable in the fixmap: FIX_ENTRY_TRAMP_TEXT*."""
    return [
        Region(va, va + size, "KPTI trampoline")
        for va, size in leaves.executable_ranges()
        if fixmap.start <= va < fixmap.end
    ]
