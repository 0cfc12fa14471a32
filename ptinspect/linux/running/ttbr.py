"""What TTBR1 and TTBR0 of a CPU point to: the kernel's own table, one that stands in for it, a task's."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import numpy as np

from ptinspect.arch.bits import bit
from ptinspect.arch.regime import regime_from_registers, root_pa
from ptinspect.arch.sysregs import CpuState, translation_register, ttbr_base
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.other_roots import current_tables, identity_map
from ptinspect.linux.running.swapper import PAGES_APART, valid_entries

RoleName = Literal["swapper", "init", "trampoline", "reserved", "temporary", "idmap", "none", "unknown"]
NAMES: dict[str, RoleName] = {
    "swapper_pg_dir": "swapper",
    "init_pg_dir": "init",
    "__pi_init_pg_dir": "init",
    "tramp_pg_dir": "trampoline",
    "reserved_pg_dir": "reserved",
    "reserved_ttbr0": "reserved",
    "empty_zero_page": "reserved",
    "idmap_pg_dir": "idmap",
    "init_idmap_pg_dir": "idmap",
}
"""Symbol of a table -> what it is (arch/arm64/kernel/vmlinux.lds.S, arch/arm64/mm/mmu.c)."""


@dataclass(frozen=True)
class Role:
    """What a table is."""

    name: RoleName
    """swapper: the kernel's own; init: the one of early boot; trampoline: in user mode with KPTI; reserved:
    maps nothing; temporary: the window of the rewrite; idmap: physical addresses; none: the register is 0;
    unknown."""
    reason: str
    """How that is known."""


def ttbr1_role(view: GuestView, state: CpuState) -> Role:
    """Return what TTBR1 of a CPU points to, by symbol where the kernel names its data, else by content.

    Raises RegimeError before translation is set up, TargetError if the link to the guest failed.
    """
    if not state.system.get(translation_register(state, "TTBR1")):
        return Role("none", "the register is 0")
    pa = root_pa(state, view.regime)
    return by_symbol(view, pa) or _by_content(view, pa)


def by_symbol(view: GuestView, pa: int) -> Role | None:
    """Return what a table is by the kernel's symbol for it; None where no symbol tells."""
    if view.image is None or "swapper_pg_dir" not in view.image.symbols:
        return None
    for name, role in NAMES.items():
        if name in view.image.symbols:
            try:
                if view.pa_of_link(view.image.lookup(name)) == pa:
                    return Role(role, name)
            except (GuestError, KernelFileError):
                return None
    return None


def upper_root(state: CpuState, view: GuestView) -> tuple[int, str] | None:
    """Return the root table in TTBR1 and what it is, empty if unknown; None while the register is 0.

    Raises RegimeError before translation is set up, TargetError if the link to the guest failed.
    """
    role = ttbr1_role(view, state)
    if role.name == "none":
        return None
    return root_pa(state, view.regime), "" if role.name == "unknown" else role.name


def _by_content(view: GuestView, pa: int) -> Role:
    regime = view.regime
    try:
        raw = view.memory.read(pa, 8 * regime.entries(regime.start_level))
        swapper = view.swapper().pa
    except GuestError as error:
        return Role("unknown", error.message)
    valid = int(np.count_nonzero(np.frombuffer(raw, "<u8") & np.uint64(1)))
    distance = swapper - pa
    roles: tuple[tuple[bool, RoleName, str], ...] = (
        (not valid, "reserved", "it maps nothing"),
        (view.confirmed and not distance, "swapper", "it maps the kernel"),
        (_in_rewrite(view, pa), "temporary", "x2 of a CPU in the rewrite"),
        (
            view.confirmed and valid == 1 and distance in [pages * regime.granule for pages in PAGES_APART],
            "trampoline",
            f"one entry, {distance:#x} bytes below swapper",
        ),
        (view.maps_kernel(pa), "init", "it maps the kernel image, and is not the table in use elsewhere"),
    )
    return next(
        (Role(name, why) for fits, name, why in roles if fits),
        Role("unknown", f"{valid} entries, none of which maps the kernel image"),
    )


def _in_rewrite(view: GuestView, pa: int) -> bool:
    """Tell whether a CPU that runs from the identity map has this table in x2."""
    wide = view.regime.wide_oa
    return any(ttbr_base(s.x[2], pa52=wide) == pa and s.el and not bit(s.pc, 55) for s in view.states)


@dataclass(frozen=True)
class LowerRole:
    """What a table of the lower half is; empty as far as nothing shows it."""

    holds: str = ""
    """`identity map`, `user tables`, or `nothing`: no valid entry."""
    reason: str = ""
    """What shows it: whose tables, which symbol."""
    half: str = ""
    """What its addresses are: user, identity map."""
    mm: int = 0
    """Address of the mm_struct that describes its areas; 0 if there is none."""

    @property
    def text(self) -> str:
        """What it is, for the reason of a root."""
        if self.half == "user":
            return self.reason
        return f"the {self.holds}" if self.half else f"{self.holds}: {self.reason}" if self.holds else ""


def lower_role(view: GuestView, state: CpuState, pa: int) -> LowerRole:
    """Return what the table in TTBR0 of a CPU is, by its address and by what it maps, else unknown.

    A kernel thread, and a kernel that keeps user memory out of its reach (SW_TTBR0_PAN), have a table
    without entries there: reserved_pg_dir, reserved_ttbr0 or empty_zero_page.
    """
    with suppress(PtinspectError):
        if view.image is not None and (found := identity_map(view, state)).root.pa == pa:
            return LowerRole("identity map", found.root.provenance, "identity map")
    with suppress(PtinspectError):
        found = current_tables(view, state)
        if found.root.pa == pa:
            return LowerRole("user tables", found.root.provenance, "user", found.mm)
    try:
        regime = regime_from_registers(state, False)
        if valid_entries(view.memory, pa, regime) != 0:
            return LowerRole()
    except PtinspectError:
        return LowerRole()
    role = by_symbol(view, pa)
    return LowerRole("nothing", ("" if role is None else f"{role.reason}, ") + "no entry is valid")
