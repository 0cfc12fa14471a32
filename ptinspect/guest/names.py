"""What names stand for: symbols and registers of the guest, of a snapshot, or of the kernel file."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.arch.bits import MASK64
from ptinspect.arch.sysregs import ALIASES, UNWRITTEN, CpuState
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, KernelFileError, PtinspectError, UserError
from ptinspect.guest.expression import Address, Names, Range
from ptinspect.guest.guest import Guest
from ptinspect.snapshot.fact_names import kernel_offset
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.snapshot.model import Snapshot


def _kernel(guest: Guest, name: str, form: str = "0x…") -> KernelImage:
    """Return the kernel file, where symbols are looked up. Raises UserError without one."""
    if guest.kernel is None:
        raise UserError(f"{name!r}: symbols need the kernel file", f"kernel FILE, or a number: {form}")
    return guest.kernel


class GuestNames:
    """Names of the live guest."""

    def __init__(self, guest: Guest, cpu: int | None = None) -> None:
        self.guest = guest
        self.cpu = cpu

    def symbol(self, name: str) -> int:
        """Return the run-time address of a symbol."""
        return symbol(self.guest, name)

    def physical(self, name: str) -> int:
        """Return where a symbol of the image lies in physical memory."""
        return physical(self.guest, name)

    def register(self, name: str) -> int:
        """Return a register of the chosen CPU."""
        need_registers(self.guest)
        return live_register(self.guest, cpu_state(self.guest, self.cpu), name)


class SnapshotNames:
    """Names of a snapshot: its registers, and symbols of the kernel file placed as it was then."""

    def __init__(self, guest: Guest, snapshot: Snapshot, cpu: int | None = None, snap: str = "") -> None:
        """`snap`: the name or the file that `snapshot` was found by."""
        self.guest, self.snap = guest, snap or snapshot.name
        self._snapshot = snapshot
        self.cpu = cpu

    def symbol(self, name: str) -> int:
        """Return the address of a symbol at the time of the capture."""
        return (_kernel(self.guest, name).lookup(name) + kernel_offset(self._snapshot.meta.extra)) & MASK64

    def physical(self, name: str) -> int:
        """Return where a symbol leads by the captured tables."""
        from ptinspect.snapshot.memory import SnapshotMemory
        from ptinspect.tables.walk import walk

        snapshot = self._snapshot
        found = walk(SnapshotMemory(snapshot), self.symbol(name), snapshot.root.pa, snapshot.regime)
        if found.pa is None:
            raise UserError(f"{name} is not mapped in snapshot {self._snapshot.name!r}: {found.reason}")
        return found.pa

    def register(self, name: str) -> int:
        """Return a register of the chosen CPU at the time of the capture."""
        return register_of(captured_cpu(self._snapshot, self.cpu), name)


class LinkNames:
    """Names of the kernel file, for want of a stopped guest: as linked, unless it is known where it runs."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def symbol(self, name: str) -> int:
        """Return the address of a symbol."""
        return (_kernel(self._guest, name).lookup(name) + (self._guest.known_offset or 0)) & MASK64

    def physical(self, name: str) -> int:
        """Raise UserError: nobody knows where the kernel lies."""
        raise UserError(f"pa:{name}: not attached to a stopped guest")

    def register(self, name: str) -> int:
        """Raise UserError: there are no registers."""
        raise UserError(
            f"${name}: not attached to a stopped guest", "a snapshot has registers too: --snap NAME"
        )


def names_at_hand(guest: Guest, cpu: int | None = None, snap: str | None = None) -> Names:
    """Return what resolves names: the snapshot if one is named, the stopped guest, or the kernel file."""
    if snap:
        return SnapshotNames(guest, guest.snapshot_or_file(snap), cpu, snap)
    return GuestNames(guest, cpu) if guest.state == "stopped" else LinkNames(guest)


