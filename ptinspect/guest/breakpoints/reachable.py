"""Whether code at an address can ever run: what is known against it, lest a breakpoint waits for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import PtinspectError, UserError
from ptinspect.guest.breakpoints.breakpoints import (
    SymbolBreakpoint,
    SymbolBreakpoints,
    condition_for_gdb,
    symbol_breakpoints,
)
from ptinspect.guest.breakpoints.followed_addresses import LOADED, link_address, module_of, of_kernel
from ptinspect.guest.breakpoints.kernel_place import FIRST_VIRTUAL
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import GuestNames, cpu_number

if TYPE_CHECKING:
    from ptinspect.link.session import Breakpoint
    from ptinspect.link.state import Manner
    from ptinspect.linux.image.image import KernelImage

CODE_LETTERS = "tTwW?"
"""What nm prints for code; `?` where the file does not tell."""
LOW_BITS = 52
"""Most bits of an address that the tables translate, without FEAT_LVA3 (Arm ARM D8.2.1)."""


@dataclass(frozen=True)
class Doubt:
    """Why a breakpoint would not be hit."""

    text: str
    hint: str
    certain: bool = True
    """It never will be; else: as far as is known now."""
    this_boot: bool = False
    """Not in this boot any more; after a reset it would."""


def checked(
    guest: Guest, address: Address, *, cpu: int | None = None, now: bool = False
) -> tuple[int | None, tuple[Doubt, ...]]:
    """Return an address' value, None if it follows a symbol, and what speaks against a breakpoint there.

    `now`: it is for the next run alone. Raises UserError if it can never be hit, and for unknown names.
    """
    if cpu is not None:
        cpu_number(guest, cpu)
    value = None if of_kernel(guest, address) else address.value(GuestNames(guest, cpu))
    found = doubts(guest, address, value)
    if guest.replay is not None and not now:
        found = tuple(doubt for doubt in found if not doubt.this_boot)
    ends = guest.qemu is not None and guest.target.address == str(guest.qemu.gdb_socket)
    for doubt in found:
        if doubt.certain and not (doubt.this_boot and not now and not ends):
            raise UserError(f"{address.text}: {doubt.text}", doubt.hint)
    return value, found


def doubts(guest: Guest, address: Address, value: int | None) -> tuple[Doubt, ...]:
    """Return what speaks against a breakpoint at an address, the first that is found."""
    kernel = guest.kernel
    if value is None:
        of = _of_module if module_of(address) else _of_symbol
        return () if kernel is None else of(guest, kernel, address)
    if value % 4:
        return (_unaligned(value),)
    if address.physical or not bit(value, 55):
        return _physical(guest, value) if address.physical else _lower(value)
    return _upper(guest, value)


def _unaligned(value: int) -> Doubt:
    return Doubt(f"no instruction begins at {value:#x}, which is no multiple of 4", "disassemble shows them")


def _of_symbol(guest: Guest, kernel: KernelImage, address: Address) -> tuple[Doubt, ...]:
    from ptinspect.linux.image.code_parts import part_of

    link = link_address(kernel, address)
    if link % 4:
        return (_unaligned(link),)
    part = part_of(kernel, link)
    name = next(term.text for term in address.terms if term.value is None)
    letter = kernel.kind_of(name)
    if letter not in CODE_LETTERS and part in ("data", "unknown"):
        return (Doubt("this is data, which is never executed", f"x/8gx {address.text} shows it"),)
    if part == "trampoline":
        text = "the trampoline of KPTI runs at an address of its own"
        return (Doubt(text, "map --root tramp shows where", certain=False),)
    breakpoints = symbol_breakpoints(guest)
    breakpoints.look()
    if not breakpoints.place.known:
        return ()
    return _placed(guest, kernel, breakpoints, link, part)


def _of_module(guest: Guest, kernel: KernelImage, address: Address) -> tuple[Doubt, ...]:
    breakpoints = symbol_breakpoints(guest)
    breakpoints.look()
    value = next(iter(breakpoints.addresses(address)), None)  # raises for a module without that symbol
    if value is None:
        if LOADED in kernel.symbols:
            return ()
        return (Doubt(f"the module is not loaded, and the kernel has no {LOADED}", "break again when it is"),)
    return (_unaligned(value),) if value % 4 else _mapped(guest, value)


def _placed(
    guest: Guest, kernel: KernelImage, breakpoints: SymbolBreakpoints, link: int, part: str
) -> tuple[Doubt, ...]:
    """Return what speaks against code of a kernel that runs at its own addresses."""
    offset = breakpoints.place.offset
    if part == "identity" or offset is None:
        return ()
    va = (link + offset) & MASK64
    again = "monitor system_reset restarts a guest of your own; launch begins again"
    if guest.replay is not None:
        again = "timeline goto start begins again; break and rc lead back"
    if any(state.pc == va for state in guest.view.states):
        return ()
    if part == "head" or link in _once(kernel):
        text = "the boot is past it: the kernel comes there once, before it does all else"
        return (Doubt(text, again, this_boot=True),)
    return _mapped(guest, va, again if part in ("init", "data", "exit") else "")


def _once(kernel: KernelImage) -> set[int]:
    """Return the link-time addresses that the boot CPU comes by once, before the kernel does all else."""
    names = (FIRST_VIRTUAL, "primary_entry", "stext", "__primary_switch", "__primary_switched")
    return {kernel.lookup(name) for name in names if name in kernel.symbols}


def _mapped(guest: Guest, va: int, init: str = "") -> tuple[Doubt, ...]:
    """Return what the kernel's own table tells; `init`: what to do where code was freed after the boot."""
    from ptinspect.tables.walk import walk

    try:
        view = guest.view
        if not view.confirmed:
            return ()
        found = walk(view.memory, va, view.swapper().pa, view.regime)
    except PtinspectError:
        return ()
    if found.pa is None:
        if init:
            text = "the kernel has freed this code, which is for the boot alone"
            return (Doubt(text, init, this_boot=True),)
        text = f"{va:#x} is not mapped in the kernel's table"
        return (Doubt(text, f"walk {va:#x} shows why", certain=False),)
    if found.permissions is not None and "x" not in found.permissions.el1:
        text = f"the kernel may not execute {va:#x}"
        return (Doubt(text, f"walk {va:#x} shows why", certain=False),)
    return ()


