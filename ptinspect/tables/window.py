"""The part of an address space that is looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import VirtAddr
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError


@dataclass(frozen=True)
class Window:
    """Bound the virtual addresses that matter, both ends included."""

    low: int
    """First address."""
    high: int
    """Last address."""
    whole: bool
    """True if it is the whole half: nothing needs to be pruned."""

    @classmethod
    def of(cls, va_range: tuple[VirtAddr, VirtAddr] | tuple[int, int] | None, regime: Regime) -> Window:
        """Clip a range to the regime's half. Raises UserError if nothing of it is left."""
        first, last = int(regime.va_min), int(regime.va_max)
        if va_range is None:
            return cls(first, last, True)
        low, high = max(int(va_range[0]), first), min(int(va_range[1]), last)
        if low > high:
            raise UserError(
                f"no address of {int(va_range[0]):#x}-{int(va_range[1]):#x} lies in {first:#x}-{last:#x}",
                "give the first and the last address, in the half that the root translates",
            )
        return cls(low, high, (low, high) == (first, last))

    def common(self, other: Window) -> Window:
        """Return the part that both have; one whose `low` is above its `high` where they have none."""
        return Window(max(self.low, other.low), min(self.high, other.high), self.whole and other.whole)

    def touches(self, va: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
        """Tell which of the ranges of `size` bytes at `va` have an address in the window."""
        last = va + np.uint64(size - 1)
        return (va <= np.uint64(self.high)) & (last >= np.uint64(self.low))

    def covers(self, va: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
        """Tell which of the ranges of `size` bytes at `va` lie in the window completely."""
        last = va + np.uint64(size - 1)
        return (va >= np.uint64(self.low)) & (last <= np.uint64(self.high))

    def slots(self, va: int, level: int, regime: Regime) -> tuple[int, int]:
        """Return first and last index of the entries in the window, for a table at `level` and `va`."""
        shift = regime.shift(level)
        count = regime.entries(level)
        first = max(self.low - va, 0) >> shift
        last = min((self.high - va) >> shift, count - 1)
        return min(first, count), last