def symbol(guest: Guest, name: str) -> int:
    """Return the run-time address of a symbol in the stopped guest; as linked while nobody knows better.

    A module's is found where the kernel itself has none, or as `NAME [MODULE]`. Raises UserError without a
    kernel file, or where several modules have one, KernelFileError if there is none, GuestError while it is
    not known where a kernel runs whose file does not tell where it is linked.
    """
    kernel = _kernel(guest, name)
    plain, _, module = name.removesuffix("]").partition(" [")
    try:
        return _in_module(guest, plain, module) if module else guest.view.symbol(name)
    except KernelFileError as error:
        try:
            return _in_module(guest, plain)
        except (GuestError, KernelFileError) as other:
            refused = guest.view.modules.refused
            unknown = isinstance(other, KernelFileError) and f"{error.hint}; of modules: {other.message}"
            raise KernelFileError(error.message, refused[0] if refused else unknown or error.hint) from None
    except GuestError as error:
        if module:
            raise
        link = kernel.lookup(name)
        if not kernel.linked:
            what = f"{name}: {kernel.path.name} does not tell where it is linked, and {error.message}"
            raise GuestError(
                what, f"pa:{name} is where it lies; later on it is known where it runs"
            ) from error
        return link


def _in_module(guest: Guest, name: str, module: str = "") -> int:
    """Return the address of a symbol in a loaded module. Raises GuestError unless there is just one."""
    found = guest.view.modules.lookup(name, module)
    if not found:
        raise GuestError(f"{module or 'no module'} has {'no' if module else 'a'} symbol {name!r}")
    if len({at for _, at in found}) > 1:
        places = ", ".join(f"{at:#x} [{where.name}]" for where, at in found)
        hint = "give the address" if module else f"'{name} [MODULE]', or the address"
        raise UserError(f"{len(found)} symbols are named {name!r}: {places}", hint)
    return found[0][1]


def also_in(guest: Guest, address: Address) -> list[str]:
    """Return the modules of the stopped guest that have a symbol of the name that was typed, if it is one."""
    if guest.state != "stopped" or len(address.terms) != 1 or not address.names_symbol or address.physical:
        return []
    try:
        return [module.name for module, _ in guest.view.modules.lookup(address.terms[0].text)]
    except PtinspectError:
        return []


def physical(guest: Guest, name: str) -> int:
    """Return where a symbol of the image lies in the stopped guest's physical memory.

    It need not be mapped yet. Raises UserError without a kernel file, KernelFileError if it has no such
    symbol, or is another kernel's, GuestError while that is not known, or a firmware may still move it.
    """
    try:
        link = _kernel(guest, name, "pa:0x…").lookup(name)
    except KernelFileError:
        return guest.view.pa_of(symbol(guest, name))
    return guest.view.pa_of_link(link)


@dataclass(frozen=True)
class Located:
    """Where in the stopped guest an address as typed is."""

    address: int
    """Virtual, unless `physical`."""
    physical: bool
    """True for one that is physical: as typed, since the CPU's MMU is off, or no other is known yet."""


def located(guest: Guest, address: Address, cpu: int | None = None) -> Located:
    """Return where an address is: a symbol's is physical until it is known where the kernel maps itself.

    Raises as `symbol` and `physical` do.
    """
    known = GuestNames(guest, cpu)
    if _unplaced(guest, address):
        return Located(replace(address, physical=True).value(known), True)
    value = address.value(known)
    state = None if cpu is None else cpu_state(guest, cpu)
    return Located(value, address.physical or guest.is_flat(value, state))


def _unplaced(guest: Guest, address: Address) -> bool:
    """Tell whether an address is of a symbol of which it is not known yet where it will run."""
    named = address.names_symbol and not address.physical and guest.kernel is not None
    return named and not guest.view.placed


def early(guest: Guest, address: Address, snap: str | None = None) -> tuple[bool, int | None, str]:
    """Return whether an address is of a symbol as linked, where that lies, and what is to be said of it.

    So it is in a stopped guest of which it is not known yet where its kernel will map itself.
    """
    if snap or guest.state != "stopped" or not _unplaced(guest, address):
        return False, None, ""
    text = "where the kernel will run is not known yet"
    try:
        return True, replace(address, physical=True).value(GuestNames(guest)), text
    except PtinspectError as error:
        return True, None, f"{text}; {error.message}"


def cpu_state(guest: Guest, cpu: int | None) -> CpuState:
    """Return the registers of the chosen CPU of the stopped guest. Raises UserError if there is none."""
    return guest.stopped.cpu_state(cpu_number(guest, cpu))


def cpu_number(guest: Guest, cpu: int | None) -> int:
    """Return the number of the chosen CPU of the stopped guest. Raises UserError if there is none."""
    session = guest.stopped
    number = session.current_cpu if cpu is None else cpu
    if not 0 <= number < session.cpu_count:
        raise UserError(f"no CPU {number}: the guest has {session.cpu_count}, numbered from 0")
    return number


