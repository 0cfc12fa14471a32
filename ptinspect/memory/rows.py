"""Tables read straight into the rows of an array, by memory that can do that."""

from __future__ import annotations

from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ptinspect.memory.source import PhysicalMemory


class RowMemory(Protocol):
    """Physical memory that saves the copy from the order of addresses to the order of rows."""

    def read_rows(
        self, addresses: NDArray[np.uint64], size: int, out: NDArray[np.uint64], rows: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Read the table at `addresses[n]` into the first `size` bytes of `out[rows[n]]`.

        `addresses` as for `read_tables`; `out` has shape (tables, words), C order. Returns which of
        the addresses could be read, shape (n,); the rows of the others hold zeros. Raises TargetError.
        """
        ...


def has_rows(memory: object) -> TypeGuard[RowMemory]:
    """Tell whether a memory is a RowMemory."""
    return hasattr(type(memory), "read_rows")


def read_rows(
    memory: PhysicalMemory,
    addresses: NDArray[np.uint64],
    size: int,
    to: tuple[NDArray[np.uint64], NDArray[np.intp]],
    readable: NDArray[np.bool_],
) -> None:
    """Read tables into `to`, an array and the row of each address, by the way the memory has for that.

    `readable` has one truth value for each row of the array and is set for those read. Raises TargetError.
    """
    out, rows = to
    if has_rows(memory):
        readable[rows] = memory.read_rows(addresses, size, out, rows)
        return
    values, good = memory.read_tables(addresses, size)
    out[rows, : size // 8] = values
    readable[rows] = good
    if not good.all():
        out[rows[~good]] = 0
