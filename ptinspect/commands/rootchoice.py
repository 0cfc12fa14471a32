"""`--root`: which root table a command begins at, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, bit
from ptinspect.commands import argtypes
from ptinspect.commands.context import Context
from ptinspect.errors import PtinspectError

if TYPE_CHECKING:
    from ptinspect.arch.regime import Regime
    from ptinspect.arch.sysregs import CpuState
    from ptinspect.linux.otherroots import OtherRoot
    from ptinspect.snapshot.model import Root

WORDS = ("ttbr0", "ttbr1", "swapper", "user", "idmap", "tramp", "trampoline")
ROOT_HELP = (
    "swapper (default for kernel addresses), ttbr0 (default for others), ttbr1, user (tables of the "
    "current task), task:PID, idmap, tramp, or the address of a table"
)
LOWER = "linux.lower"
"""Name in Meta.extra of what a lower half is: user, identity map."""


@dataclass(frozen=True)
class Chosen:
    """Join a root with the regime under which it is used."""

    root: Root
    """The table, and why."""
    regime: Regime
    """The half that it translates."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a snapshot of it keeps in Meta.extra."""


def root_choice(text: str) -> str | argtypes.Address:
    """Read a word of WORDS, `task:PID`, or the address of a table."""
    word = text.lower()
    if word in WORDS or re.fullmatch(r"task:\d{1,7}", word):
        return word
    return argtypes.address(text)


argtypes.completes("root", root_choice)


def choose(ctx: Context, choice: str | argtypes.Address | None, state: CpuState, va: int | None) -> Chosen:
    """Return the root for an address of the stopped guest; kernel addresses without one.

    Raises GuestError or RegimeError if there is no such table.
    """
    from ptinspect.arch.regime import regime_from_registers

    upper = True if va is None else bit(va, 55)
    if isinstance(choice, argtypes.Address):
        return Chosen(_by_address(ctx, choice, state), regime_from_registers(state, upper))
    if choice == "swapper" or (choice is None and upper):
        return Chosen(ctx.view().swapper(), regime_from_registers(state, True))
    if choice in ("ttbr0", "ttbr1", None):
        return _by_register(ctx, state, choice == "ttbr1")
    found = _other(ctx, choice, state)
    return _named(ctx, found.root, found.regime, found.half, found.mm)


def _named(ctx: Context, root: Root, regime: Regime, half: str, mm: int) -> Chosen:
    """Join a root with the names of its addresses; what is wrong with those is said where it comes from."""
    from ptinspect.linux.areas import areas_of
    from ptinspect.linux.naming import AREAS, encode

    if not half or not mm:
        return Chosen(root, regime, {LOWER: half} if half else {})
    kept, token = ctx.memo.get(AREAS), (ctx.stopped.stop_token, mm)
    found = kept[1] if isinstance(kept, tuple) and kept[0] == token else areas_of(ctx.view(), mm)
    ctx.memo[AREAS] = (token, found)
    if found.incomplete:
        root = replace(root, provenance=f"{root.provenance}; {found.incomplete}")
    return Chosen(root, regime, {LOWER: half, AREAS: encode(found.areas)})


def _other(ctx: Context, choice: str, state: CpuState) -> OtherRoot:
    from ptinspect.linux.otherroots import current_tables, identity_map, task_tables, trampoline

    if choice == "idmap":
        return identity_map(ctx.view(), state)
    if choice.startswith("tramp"):
        return trampoline(ctx.view())
    if choice == "user":
        return current_tables(ctx.view(), state)
    return task_tables(ctx.view(), state, int(choice.removeprefix("task:")))


def _by_register(ctx: Context, state: CpuState, upper: bool) -> Chosen:
    from ptinspect.arch.regime import regime_from_registers
    from ptinspect.arch.sysregs import root_pa, translation_register
    from ptinspect.linux.otherroots import lower_role
    from ptinspect.snapshot.model import Root

    regime = regime_from_registers(state, upper)
    register = translation_register(state, f"TTBR{int(upper)}")
    pa, said = root_pa(state, regime), f"{register} of cpu {state.cpu}"
    half, mm = "", 0
    if not upper:
        try:
            role, half, mm = lower_role(ctx.view(), state, pa)
        except PtinspectError:
            role = ""
        said += f": {role}" if role else ""
    return _named(ctx, Root(pa, said), regime, half, mm)


def _by_address(ctx: Context, choice: argtypes.Address, state: CpuState) -> Root:
    """Return the table that a number, a symbol or a register names.

    A register that holds a TTBR value loses its ASID; an address in the kernel half is translated.
    """
    from ptinspect.commands.sources import GuestNames
    from ptinspect.snapshot.model import Root

    if choice.physical or all(term.value is not None for term in choice.terms):
        pa = choice.value()
    else:
        pa = choice.value(GuestNames(ctx, state.cpu))
        kernel = bit(pa, 55) and pa >> 56 == 0xFF
        pa = ctx.view().pa_of(pa) if kernel else pa & 0x0000_FFFF_FFFF_FFFE
    return Root(PhysAddr(pa), f"--root {choice.text}")