def need_registers(guest: Guest) -> None:
    """Raise UserError if the guest is a file without registers of CPUs."""
    if not guest.has_registers:
        what = f"{guest.stopped.address} has no registers of CPUs"
        raise UserError(what, "an ELF core of dump-guest-memory has them")


def captured_cpu(snapshot: Snapshot, cpu: int | None) -> CpuState:
    """Return the registers of a CPU in a snapshot: the chosen one, else the first."""
    for state in snapshot.cpus:
        if cpu is None or state.cpu == cpu:
            return state
    raise UserError(f"snapshot {snapshot.name!r} has no registers of CPU {0 if cpu is None else cpu}")


def state_of(guest: Guest, cpu: int | None, snap: str | None) -> tuple[CpuState, str]:
    """Return the registers of a CPU of the guest or of a snapshot, and which of them it is."""
    if snap:
        snapshot = guest.snapshot_or_file(snap)
        return captured_cpu(snapshot, cpu), f"snapshot {snapshot.name}"
    return cpu_state(guest, cpu), "guest"


def register_of(state: CpuState, name: str) -> int:
    """Return a register by name: x0…x30, w0…w30, sp, pc, lr, fp, or a system register."""
    low = name.lower()
    aliases = {"fp": "x29", "lr": "x30"}
    low = aliases.get(low, low)
    if low in ("sp", "pc"):
        return state.sp if low == "sp" else state.pc
    if low[:1] in ("x", "w") and len(low) < 4 and low[1:].isdecimal() and int(low[1:]) < len(state.x):
        value = state.x[int(low[1:])]
        return value if low[0] == "x" else value & 0xFFFF_FFFF
    if low in ("cpsr", "pstate"):
        return state.pstate
    found = _by_any_name(state.system, name)
    if found is None and _by_any_name(dict.fromkeys(state.unwritten, 0), name) is not None:
        raise _never_written(name)
    if found is None:
        raise UserError(f"no register ${name}", "regs lists them")
    return found


def live_register(guest: Guest, state: CpuState, name: str) -> int:
    """Return a register of a stopped CPU by name, one that only the stub knows too.

    Raises UserError if there is none, or nobody has written it yet.
    """
    try:
        return register_of(state, name)
    except UserError:
        found = _by_any_name(guest.stopped.registers(state.cpu), name)
        if found == UNWRITTEN:
            raise _never_written(name) from None
        if found is None:
            raise
        return found


def spelling(guest: Guest, state: CpuState, name: str) -> str:
    """Return how GDB spells a register: another case is a variable of its own there, which holds nothing.

    Raises UserError if the stub has no such register, or nobody has written it yet.
    """
    live_register(guest, state, name)
    low = {"fp": "x29", "lr": "x30", "pstate": "cpsr"}.get(name.lower(), name.lower())
    if low in ("sp", "pc", "cpsr"):
        return low
    if low[0] in "xw" and low[1:].isdecimal():
        return f"{low[0]}{int(low[1:])}"
    known = {each.upper(): each for each in guest.stopped.registers(state.cpu)}
    names = (name.upper(), f"{name.upper()}_EL1")
    found = next((known[s] for full in names for s in ALIASES.get(full, (full,)) if s in known), None)
    if found is None:
        raise UserError(f"GDB has no register ${name}", "regs lists them")
    return found


def _never_written(name: str) -> UserError:
    return UserError(f"${name} was never written: it holds no value yet", "let the guest run further")


def _by_any_name(registers: Mapping[str, int], name: str) -> int | None:
    """Look a register up whatever its case, with _EL1 where that was left out; None if there is none."""
    upper = {key.upper(): value for key, value in registers.items()}
    return upper.get(name.upper(), upper.get(f"{name.upper()}_EL1"))


def range_of(
    guest: Guest, chosen: Range | None, cpu: int | None = None, snap: str | None = None
) -> tuple[int, int] | None:
    """Return the first and last address of a range, or None if none was chosen."""
    return None if chosen is None else chosen.value(names(guest, cpu, snap))


def names(guest: Guest, cpu: int | None = None, snap: str | None = None) -> Names:
    """Return what resolves symbols and registers: those of the snapshot if one is named, else the guest's."""
    return SnapshotNames(guest, guest.snapshot_or_file(snap), cpu, snap) if snap else GuestNames(guest, cpu)
