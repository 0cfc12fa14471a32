"""The registers of idmap_kpti_install_ng_mappings, by role, as a dead CPU left them.

Linux arch/arm64/mm/proc.S, 4.16 to 6.12: x5 to x16 hold cursor, end and last descriptor of each level
and are not touched by the short way back into kpti_install_ng_mappings.
"""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.arch.descriptor import BIT11, Descriptor, Kind, decode
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import ttbr_base
from ptinspect.dataclass import dataclass
from ptinspect.linux.oops.incident import Fault

ROLES: Mapping[int, tuple[str, str]] = {
    2: ("swapper_pa", "physical address of swapper_pg_dir, the argument"),
    3: ("swapper_ttb", "TTBR1_EL1 as it was saved: swapper_pg_dir"),
    4: ("flag_ptr", "physical address of __idmap_kpti_flag, where the CPUs meet"),
    5: ("cur_pgdp", "cursor in the root table"),
    6: ("end_pgdp", "end of the root table"),
    7: ("pgd", "last root descriptor read"),
    8: ("cur_pudp", "cursor in the last pud table"),
    9: ("end_pudp", "end of the last pud table"),
    10: ("pud", "last pud descriptor read"),
    11: ("cur_pmdp", "cursor in the last pmd table"),
    12: ("end_pmdp", "end of the last pmd table"),
    13: ("pmd", "last pmd descriptor read"),
    14: ("cur_ptep", "cursor in the last pte table"),
    15: ("end_ptep", "end of the last pte table"),
    16: ("pte", "last pte descriptor read"),
}
"""Register number -> its name in the source, and what it holds."""

_LEVELS: Mapping[int, tuple[tuple[str, int, int], ...]] = {
    4: (("pgd", 5, 0), ("pud", 8, 1), ("pmd", 11, 2), ("pte", 14, 3)),
    3: (("pgd", 5, 1), ("pmd", 11, 2), ("pte", 14, 3)),
    2: (("pgd", 5, 2), ("pte", 14, 3)),
}
"""Levels of lookup -> name, first of the three registers, and level; folded levels use none."""


@dataclass(frozen=True)
class WalkLevel:
    """Cursor and end of one level of the rewrite's walk."""

    name: str
    """Linux's name of the level."""
    level: int
    """The level in the Arm ARM's count."""
    first: int
    """Number of the register that holds the cursor; end and descriptor follow."""
    current: int
    """Where the cursor stands."""
    end: int
    """The end of the table that it goes through."""
    last: Descriptor
    """The last descriptor that was read at this level."""

    @property
    def complete(self) -> bool:
        """True if the walk went through the whole table."""
        return self.current == self.end

    @property
    def table(self) -> int:
        """Address of the table."""
        return self.end - 8 * self.last.regime.entries(self.level)


@dataclass(frozen=True)
class KptiRegisters:
    """The walk's state in the registers of the CPU that did it."""

    algorithm: str
    """`mmu-off-post-order` or `temp-pgd-pre-order`, by the kind of the cursors' addresses."""
    levels: tuple[WalkLevel, ...]
    """The root first."""
    swapper_pa: int | None
    """Physical address of swapper_pg_dir (x2), if the other registers confirm it."""
    reasons: tuple[str, ...]
    """Why these registers are taken for the walk's."""

    @property
    def complete(self) -> bool:
        """True if every level's cursor stands at its end."""
        return all(level.complete for level in self.levels)

    @property
    def leaves(self) -> tuple[WalkLevel, ...]:
        """The levels whose last descriptor is a block or page."""
        return tuple(level for level in self.levels if level.last.is_leaf)


