"""Names of levels and of sizes."""

from __future__ import annotations

from ptinspect.arch.regime import LEVEL_LAST, Regime

_NAMES = {3: "pte", 2: "pmd", 1: "pud", 0: "p4d"}
LEVEL_NAMES: tuple[str, ...] = ("pgd", "p4d", "pud", "pmd", "pte")


def level_name(level: int, regime: Regime) -> str:
    """Return Linux's name of a level: the root is always `pgd`, folded levels are left out.

    Source: Linux include/asm-generic/pgtable-nop4d.h, -nopud.h, -nopmd.h: the folded levels are the
    upper ones below the pgd, so that the pte is always level 3.
    """
    return "pgd" if level == regime.start_level else _NAMES.get(level, f"level {level}")


def level_number(value: int | str, start_level: int) -> int:
    """Return the level that a number or a word of LEVEL_NAMES names in a regime that starts at `start_level`.

    Linux counts from the leaves: pte is level 3, pmd 2, pud 1, p4d 0; pgd is the root's, and names
    above the root are folded into it (include/asm-generic/pgtable-nop4d.h and its like).
    """
    if isinstance(value, int):
        return value
    named = {"pgd": start_level, "p4d": 0, "pud": 1, "pmd": 2, "pte": 3}[value]
    return max(named, start_level)


def levels_of(regime: Regime) -> range:
    """Return the levels of lookup from the root on."""
    return range(regime.start_level, LEVEL_LAST + 1)


def size_text(size: int) -> str:
    """Return a size as people write it: `4K`, `2M`, `1G`; above 16M in tenths where it is no multiple."""
    if size >= 16 << 20 and size % (1 << 20):
        large = next(shift for shift in (40, 30, 20) if size >= 16 << shift)
        if large < 40 and round(size / (1 << large), 1) == 1024:
            large += 10
        return f"{size / (1 << large):.1f}{'KMGT'[large // 10 - 1]}"
    shift = next((shift for shift in (40, 30, 20) if size >= 1 << shift and size % (1 << shift) == 0), 10)
    return f"{size >> shift}{'KMGT'[shift // 10 - 1]}"
