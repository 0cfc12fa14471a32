"""Pages of kernel addresses at which the kernel maps one table after the other, to write them.

Tables that are mapped nowhere else, or read-only, are written through slots of the fixmap (pgd_set_fixmap()
and its like, arch/arm64/mm/mmu.c); from 6.0 on the rewrite has a window of its own at their upper end
(KPTI_NG_TEMP_VA, arch/arm64/mm/proc.S). Which slots there are is read from the kernel's code.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.a64 import moved_constant, targets
from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import PRE_ORDER, recognise
from ptinspect.linux.layout.geometry import Geometry, geometries, variant_of
from ptinspect.linux.releases import parse

SET_FIXMAP = "__set_fixmap"
FIXMAP, WINDOW = "fixmap", "window of the rewrite"
TABLE_SLOTS = 8
"""The slots for tables are the last ones (enum fixed_addresses, asm/fixmap.h): one for each level."""
BACK = 12
"""Instructions before a call in which its first argument is set."""
MOVZ_32 = 1 << 31
"""What a `mov Wd, #value` lacks to be a `mov Xd, #value`."""


@dataclass(frozen=True)
class Window:
    """A page of addresses that maps now this table, now that one."""

    va: int
    name: str
    """FIXMAP or WINDOW."""


def windows(
    image: KernelImage, regime: Regime, made: Geometry, level: int | None = None
) -> tuple[Window, ...]:
    """Return the windows for tables of a level, or for all, of a kernel whose parts lie as `made` has it."""
    slots, rewrite = fixmap_slots(image), _of_rewrite(image, regime)
    if level is not None and slots:
        own = {slots[0] + LEVEL_LAST - level, *slots[-1:] * (level == regime.start_level)}
        slots = tuple(slot for slot in slots if slot in own) or slots
    if level is not None:
        rewrite = rewrite[level - LEVEL_LAST - 1 :][:1]
    found = [Window((made.fixmap.end - slot * regime.granule) & MASK64, FIXMAP) for slot in slots]
    return (*found, *(Window(va, WINDOW) for va in rewrite))


def geometry_of_release(banner: str, regime: Regime) -> Geometry | None:
    """Return where a kernel's release has the parts of the address space, without KASAN; None if unknown."""
    release = parse(banner)
    return None if release is None else geometries(variant_of(release), regime)[0]


@lru_cache(maxsize=4)
def fixmap_slots(image: KernelImage) -> tuple[int, ...]:
    """Return the numbers of the fixmap's slots for tables: constants that the kernel's code calls it with.

    The first is that of the last level (enum fixed_addresses: FIX_PTE, FIX_PMD, FIX_PUD, from 6.9 on FIX_P4D,
    FIX_PGD), and the last that of the root, which is written through it alone (set_swapper_pgd()). None where
    the kernel file does not tell.
    """
    try:
        target = image.lookup(SET_FIXMAP)
        code = np.frombuffer(image.text_at(image.text_va, image.stored_size & ~3), "<u4")
    except KernelFileError:
        return ()
    calls = np.flatnonzero(code >> 26 == 0b100101)
    jumps = (code[calls] & 0x3FF_FFFF).astype(np.int64)
    jumps -= (jumps >> 25) << 26
    goal = (target - image.text_va) // 4
    found = Counter(_first_argument(code, at) for at in calls[calls + jumps == goal].tolist())
    slots = [slot for slot, times in found.items() if slot is not None and times > 1]  # mapped, and unmapped
    return tuple(sorted(slot for slot in slots if slot > max(slots) - TABLE_SLOTS))


def _first_argument(code: NDArray[np.uint32], call: int) -> int | None:
    """Return the constant in w0 at a call, if one is set on the straight way to it."""
    for at in range(call - 1, max(call - BACK, -1), -1):
        word = int(code[at])
        found = moved_constant(word | MOVZ_32)
        if found is not None and found[0] == 0:
            return found[1]
        if targets(word, 0) and word >> 26 in (0b000101, 0b100101):  # b, bl
            return None
    return None


def _of_rewrite(image: KernelImage, regime: Regime) -> list[int]:
    """Return the pages of the window through which the rewrite reaches the tables.

    It begins one entry of level 2 below the end of the addresses; its first page is the table that maps it,
    and a page for each level follows, root first.
    """
    try:
        code = recognise(image)
    except KernelFileError:
        return []
    if code.algorithm != PRE_ORDER:
        return []
    start = MASK64 + 1 - (1 << regime.shift(2))
    return [start + page * regime.granule for page in range(1, len(code.levels) + 1)]
