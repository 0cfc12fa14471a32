"""The kernel's rewrite of its own tables: which algorithm, where its instructions are, how far it is.

`idmap_kpti_install_ng_mappings` (arch/arm64/mm/proc.S) sets bit 11 in every valid descriptor. Up to
5.15 it runs with the MMU off and marks a table after its subtree; since Linux commit 47546a1912fc
("arm64: mm: install KPTI nG mappings with MMU enabled", in v6.0) it runs with the MMU on through a
temporary pgd and marks a table before it descends. Which of the two a kernel has is read from its
instructions, never from its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import KernelFileError
from ptinspect.linux import a64
from ptinspect.linux.image import KernelImage

Algorithm = Literal["mmu-off-post-order", "temp-pgd-pre-order"]
ENTRY = "idmap_kpti_install_ng_mappings"
MAX_CODE = 0x400
"""Bytes of the function that are looked at; the longest known one takes 0x304 (6.12)."""

WALK_REGISTERS: Mapping[int, tuple[int, int]] = {
    7: (5, 6),
    30: (19, 20),
    10: (8, 9),
    13: (11, 12),
    16: (14, 15),
}
"""Descriptor register -> (cursor, end): pgd, p4d, pud, pmd, pte, the same in all versions.

Source: Linux arch/arm64/mm/proc.S, the .req lines of idmap_kpti_install_ng_mappings, v4.16 to v7.x.
"""


@dataclass(frozen=True)
class StoreSite:
    """Describe one instruction pair that sets bit 11 and stores the descriptor."""

    offset: int
    """Offset of the store instruction from the entry."""
    level: int
    """Level of the descriptors it writes: 3 for the pte's, then upwards."""
    register: int
    """Number of the register that holds the descriptor."""
    base: int
    """Number of the register that holds its address (old: physical; new: in the temporary window)."""
    displacement: int
    """Bytes to add to that register: 0, or -8 where the cursor was advanced already."""
    toggles: bool
    """True for `eor` (the debug patch of June 2018), False for `orr`."""


@dataclass(frozen=True)
class KptiCode:
    """Describe the rewrite as a kernel contains it."""

    algorithm: Algorithm
    """`mmu-off-post-order` (up to 5.15) or `temp-pgd-pre-order` (from 6.0)."""
    entry_va: int
    """Link-time address of the function; it runs at the physical address of the same code."""
    points: Mapping[str, int]
    """Offsets from the entry: `entry`, `before_first_write`, `after_writes` (all written, TLB not
    flushed), `flag_cleared`, `return`, and `secondary` (where the other CPUs go)."""
    stores: tuple[StoreSite, ...]
    """The stores, in the order of the code. A kernel that does not mark tables has but one."""
    flag_va: int | None
    """Link-time address of the flag that is 1 before, the CPU count meanwhile, 0 afterwards."""
    size: int
    """Bytes from the entry to the end of the part that the boot CPU runs, at least."""

    def store_offset(self, level: int) -> int:
        """Return the offset of the store for a level, or of the next level down that has one."""
        for site in sorted(self.stores, key=lambda site: site.level):
            if site.level >= level:
                return site.offset
        return self.stores[-1].offset

    def contains(self, pc: int, entry_pa: int) -> bool:
        """Tell whether a program counter lies in the function, given its physical address."""
        return entry_pa <= pc < entry_pa + self.size


def recognise(image: KernelImage) -> KptiCode:
    """Recognise the rewrite in a kernel file. Raises KernelFileError if it has none that is known."""
    entry = image.lookup(ENTRY)
    return recognise_code(image.text_at(entry, MAX_CODE), entry)


