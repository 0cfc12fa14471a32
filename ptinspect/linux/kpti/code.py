"""The function that rewrites the kernel's tables, recognised from its instructions.

`idmap_kpti_install_ng_mappings` (arch/arm64/mm/proc.S) sets bit 11 in every valid descriptor. Up to
5.15 it runs with the MMU off and marks a table after its subtree; since Linux commit 47546a1912fc
("arm64: mm: install KPTI nG mappings with MMU enabled") (in v6.0) it runs with the MMU on through a
temporary pgd and marks a table before it descends. Which of the two a kernel has is read from its
code, never from its version. The code is one loop per level of tables:

    load entry; invalid or marked: skip; table: descend; mark and store; skip: next entry

where the new algorithm marks and stores before it descends, and levels that a configuration folds
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Literal

import numpy as np

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64
from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.image import KernelImage

Algorithm = Literal["mmu-off-post-order", "temp-pgd-pre-order"]
POST_ORDER: Algorithm = "mmu-off-post-order"
"""Up to 5.15: a table's descriptor is stored after all below it, by its physical address."""
PRE_ORDER: Algorithm = "temp-pgd-pre-order"
"""From 6.0: before all below it, through a temporary pgd."""
TablesAre = Literal["marked", "never-written", "written-back"]
"""What the walk does to descriptors of tables: sets bit 11; nothing (the debug patch that does not track
tables); stores the value that they had (the one that toggles bit 11 twice)."""
ENTRY = "idmap_kpti_install_ng_mappings"
MAX_CODE = 0x800
"""Bytes from the entry that are looked at; the longest known function takes 0x304 (6.12)."""
_LOOP_WORDS = 24
"""Instructions that one level's loop has at most, its preparation included."""


@dataclass(frozen=True)
class LevelCode:
    """The loop over the entries of one level's tables. Offsets are from the function's entry."""

    level: int
    """Level of the tables: 3 for the pte's, then upwards, as if all levels were in use."""
    register: int
    """Number of the register that holds the descriptor."""
    cursor: int
    """Number of the register that walks through the table (old: PA; new: VA in the temporary window)."""
    end: int
    """Number of the register that holds the first address past the end of the table."""
    begin: int
    """Where the loop begins: the target of its closing branch."""
    load: int
    mark: int | None
    """The `orr` (or `eor`) of bit 11; None if this level is never written."""
    store: int | None
    """The store of the entry; None if this level is never written."""
    displacement: int
    """Bytes to add to the cursor for the store's address: 0, or -8 if the load advances it already."""
    advance: int
    """The instruction that advances the cursor: an `add`, or the load itself."""
    closing: int
    """The branch that closes the loop; the instruction after it runs when the table is done."""
    descend: int | None
    """Where the branch to the next level (`tbnz #1`) goes; None on the last level."""
    skip: int
    """Where entries that need nothing go on: the target of `tbz #0`."""
    toggles: bool
    """True for `eor` (a debug patch of June 2018 on the linux-arm-kernel list), False for `orr`."""
    branch: int | None = None
    """The instruction that descends; None on the last level."""
    back: int | None = None
    """Where the code goes when the table is done: into the loop of the level above; None at the root."""
    bypass: bool = False
    """True if tables branch over the instruction that sets bit 11, to the store."""


@dataclass(frozen=True)
class StoreSite:
    """One instruction that stores a descriptor with bit 11 set."""

    offset: int
    """Offset of the store from the entry."""
    level: int
    register: int
    """Number of the register that holds the descriptor as it is stored."""
    base: int
    """Number of the register that holds its address (old: physical; new: in the temporary window)."""
    displacement: int
    """Bytes to add to that register."""
    toggles: bool
    """True if bit 11 is toggled instead of set."""


