"""Where tables are read from: the stopped guest or a snapshot; which root, and why."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.arch.bits import PhysAddr, bit
from ptinspect.arch.regime import Regime, regime_from_registers, root_pa
from ptinspect.arch.sysregs import (
    CpuState,
    RegimeName,
    current_regime,
    kernel_regime,
    regime_at_el2,
    register_of_regime,
)
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import PtinspectError, RegimeError, UserError
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames, SnapshotNames, cpu_state
from ptinspect.guest.table_choice import REGISTERS, Tables
from ptinspect.snapshot.fact_names import AREAS, LOWER
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.linux.running.other_roots import OtherRoot
    from ptinspect.memory.source import PhysicalMemory
    from ptinspect.snapshot.model import Root, Snapshot


@dataclass(frozen=True)
class Chosen:
    """Join a root with the regime under which it is used."""

    root: Root
    """The table, and why."""
    regime: Regime
    """The half that it translates."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a snapshot of it keeps in Meta.extra."""


def choose(
    guest: Guest, choice: str | Address | None, state: CpuState, va: int | None, rules: str | None = None
) -> Chosen:
    """Return the root for an address of the stopped guest; kernel addresses without one.

    `rules` (RULES) is how a root given as an address is used; by default as the register that holds it
    does. Raises GuestError or RegimeError if there is no such table, UserError for rules without address.
    """
    if isinstance(choice, Address):
        return _by_address(guest, choice, state, va, rules)
    if rules is not None:
        raise UserError("--regime is for a root given as an address", "--root ADDRESS --regime el2")
    upper = True if va is None else bit(va, 55)
    if choice == "swapper" or (choice is None and upper):
        return Chosen(guest.view.swapper(), regime_from_registers(state, True))
    if choice is None or choice.startswith("ttbr"):
        return _by_register(guest, state, *_register(state, choice or "ttbr0"))
    found = _other(guest, choice, state)
    return _named(guest, found.root, found.regime, found.half, found.mm)


def _named(guest: Guest, root: Root, regime: Regime, half: str, mm: int) -> Chosen:
    """Join a root with the names of its addresses; what is wrong with those stands in its provenance."""
    from ptinspect.linux.layout.choice import encode_regions
    from ptinspect.linux.running.user_areas import areas_of

    if not half or not mm:
        return Chosen(root, regime, {LOWER: half} if half else {})
    found = guest.once((AREAS, mm), lambda: areas_of(guest.view, mm))
    if found.incomplete:
        root = replace(root, provenance=f"{root.provenance}; {found.incomplete}")
    return Chosen(root, regime, {LOWER: half, AREAS: encode_regions(found.areas)})


def _other(guest: Guest, choice: str, state: CpuState) -> OtherRoot:
    from ptinspect.linux.running.other_roots import current_tables, identity_map, task_tables, trampoline

    if choice == "idmap":
        return identity_map(guest.view, state)
    if choice.startswith("tramp"):
        return trampoline(guest.view)
    if choice == "user":
        return current_tables(guest.view, state)
    which = choice.removeprefix("task:")
    return task_tables(guest.view, state, int(which) if which.isdecimal() else which)


def _register(state: CpuState, word: str) -> tuple[RegimeName, bool]:
    """Return the regime and the half of a register: `ttbr0` is that of the level at which the CPU runs."""
    upper = word.startswith("ttbr1")
    if word.endswith("el1"):
        return "EL1&0", upper
    if word.endswith("el2"):
        return regime_at_el2(state), upper
    return kernel_regime(state) if upper else current_regime(state), upper


def _by_register(guest: Guest, state: CpuState, name: RegimeName, upper: bool) -> Chosen:
    regime = regime_from_registers(state, upper, name)
    why = f"{regime.register('TTBR1' if upper else 'TTBR0')} of cpu {state.cpu}"
    return _with_contents(guest, root_pa(state, regime), why, regime, state)


def _with_contents(guest: Guest, pa: PhysAddr, why: str, regime: Regime, state: CpuState) -> Chosen:
    """Join a root with its regime, and with what it is known to hold where it translates lower addresses."""
    from ptinspect.linux.running.ttbr import lower_role
    from ptinspect.snapshot.model import Root

    if regime.upper:
        return Chosen(Root(pa, why), regime)
    if regime.name == "EL2":
        return Chosen(Root(pa, why), regime, {LOWER: "EL2"})
    try:
        found = lower_role(guest.view, state, pa)
    except PtinspectError:
        return Chosen(Root(pa, why), regime)
    holds = f"{why}: {found.text}" if found.text else why
    return _named(guest, Root(pa, holds), regime, found.half, found.mm)


def _by_address(guest: Guest, choice: Address, state: CpuState, va: int | None, rules: str | None) -> Chosen:
    """Return the table that a number, a symbol or a register names, with the regime it is used by.

    A register that holds a TTBR value loses its ASID; an address in the kernel half is translated.
    """
    if choice.physical or all(term.value is not None for term in choice.terms):
        pa = choice.value()
    else:
        pa = choice.value(GuestNames(guest, state.cpu))
        kernel = bit(pa, 55) and pa >> 56 == 0xFF
        pa = guest.view.pa_of(pa) if kernel else pa & 0x0000_FFFF_FFFF_FFFE
    half = None if va is None else bit(va, 55)
    why = f"--root {choice.text}"
    if rules is not None:
        name, upper = _register(state, rules if rules in REGISTERS else f"ttbr0_{rules}")
        if rules not in REGISTERS:
            upper = half is not False and name != "EL2"
        return _with_contents(
            guest, PhysAddr(pa), f"{why} --regime {rules}", regime_from_registers(state, upper, name), state
        )
    holder = _holder(guest, pa, state, half)
    if holder is not None:
        return _with_contents(guest, PhysAddr(pa), f"{why}, as in {holder[1]}", holder[0], state)
    regime = regime_from_registers(state, half is not False, kernel_regime(state))
    return _with_contents(guest, PhysAddr(pa), why, regime, state)


