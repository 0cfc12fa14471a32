"""The parts of a kernel file that are code, and where each of them runs: as linked, or where it lies.

Source: arch/arm64/kernel/vmlinux.lds.S, include/asm-generic/vmlinux.lds.h.
"""

from __future__ import annotations

from typing import Literal

from ptinspect.arch import a64
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.image import KernelImage

Part = Literal["text", "init", "exit", "head", "identity", "trampoline", "data", "unknown"]
"""The kernel's text; what is freed after the boot, code and data; code for unloading what is built in; the
header and what follows it; code of the identity map, that for EL2 too; the trampoline of KPTI, which runs at
an address of its own; what is no code; what the file does not tell."""
PARTS: tuple[tuple[Part, str, str], ...] = (
    ("identity", "__idmap_text_start", "__idmap_text_end"),
    ("identity", "__hyp_idmap_text_start", "__hyp_idmap_text_end"),
    ("trampoline", "__entry_tramp_text_start", "__entry_tramp_text_end"),
    ("text", "_stext", "_etext"),
    ("init", "_sinittext", "_einittext"),
    ("exit", "__exittext_begin", "__exittext_end"),
)
SWITCH = "__primary_switch"
"""Switches the MMU on and goes on at the kernel's own address (arch/arm64/kernel/head.S)."""
SWITCH_BYTES = 0x100


def part_of(image: KernelImage, link_va: int) -> Part:
    """Return the part that a link-time address lies in; `data` only if all that is code is known."""
    known = True
    for part, first, last in PARTS:
        start, end = image.symbols.get(first), image.symbols.get(last)
        if start and end and start[0] <= link_va < end[0]:
            return part
        known = known and (bool(start and end) or part not in ("text", "init"))
    start = image.symbols.get("_stext")
    if start and image.text_va <= link_va < start[0]:
        return "head"
    return "data" if known else "unknown"


def switches(image: KernelImage) -> tuple[int, ...]:
    """Return the link-time addresses of the jumps with which the boot CPU goes to the kernel's own addresses.

    They are reached while the code still runs where it lies, with the MMU on and the kernel's code mapped.
    A kernel of before v6.0 that moves itself comes by twice: from where it was linked it returns, to go on
    where it stays (Linux commit 0cea9d0d5f26 and others removed that). Empty if the file does not tell.
    """
    if SWITCH not in image.symbols:
        return ()
    start = image.lookup(SWITCH)
    try:
        code = a64.words(image.text_at(start, SWITCH_BYTES))
    except KernelFileError:
        return ()
    end = image.table.end(start) or start + SWITCH_BYTES
    jumps = [start + 4 * i for i, word in enumerate(code) if a64.jumps_to_register(word)]
    return tuple(at for at in jumps if at < end)
