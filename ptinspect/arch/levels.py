"""Names of levels and of leaf sizes."""

from __future__ import annotations

from ptinspect.arch.regime import LEVEL_LAST, Regime

_NAMES = {3: "pte", 2: "pmd", 1: "pud", 0: "p4d"}


def level_name(level: int, regime: Regime) -> str:
    """Return Linux's name of a level: the root is always `pgd`, folded levels are left out.

    Source: Linux include/asm-generic/pgtable-nop4d.h, -nopud.h, -nopmd.h: the folded levels are the
    upper ones below the pgd, so that the pte is always level 3.
    """
    return "pgd" if level == regime.start_level else _NAMES.get(level, f"level {level}")


def levels_of(regime: Regime) -> range:
    """Return the levels of lookup from the root on."""
    return range(regime.start_level, LEVEL_LAST + 1)


def size_name(size: int) -> str:
    """Return a leaf size as people write it: `4K`, `2M`, `1G`."""
    for unit, shift in (("T", 40), ("G", 30), ("M", 20)):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}K"