@dataclass(frozen=True)
class KptiCode:
    """The rewrite as a kernel contains it."""

    algorithm: Algorithm
    """`mmu-off-post-order` (up to 5.15) or `temp-pgd-pre-order` (from 6.0)."""
    entry_va: int
    """Link-time address of the function; it runs at the physical address of the same code."""
    points: Mapping[str, int]
    """Offsets from the entry. `entry`; `before_first_write` (the boot CPU alone, everything prepared,
    no descriptor written); `after_writes` (all written, TLB not flushed); `flag_cleared` (the store
    that lets the other CPUs go on); `return`; `parting` and `secondary` (where the other CPUs branch
    away, and to)."""
    levels: tuple[LevelCode, ...]
    """The loops, root first."""
    flag_va: int | None
    """Link-time address of the flag that counts the CPUs that are ready (`evidence.flag_of`)."""
    size: int
    """Bytes from the entry to the end of the function."""

    @property
    def stores(self) -> tuple[StoreSite, ...]:
        """The stores of descriptors, root first. Levels that are never written have none."""
        return tuple(
            StoreSite(c.store, c.level, c.register, c.cursor, c.displacement, c.toggles)
            for c in self.levels
            if c.store is not None
        )

    def levels_of(self, regime: Regime) -> tuple[LevelCode, ...]:
        """Return the loops that run under this regime, root first.

        A kernel for 52-bit addresses on a CPU with 48 skips its own root level: its tables have one
        level less, and the loop of the level below begins at swapper_pg_dir.
        """
        return self.levels[-regime.levels :]

    @property
    def tables(self) -> TablesAre:
        """What the walk does to descriptors of tables; all released kernels mark them.

        They are not written if the loop goes on past the store when a subtree is done. They are written
        back if bit 11 is toggled, or if tables come to the store by a way around the instruction that sets
        it, back from a subtree or before they go into it.
        """
        pairs = tuple(pairwise(self.levels))
        if not all(
            above.store is not None
            and above.branch is not None
            and (above.store < above.branch or not above.store < (below.back or 0) <= above.closing)
            for above, below in pairs
        ):
            return "never-written"
        around = any(
            above.bypass or (above.mark is not None and above.mark < (below.back or 0) <= (above.store or 0))
            for above, below in pairs
        )
        return "written-back" if self.toggles or around else "marked"

    @property
    def toggles(self) -> bool:
        """True if bit 11 is toggled: the debug patch that writes table descriptors back as they were."""
        return any(level.toggles for level in self.levels)

    def contains(self, pc: int, entry_pa: int) -> bool:
        """Tell whether a program counter lies in the function, given its physical address."""
        return entry_pa <= pc < entry_pa + self.size

    def secondary(self, pc: int, entry_pa: int) -> bool:
        """Tell whether a program counter lies in the part where the other CPUs wait."""
        start = self.points.get("secondary", self.size)
        return entry_pa + start <= pc < entry_pa + self.size


def recognise(image: KernelImage) -> KptiCode:
    """Recognise the rewrite in a kernel file, found by its symbol or, without symbols, by its code.

    Raises KernelFileError if there is none that is known.
    """
    if ENTRY in image.symbols:
        entry = image.lookup(ENTRY)
        return recognise_code(_code_at(image, entry), entry)
    if not image.symbols:
        for entry in _entries(image):
            try:
                return recognise_code(_code_at(image, entry), entry)
            except KernelFileError:
                continue
    raise KernelFileError(
        f"{image.path.name} has no {ENTRY}", "a kernel without CONFIG_UNMAP_KERNEL_AT_EL0 never rewrites"
    )