def kpti_registers(fault: Fault, regime: Regime) -> KptiRegisters | None:
    """Return the walk's registers, if the log shows that this CPU did the walk; else None.

    Asked of the registers: a cursor and an end in the same table at each level, the ends aligned
    to a table; asked of the rest: the place (lr or pc), or the stopper thread `migration/0`.
    """
    if not fault.may_rewrite:
        return None
    place, x = fault.rewrite_place, fault.registers
    levels = []
    for name, first, level in _LEVELS.get(regime.levels, ()):
        if any(number not in x for number in range(first, first + 3)):
            return None
        step = WalkLevel(name, level, first, x[first], x[first + 1], decode(x[first + 2], level, regime))
        size = 8 * regime.entries(level)
        if step.current % 8 or step.end % size or not 0 < step.end - size <= step.current <= step.end:
            return None
        levels.append(step)
    if not levels:
        return None
    physical = [level.end < 1 << 52 for level in levels]
    if any(physical) != all(physical):
        return None
    reasons = [f"lr is {place}" if place else f"the task is {fault.comm}"]
    pairs = ", ".join(f"x{step.first}/x{step.first + 1}" for step in levels)
    reasons.append(f"{pairs} are pairs of a cursor and the end of its table")
    swapper = _swapper(fault, levels[0])
    if swapper is not None:
        reasons.append(
            "x6 is x2 plus one table, and x3 is x2 as well: x2 is the physical address of swapper_pg_dir"
        )
    algorithm = "mmu-off-post-order" if all(physical) else "temp-pgd-pre-order"
    return KptiRegisters(algorithm, tuple(levels), swapper, tuple(reasons))


def _swapper(fault: Fault, root: WalkLevel) -> int | None:
    """Return x2 where x3 (TTBR1_EL1 without ASID and CnP) and x6 agree with it."""
    x2, x3 = fault.registers.get(2), fault.registers.get(3)
    if x2 is None or x3 is None or not x2:
        return None
    return x2 if ttbr_base(x3) == x2 == root.table else None


def explain(number: int, walk: KptiRegisters) -> str:
    """Return what register `number` of the walk holds."""
    meaning = ROLES[number][1]
    level = next((step for step in walk.levels if 0 <= number - step.first < 3), None)
    if level is None:
        return meaning
    if number == level.first:
        left = level.end - level.current
        return f"{meaning}: {'at the end, finished' if level.complete else f'{left:#x} bytes to go'}"
    if number == level.first + 1:
        return f"{meaning}, which is at {level.table:#x}"
    return f"{meaning}: {describe(level.last)}"


def describe(d: Descriptor, *, user: bool = False) -> str:
    """Describe a descriptor in one line: kind, address, bit 11 (of the kernel's tables), attributes."""
    if d.kind is Kind.INVALID:
        return _invalid(d)
    if d.output_address is None or d.attributes is None:
        return str(d.kind)
    if d.kind is Kind.TABLE:
        mark = ", marked (bit 11)" if d.raw & BIT11 else ", not marked (bit 11 clear)"
        return f"table at {d.output_address:#x}{'' if user else mark}"
    a = d.attributes
    size = {12: {1: "1 GiB ", 2: "2 MiB "}, 14: {2: "32 MiB "}, 16: {2: "512 MiB "}}
    what = f"{size.get(d.regime.granule_bits, {}).get(d.level, '')}{d.kind}"
    parts = [f"{what} at {d.output_address:#x}", "nG" if a.ng else "global"]
    parts.append(
        ("EL1 " if not (a.ap or 0) & 1 else "EL0 and EL1 ")
        + ("read-only" if (a.ap or 0) & 2 else "read/write")
    )
    parts.append(f"AttrIndx {a.attr_index}" + (f" ({a.memory_type})" if d.regime.mair else ""))
    parts.extend(
        name
        for name, flag in (
            ("AF", a.af),
            ("DBM", a.dbm),
            ("Cont", a.contiguous),
            ("PXN", a.pxn),
            ("UXN", a.uxn),
        )
        if flag
    )
    return ", ".join([*parts, *a.software])


def _invalid(d: Descriptor) -> str:
    """Describe a descriptor without bit 0: what it would be with it."""
    if not d.raw:
        return "empty"
    valid = decode(d.raw | 1, d.level, d.regime)
    if d.raw & 3 != 2 or valid.output_address is None:
        return "invalid"
    return f"invalid: bit 0 is clear, all else is a {valid.kind} at {valid.output_address:#x}"
