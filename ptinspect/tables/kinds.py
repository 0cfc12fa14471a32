"""Descriptors by the array: kind and addresses of many raw values at once.

The same facts as `ptinspect.arch.descriptor`, for uint64 arrays of any shape.
Source: Arm ARM D8.3 (descriptor formats).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import LEVEL_LAST, Regime

K_INVALID = 0
K_TABLE = 1
K_BLOCK = 2
K_PAGE = 3
K_RESERVED = 4
"""Encodings that the architecture reserves at their level; they fault, like invalid ones."""

KIND_NAMES = ("invalid", "table", "block", "page", "reserved")
"""Name of each kind code; the same words as `arch.descriptor.Kind`."""

BIT11 = np.uint64(1 << 11)
"""nG on leaves; the software mark of `kpti_install_ng_mappings` on table descriptors."""

CONTIGUOUS = np.uint64(1 << 52)
"""Hint of a leaf that it is one of a group; the Protected attribute where FEAT_THE's PnCH is set."""

TYPE_MASK = np.uint64(3)
"""Bits [1:0]: what a descriptor is, together with its level."""

HIERARCHY_SHIFT = 59
"""Lowest of the bits [63:59] that a table descriptor hands down: PXN, UXN, AP[1:0], NS."""

TABLE_TYPE = 3
PAGE_TYPE = 3
BLOCK_TYPE = 1
RESERVED_TYPE = 1
"""Bits [1:0] of a reserved encoding, where they are not a block's."""

Flags = NDArray[np.bool_]
"""One truth value for each descriptor."""


def kind_codes(level: int, regime: Regime) -> NDArray[np.uint8]:
    """Return the kind code for each value of descriptor bits [1:0]; shape (4,)."""
    if level == LEVEL_LAST:
        codes = (K_INVALID, K_RESERVED, K_INVALID, K_PAGE)
    else:
        block = K_BLOCK if regime.allows_block(level) else K_RESERVED
        codes = (K_INVALID, block, K_INVALID, K_TABLE)
    return np.array(codes, dtype=np.uint8)


def kinds(raw: NDArray[np.uint64], level: int, regime: Regime) -> NDArray[np.uint8]:
    """Return the kind code of every descriptor; same shape as `raw`."""
    result: NDArray[np.uint8] = kind_codes(level, regime)[(raw & TYPE_MASK).astype(np.uint8)]
    return result


def leaf_type(level: int, regime: Regime) -> int | None:
    """Return bits [1:0] of a leaf at `level`, or None if that level has no leaves."""
    if level == LEVEL_LAST:
        return PAGE_TYPE
    return BLOCK_TYPE if regime.allows_block(level) else None


def are_tables(raw: NDArray[np.uint64], level: int) -> Flags:
    """Tell which descriptors point to a next table; none do at the last level."""
    if level == LEVEL_LAST:
        return np.zeros(raw.shape, dtype=np.bool_)
    return _typed(raw, TABLE_TYPE)


def are_leaves(raw: NDArray[np.uint64], level: int, regime: Regime) -> Flags:
    """Tell which descriptors are blocks or pages."""
    wanted = leaf_type(level, regime)
    if wanted is None:
        return np.zeros(raw.shape, dtype=np.bool_)
    return _typed(raw, wanted)


def are_valid(raw: NDArray[np.uint64], level: int, regime: Regime) -> Flags:
    """Tell which descriptors are tables, blocks or pages: all that do not fault."""
    if level == LEVEL_LAST or not regime.allows_block(level):
        return _typed(raw, PAGE_TYPE)
    valid: Flags = (raw & np.uint64(1)) != 0
    return valid


def are_reserved(raw: NDArray[np.uint64], level: int, regime: Regime) -> Flags:
    """Tell which descriptors have an encoding that their level reserves."""
    if level < LEVEL_LAST and regime.allows_block(level):
        return np.zeros(raw.shape, dtype=np.bool_)
    return _typed(raw, RESERVED_TYPE)


def are_whole(raw: NDArray[np.uint64], level: int, regime: Regime) -> Flags:
    """Tell which tables lead to memory in one piece: leaves throughout, alike but for addresses that follow.

    `raw` has shape (tables, words), the result (tables,). Most tables of a linear map are such.
    """
    low, size = np.uint64(regime.address_fields(regime.shift(level))[0][0]), regime.entry_size(level)
    first, last = raw[:, 0], raw[:, -1]
    found: Flags = are_leaves(first, level, regime) & ((first & low) <= (last & low))
    found &= last - first == np.uint64(size * (raw.shape[1] - 1))
    rows = np.flatnonzero(found)
    words = raw if rows.shape[0] == raw.shape[0] else raw[rows]
    found[rows] = (words[:, 1:] - words[:, :-1] == np.uint64(size)).all(axis=1)
    return found


def _typed(raw: NDArray[np.uint64], wanted: int) -> Flags:
    result: Flags = (raw & TYPE_MASK) == np.uint64(wanted)
    return result


def address_bits(level: int, regime: Regime, *, table: bool = False) -> int:
    """Return the mask of raw descriptor bits that hold the output (or next table) address."""
    shift = regime.granule_bits if table else regime.shift(level)
    return sum(bits for bits, _ in regime.address_fields(shift))


def attribute_bits(level: int, regime: Regime, *, table: bool = False) -> int:
    """Return the mask of raw descriptor bits that are neither address nor type."""
    return ~(address_bits(level, regime, table=table) | 3) & MASK64


def without_addresses(raw: NDArray[np.uint64], level: int, regime: Regime) -> NDArray[np.uint64]:
    """Return descriptors without their addresses, and of those that fault bits 11 and 1:0 alone."""
    keep = np.full(raw.shape, 0x803, dtype=np.uint64)
    keep[are_leaves(raw, level, regime)] = attribute_bits(level, regime) | 3
    keep[are_tables(raw, level)] = attribute_bits(level, regime, table=True) | 3
    return raw & keep


def memory_types(raw: NDArray[np.uint64], regime: Regime) -> NDArray[np.uint8]:
    """Return the attribute byte of MAIR_EL1, or with FEAT_AIE of MAIR2_EL1, that each leaf selects."""
    index = raw >> np.uint64(2) & np.uint64(7)
    if regime.aie:
        index |= raw >> np.uint64(56) & np.uint64(8)
    table = np.frombuffer((regime.mair2 << 64 | regime.mair).to_bytes(16, "little"), dtype=np.uint8)
    found: NDArray[np.uint8] = table[index.astype(np.intp)]
    return found


def output_addresses(raw: NDArray[np.uint64], level: int, regime: Regime) -> NDArray[np.uint64]:
    """Return the output address of each block or page descriptor; same shape as `raw`."""
    return _addresses(raw, regime.shift(level), regime)


def next_tables(raw: NDArray[np.uint64], regime: Regime) -> NDArray[np.uint64]:
    """Return the next table's address of each table descriptor; same shape as `raw`."""
    return _addresses(raw, regime.granule_bits, regime)


def _addresses(raw: NDArray[np.uint64], shift: int, regime: Regime) -> NDArray[np.uint64]:
    (low, _), *more = regime.address_fields(shift)
    found = raw & np.uint64(low)
    for bits, up in more:
        found |= (raw & np.uint64(bits)) << np.uint64(up)
    return found
