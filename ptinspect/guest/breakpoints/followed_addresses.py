"""Addresses that follow the kernel, or a module of it (`NAME [MODULE]`): what they name, and where it is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.guest.expression import Address
from ptinspect.text import similar

if TYPE_CHECKING:
    from ptinspect.guest.guest import Guest
    from ptinspect.linux.image.image import KernelImage

LOADED = "do_init_module"
"""Called with a module that is on the list, before any code of that runs (kernel/module/main.c)."""


def module_of(address: Address) -> str:
    """Return the module that an address names its symbol in; empty if it names none, or is not one symbol."""
    return _named(address)[1] if follows(address) else ""


def follows(address: Address) -> bool:
    """Tell whether an address moves with the kernel: it names one symbol, and adds numbers."""
    named = [term.sign for term in address.terms if term.value is None]
    return not address.physical and address.names_symbol and sum(named) == 1 and len(named) == 1


def of_kernel(guest: Guest, address: Address) -> bool:
    """Tell whether an address follows the kernel: its symbol is the kernel's, or of a module it names."""
    if not follows(address):
        return False
    if guest.kernel is None or module_of(address):
        return True
    try:
        link_address(guest.kernel, address)
    except KernelFileError:
        return False
    return True


def link_address(kernel: KernelImage, address: Address) -> int:
    """Return where an address that follows the kernel is linked. Raises KernelFileError."""
    total = 0
    for term in address.terms:
        total += term.sign * (kernel.lookup(term.text) if term.value is None else term.value)
    return total & MASK64


def has(kernel: KernelImage, address: Address) -> bool:
    """Tell whether a kernel has the symbol of an address; a module's is looked for when that is loaded."""
    with contextlib.suppress(KernelFileError):
        return bool(module_of(address)) or link_address(kernel, address) is not None
    return False


def state_of(guest: Guest, address: Address) -> str:
    """Return the state of the module that an address names; empty while it is not known to be loaded."""
    return next((one.state for one in guest.view.modules.known if one.name == module_of(address)), "")


def in_module(guest: Guest, address: Address) -> list[int]:
    """Return where the symbol of a module is now: nowhere before that is loaded.

    Code for its initialisation is freed later, and its symbols with it. Raises KernelFileError if it has no
    such symbol when it is loaded.
    """
    name, module = _named(address)
    try:
        found = guest.view.modules.lookup(name, module)
    except GuestError:
        return []
    if not found and state_of(guest, address) == "coming":
        raise missing(guest, address, "symbol ADDRESS names its code")
    after = sum(term.sign * term.value for term in address.terms if term.value is not None)
    return [(at + after) & MASK64 for _, at in found]


def missing(guest: Guest, address: Address, hint: str) -> KernelFileError:
    """Return the error that a module, which is there, does not have the symbol of an address."""
    name, module = _named(address)
    modules = guest.view.modules
    names = {known for one in modules.known if one.name == module for known in modules.table(one).names}
    near = " or ".join(similar(name, names))
    return KernelFileError(
        f"module {module} has no symbol {name!r}", f"did you mean {near}? {hint}" if near else hint
    )


def _named(address: Address) -> tuple[str, str]:
    """Return the symbol and the module that an address names; empty ones for none."""
    symbol = next((term.text for term in address.terms if term.value is None), "")
    name, _, module = symbol.removesuffix("]").partition(" [")
    return name, module