def recognise_code(code: bytes, entry_va: int) -> KptiCode:
    """Recognise the rewrite in the instructions that begin at its entry. Raises KernelFileError."""
    words = a64.words(code)
    stores = _stores(words)
    if not stores:
        raise KernelFileError(f"{ENTRY} does not set bit 11: not a rewrite that is known")
    points: dict[str, int] = {"entry": 0}
    sctlr = [4 * i for i, word in enumerate(words) if a64.is_msr_sctlr(word)]
    first, last = min(site.offset for site in stores), max(site.offset for site in stores)
    algorithm: Algorithm
    if sctlr and sctlr[0] < first:
        algorithm = "mmu-off-post-order"
        flush = _first(words, a64.TLBI_VMALLE1IS, 0)
        points["before_first_write"] = sctlr[0] + 8
        points["after_writes"] = flush - 4
        if words[flush // 4 - 1] != a64.DSB_SY:
            raise KernelFileError(f"{ENTRY}: no dsb before the TLB flush; not a rewrite that is known")
    else:
        algorithm = "temp-pgd-pre-order"
        if not any(a64.is_msr_ttbr1(word) for word in words[: first // 4]):
            raise KernelFileError(f"{ENTRY} changes neither SCTLR nor TTBR1: not a rewrite that is known")
        points["before_first_write"] = first - 4
        points["after_writes"] = _first(words, a64.DSB_ISHST, 0)
    points["flag_cleared"] = next(
        (4 * i for i, word in enumerate(words) if a64.is_str_wzr(word) and 4 * i > points["after_writes"]), -1
    )
    points["return"] = _first(words, a64.RET, points["after_writes"])
    flag_va: int | None = None
    for i, word in enumerate(words[:16]):
        target = a64.cbnz_w0_target(word, 4 * i)
        if target is not None:
            points["secondary"] = target
            break
        value = a64.adr_value(words, i, entry_va)
        if value is not None and a64.target_register(word) == 4:
            flag_va = value & MASK64
    size = max(last, points["return"], points.get("secondary", 0)) + 0x60
    return KptiCode(algorithm, entry_va, points, stores, flag_va, size)


def _first(words: tuple[int, ...], wanted: int, start: int) -> int:
    for i in range(start // 4, len(words)):
        if words[i] == wanted:
            return 4 * i
    raise KernelFileError(f"{ENTRY} has no instruction {wanted:#010x}: not a rewrite that is known")


def _stores(words: tuple[int, ...]) -> tuple[StoreSite, ...]:
    """Find `orr/eor Xd, Xd, #0x800` followed by a store of Xd, and give the levels from the pte up."""
    found = []
    for i, word in enumerate(words):
        mark = a64.sets_bit11(word)
        if mark is None or mark[0] not in WALK_REGISTERS:
            continue
        for j in range(i + 1, min(i + 4, len(words))):
            store = a64.store64(words[j])
            if store is not None and store[0] == mark[0] and store[1] == WALK_REGISTERS[mark[0]][0]:
                found.append((4 * j, mark[0], store[1], store[2], mark[1]))
                break
    present = [register for register in WALK_REGISTERS if any(site[1] == register for site in found)]
    level = {register: LEVEL_LAST - n for n, register in enumerate(reversed(present))}
    return tuple(
        StoreSite(offset, level[register], register, base, displacement, toggles)
        for offset, register, base, displacement, toggles in found
    )


@dataclass(frozen=True)
class Cursor:
    """Say where the walk stands in the table of one level."""

    level: int
    """The level."""
    index: int
    """The slot that is being looked at; the number of slots when the table is done."""
    entries: int
    """The number of slots."""
    descriptor: int
    """The descriptor that was loaded last."""


def cursors(state: CpuState, code: KptiCode, regime: Regime) -> tuple[Cursor, ...]:
    """Read from the walk registers where the rewrite stands, the root first.

    Levels that the walk has not entered below the current entry are left out. Registers of the
    identity-mapped function have this meaning from its first load to its return only.
    """
    found: list[Cursor] = []
    present = [r for r in WALK_REGISTERS if any(site.register == r for site in code.stores)]
    wanted = len(range(regime.start_level, LEVEL_LAST + 1))
    advanced = any(site.displacement for site in code.stores)
    for register, level in zip(
        present[-wanted:], range(LEVEL_LAST + 1 - min(wanted, len(present)), 4), strict=True
    ):
        cursor, end = (state.x[number] for number in WALK_REGISTERS[register])
        entries = regime.entries(level)
        left = (end - cursor) // 8
        if not 0 <= left <= entries or (end - cursor) % 8:
            break
        physical = code.algorithm == "mmu-off-post-order"
        if found and physical and end - 8 * entries != regime.next_table(found[-1].descriptor):
            break  # registers of an earlier table: this one is not entered yet
        index = entries - left
        if advanced and index > 0 and left < entries:
            index -= 1
        raw = state.x[register]
        found.append(Cursor(level, index, entries, raw))
        if index >= entries or raw & 3 != 3:
            break
    return tuple(found)


def frontier_of(found: tuple[Cursor, ...], regime: Regime) -> int | None:
    """Return the virtual address that the cursors stand for; None if there are none."""
    if not found:
        return None
    va = int(regime.va_min)
    for cursor in found:
        va += cursor.index << regime.shift(cursor.level)
    return va & MASK64