def _holder(guest: Guest, pa: int, state: CpuState, half: bool | None) -> tuple[Regime, str] | None:
    """Return the regime of the register that holds a root, and its name; the given CPU's first.

    Registers of the kernel's regime come before others; `half` leaves those of the other half out.
    """
    session = guest.stopped
    others = [session.cpu_state(n) for n in range(session.cpu_count) if n != state.cpu]
    for held in (state, *others):
        names: tuple[RegimeName, ...] = (kernel_regime(held), "EL1&0", regime_at_el2(held))
        for name in dict.fromkeys(names):
            for upper in (True, False):
                try:
                    regime = regime_from_registers(held, upper, name)
                    base = root_pa(held, regime)
                except RegimeError:
                    continue
                if base == pa and half in (None, upper):
                    return regime, f"{regime.register(f'TTBR{int(upper)}')} of cpu {held.cpu}"
    return None


@dataclass(frozen=True)
class Half:
    """A TTBR, what it means, and what it holds."""

    register: str
    """Its name: `TTBR0_EL1`."""
    regime: Regime | RegimeError
    """The half that it translates, or why it makes no sense."""
    holds: str = ""
    """What the table is, as far as something shows it; else empty."""
    reason: str = ""
    """What shows it."""


@dataclass(frozen=True)
class Halves:
    """The TTBRs of a CPU."""

    lower: Half
    """TTBR0 of the kernel's regime."""
    upper: Half
    """TTBR1 of the kernel's regime."""
    el2: Half | None
    """TTBR0_EL2 where EL2 has a regime of its own, and tables; else None."""

    @property
    def all(self) -> tuple[Half, ...]:
        """Those that there are."""
        return (self.lower, self.upper, *([self.el2] if self.el2 else []))


def halves_of(state: CpuState, guest: Guest | None = None) -> Halves:
    """Return what the TTBRs of a CPU mean; of a CPU of the stopped `guest`, what they hold too."""
    name = kernel_regime(state)
    lower, upper = _half(state, name, False), _half(state, name, True)
    if guest is not None:
        lower, upper = _holding(guest, state, lower), _holding(guest, state, upper)
    own = "TCR_EL2" in state.system and regime_at_el2(state) == "EL2" and state.system.get("TTBR0_EL2")
    return Halves(lower, upper, _half(state, "EL2", False) if own else None)


def _half(state: CpuState, name: RegimeName, upper: bool) -> Half:
    register = register_of_regime(name, "TTBR1" if upper else "TTBR0")
    try:
        return Half(register, regime_from_registers(state, upper, name))
    except RegimeError as error:
        return Half(register, error)


def _holding(guest: Guest, state: CpuState, half: Half) -> Half:
    """Add what a register of the guest holds, as far as something shows it."""
    from ptinspect.linux.running.ttbr import lower_role, ttbr1_role

    if isinstance(half.regime, RegimeError):
        return half
    try:
        if half.regime.upper:
            role = ttbr1_role(guest.view, state)
            return half if role.name == "unknown" else replace(half, holds=role.name, reason=role.reason)
        found = lower_role(guest.view, state, root_pa(state, half.regime))
        return replace(half, holds=found.holds, reason=found.reason)
    except PtinspectError:
        return half


@dataclass(frozen=True)
class Source:
    """Join what a look at tables needs."""

    memory: PhysicalMemory
    root: Root
    regime: Regime
    """The half that it translates."""
    label: str
    """`guest, cpu 0` or `snapshot before`."""
    snapshot: Snapshot | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a snapshot of it keeps in Meta.extra: what its lower half is."""


def source(guest: Guest, tables: Tables, va: int | None = None) -> Source:
    """Choose memory, root and regime; `va` decides about the half.

    Raises UserError, TargetRunning or TargetLost if there is neither a stopped guest nor a snapshot.
    """
    if tables.snap:
        return _captured(guest, tables, guest.snapshot_or_file(tables.snap), va)
    session = guest.stopped
    state = cpu_state(guest, tables.cpu)
    found = choose(guest, tables.root, state, va, tables.regime)
    return Source(session.memory, found.root, found.regime, f"guest, cpu {state.cpu}", None, found.facts)


def _captured(guest: Guest, tables: Tables, snapshot: Snapshot, va: int | None) -> Source:
    from ptinspect.snapshot.memory import SnapshotMemory

    root = snapshot.root
    if tables.regime:
        raise UserError(f"snapshot {snapshot.name!r} was captured by the rules of {snapshot.regime.name}")
    if tables.root is not None:
        root = _captured_root(guest, tables.root, tables.cpu, snapshot)
    if va is not None and bit(va, 55) != snapshot.regime.upper:
        half = "kernel" if snapshot.regime.upper else "user"
        raise UserError(f"{va:#x} is not in the {half} half, which snapshot {snapshot.name!r} holds")
    memory = SnapshotMemory(snapshot)
    return Source(memory, root, snapshot.regime, f"snapshot {snapshot.name}", snapshot)


def _captured_root(guest: Guest, root: str | Address, cpu: int | None, snapshot: Snapshot) -> Root:
    from ptinspect.snapshot.model import Root

    if isinstance(root, str):
        raise UserError(
            f"snapshot {snapshot.name!r} was captured from {snapshot.root.provenance}",
            "--root takes the address of a table in it, or leave it out",
        )
    return Root(PhysAddr(root.value(SnapshotNames(guest, snapshot, cpu))), "--root")
