"""Names for parts of the address space."""

from __future__ import annotations

from collections.abc import Callable

from ptinspect.arch.regime import Regime

RegionNamer = Callable[[int], str]
"""Gives the name of the region that a virtual address lies in; empty if it has none."""


def half_namer(regime: Regime) -> RegionNamer:
    """Return a namer that knows no more than which half an address lies in."""
    name = "kernel" if regime.upper else "EL2" if regime.name == "EL2" else "lower half"
    return lambda va: name if regime.contains(va) else ""