def _code_at(image: KernelImage, va: int) -> bytes:
    for size in (MAX_CODE, MAX_CODE // 2):
        try:
            return image.text_at(va, size)
        except KernelFileError:
            continue
    return b""


def _entries(image: KernelImage) -> Iterator[int]:
    """Yield where the function may begin: around each `mrs x3, ttbr1_el1`."""
    code = np.frombuffer(image.text_at(image.text_va, image.stored_size & ~3), "<u4")
    for index in np.flatnonzero(code == np.uint32(a64.MRS_X3_TTBR1)).tolist():
        first = index
        if first and int(code[first - 1]) == a64.MOV_X5_X3:
            first -= 1
        if first and int(code[first - 1]) == a64.BTI_C:
            first -= 1
        yield image.text_va + 4 * first


def recognise_code(code: bytes, entry_va: int) -> KptiCode:
    """Recognise the rewrite in the instructions that begin at its entry. Raises KernelFileError."""
    words = a64.words(code)
    levels = _levels(words)
    root = levels[0]
    sctlr = [4 * i for i, word in enumerate(words[: root.load // 4]) if _writes(word, a64.SCTLR_EL1)]
    ttbr1 = [4 * i for i, word in enumerate(words[: root.load // 4]) if _writes(word, a64.TTBR1_EL1)]
    algorithm: Algorithm
    if sctlr:
        algorithm, ready = POST_ORDER, sctlr[-1]
    elif ttbr1:
        algorithm, ready = PRE_ORDER, ttbr1[-1]
    else:
        raise _unknown("it changes neither SCTLR_EL1 nor TTBR1_EL1 before it walks")
    ready += 4
    while words[ready // 4] == a64.ISB:
        ready += 4
    points = {"entry": 0, "before_first_write": ready, "after_writes": root.closing + 4}
    after = points["after_writes"] // 4
    points["flag_cleared"] = 4 * _first(words, after, lambda word: a64.stores_wzr(word) is not None)
    points["return"] = 4 * _first(words, points["flag_cleared"] // 4, lambda word: word == a64.RET)
    flag_va: int | None = None
    for i, word in enumerate(words[: ready // 4]):
        built = a64.address_built(words, i, entry_va)
        away = a64.branch_nonzero(word, 4 * i)
        if built is not None and built[0] == 4 and flag_va is None:
            flag_va = built[1] & MASK64
        if away is not None and away[0] == 0 and "secondary" not in points:
            points["parting"], points["secondary"] = 4 * i, away[1]
    last = max(points["return"], levels[-1].closing + 4, points.get("secondary", 0))
    size = (
        4 * _first(words, last // 4, lambda word: word == a64.RET) + 4 if "secondary" in points else last + 4
    )
    return KptiCode(algorithm, entry_va, points, levels, flag_va, size)


def _levels(words: tuple[int, ...]) -> tuple[LevelCode, ...]:
    """Find the loops, from the root down, by following where each descends."""
    found: list[LevelCode] = []
    start: int | None = 0
    while start is not None:
        level = _level(words, start // 4, is_root=not found)
        if any(level.load == known.load for known in found) or len(found) >= 5:
            raise _unknown("its loops over the tables do not nest")
        found.append(level)
        start = level.descend
    return tuple(
        replace(code, level=LEVEL_LAST - below)
        for below, code in zip(range(len(found))[::-1], found, strict=True)
    )


def _level(words: tuple[int, ...], start: int, *, is_root: bool) -> LevelCode:
    """Recognise the loop of one level, whose load is the first one at or after word `start`."""
    load = next((i for i in range(start, len(words)) if _loads_entry(words, i)), None)
    if load is None:
        raise _unknown("a loop over a table is missing")
    access = a64.access64(words[load])
    assert access is not None
    register, cursor = access.register, access.base
    skip = mark = store = None
    tables: list[tuple[int, int]] = []  # where tables branch away, and to
    displacement, toggles, advance = 0, False, load if access.writeback else None
    for i in range(load + 1, min(load + _LOOP_WORDS, len(words))):
        word, at = words[i], 4 * i
        tested = a64.bit_branch(word, at)
        marked = a64.toggles_bit11(word)
        stored = a64.access64(word)
        added = a64.add_immediate(word)
        if tested is not None and tested[1] == register:
            if tested[2] == 0:
                skip = tested[3]
            elif tested[:1] == ("tbnz",) and tested[2] == 1:
                tables.append((at, tested[3]))
        elif marked is not None and marked[0] == register:
            mark, toggles = at, marked[2]
        elif stored is not None and not stored.load and (stored.register, stored.base) == (register, cursor):
            store, displacement = at, stored.offset
        elif added == (cursor, cursor, 8):
            advance = i
        closing = a64.branch_ne(word, at)
        if closing is not None:
            compared = a64.compare(words[i - 1])
            if compared is None or compared[0] != cursor or skip is None or advance is None:
                break
            back = None if is_root else _follow(words, i + 1)
            over = [t for t in tables if mark is not None and mark < t[1] <= (store or 0)]
            branch, descend = next((t for t in tables if t not in over), (None, None))
            return LevelCode(
                LEVEL_LAST, register, cursor, compared[1], closing, 4 * load, mark, store,
                displacement, 4 * advance, at, descend, skip, toggles, branch, back, bool(over),
            )  # fmt: skip
    raise _unknown("a loop over a table is not as expected")


def _loads_entry(words: tuple[int, ...], i: int) -> bool:
    """Tell whether a 64-bit load stands at word `i`, and `tbz #0` on its register right after it."""
    access = a64.access64(words[i])
    if access is None or not access.load or i + 1 >= len(words):
        return False
    tested = a64.bit_branch(words[i + 1], 4 * i + 4)
    return tested is not None and tested[:3] == ("tbz", access.register, 0)


def _follow(words: tuple[int, ...], i: int) -> int | None:
    """Return where a chain of unconditional branches at word `i` leads; folded levels make chains."""
    target = None
    for _ in range(4):
        step = a64.branch(words[i], 4 * i) if 0 <= i < len(words) else None
        if step is None:
            break
        target, i = step, step // 4
    return target


def _writes(word: int, register: int) -> bool:
    written = a64.system_write(word)
    return written is not None and written[0] == register


def _first(words: tuple[int, ...], start: int, fits: Callable[[int], bool]) -> int:
    """Return the index of the first instruction at or after `start` that fits."""
    for i in range(max(start, 0), len(words)):
        if fits(words[i]):
            return i
    raise _unknown("an instruction that every known version has is missing")


def _unknown(why: str) -> KernelFileError:
    return KernelFileError(f"{ENTRY} is not a rewrite that ptinspect knows: {why}")
