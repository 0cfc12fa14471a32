"""Names for levels and for parts of the address space."""

from __future__ import annotations

from collections.abc import Callable

from ptinspect.arch.regime import LEVEL_LAST, Regime

RegionNamer = Callable[[int], str]
"""Gives the name of the region that a virtual address lies in; empty if it has none."""

_NAMES = {3: "pte", 2: "pmd", 1: "pud", 0: "p4d"}


def level_name(level: int, regime: Regime) -> str:
    """Return Linux's name of a level: the root is always `pgd`, folded levels are left out.

    Source: Linux include/asm-generic/pgtable-nop4d.h, -nopud.h, -nopmd.h: the folded levels are the
    upper ones below the pgd, so that the pte is always level 3.
    """
    return "pgd" if level == regime.start_level else _NAMES.get(level, f"level {level}")


def leaf_name(level: int, regime: Regime) -> str:
    """Return the size of a leaf at `level` as people write it: `4K`, `2M`, `1G`."""
    size = regime.entry_size(level)
    for unit, shift in (("T", 40), ("G", 30), ("M", 20)):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}K"


def half_namer(regime: Regime) -> RegionNamer:
    """Return a namer that knows no more than which half an address lies in."""
    name = "kernel" if regime.upper else "user"
    return lambda va: name if regime.contains(va) else ""


def levels_of(regime: Regime) -> range:
    """Return the levels of lookup from the root on."""
    return range(regime.start_level, LEVEL_LAST + 1)