def _upper(guest: Guest, value: int) -> tuple[Doubt, ...]:
    try:
        regime = guest.view.regime
    except PtinspectError:
        return _as_linked(guest, value)
    if not regime.contains(value):
        what = f"{value:#x} is no address of the kernel's, which have {regime.va_bits} bits"
        return (Doubt(what, "are all digits there?"),)
    return _as_linked(guest, value) or _mapped(guest, value)


def _as_linked(guest: Guest, value: int) -> tuple[Doubt, ...]:
    """Return what speaks against a number that is an address of the kernel file's: the kernel may move."""
    kernel = guest.kernel
    name = "" if kernel is None or not kernel.linked else _named(kernel, value)
    if not name:
        return ()
    breakpoints = symbol_breakpoints(guest)
    breakpoints.look()
    if not breakpoints.place.known:
        text = f"the kernel is linked to run at {value:#x}, but may run elsewhere (KASLR)"
    elif breakpoints.place.offset:
        text = f"the kernel is linked to run at {value:#x}, but runs elsewhere"
    else:
        return ()
    return (Doubt(text, f"break {name} follows it", certain=False),)


def _named(kernel: KernelImage, link: int) -> str:
    """Return a link-time address as a symbol and an offset; empty where there is none."""
    near = kernel.nearest(link)
    return "" if near is None else f"{near[0]}{f'+{near[1]:#x}' if near[1] else ''}"


def _lower(value: int) -> tuple[Doubt, ...]:
    if value >> LOW_BITS:
        return (Doubt(f"{value:#x} is no address: it lies in neither half", "are all digits there?"),)
    return ()


def _physical(guest: Guest, pa: int) -> tuple[Doubt, ...]:
    from ptinspect.linux.image.code_parts import part_of

    ram = guest.target.ram
    if ram and not any(block.contains(pa, 4) for block in ram):
        text = f"there is no memory at pa:{pa:#x}"
        return (Doubt(text, "monitor info mtree -f lists the machine's memory"),)
    kernel = guest.kernel
    if kernel is None:
        return ()
    breakpoints = symbol_breakpoints(guest)
    breakpoints.look()
    place = breakpoints.place
    for base in place.bases if place.known else ():
        link = kernel.text_va + pa - base
        if base <= pa < base + kernel.size and part_of(kernel, link) not in ("identity", "unknown"):
            text = "the kernel runs this code at its own addresses now, not at the physical one"
            return (Doubt(text, f"break {_named(kernel, link)}", certain=False),)
    return ()


def set_breakpoint(
    guest: Guest, address: Address, **manner: Unpack[Manner]
) -> tuple[SymbolBreakpoint | Breakpoint, tuple[Doubt, ...]]:
    """Set a breakpoint, and return it with what speaks against its ever being hit.

    One at a symbol of the kernel follows it. Raises UserError if it can never be hit, OutOfSlots.
    """
    value, found = checked(guest, address, cpu=manner.get("cpu"))
    if value is None:
        breakpoints = symbol_breakpoints(guest)
        made = breakpoints.add(address, **manner)
        waits = breakpoints.waits_until(address)
        if waits and not guest.stopped.escort.everywhere:
            breakpoints.delete(made.id)
            first = LOADED if module_of(address) else FIRST_VIRTUAL
            raise UserError(f"{address.text} has to wait until {waits}", f"until {first}, and break then")
        return made, found
    typed = manner.get("condition") or ""
    manner["condition"] = condition_for_gdb(guest, typed)
    one = guest.stopped.set_breakpoint(value, **manner)
    symbol_breakpoints(guest).typed[one.id] = typed
    return one, found
