"""Instructions of the guest as GDB writes them, read where they lie."""

from __future__ import annotations

import re

from ptinspect.arch.bits import bit
from ptinspect.errors import MiError, PtinspectError, UserError
from ptinspect.guest.guest import Guest

TARGET = re.compile(r"(?<![#\w])(0x[0-9a-f]{5,16})(?: <[^>]*>)?")
"""An address in an instruction; other numbers begin with #."""


def instructions(guest: Guest, address: int, count: int, *, physical: bool = False) -> tuple[list[str], str]:
    """Return GDB's lines for instructions from an address on, and why they end early if they do.

    A virtual address is translated by our own walk, so that neither the MMU nor the level that the CPU runs
    at counts. What cannot be read so is left to GDB, which reads as the CPU does; so is all before GDB 13.
    Raises UserError if no instruction can be read, or the CPU runs a 32-bit process there.
    """
    session = guest.stopped
    if not bit(address, 55) and not physical and session.cpu_state(session.current_cpu).aarch32:
        what = f"cpu {session.current_cpu} runs a 32-bit process: GDB would take its code for AArch64's"
        raise UserError(what, f"x/8wx {address:#x}")
    try:
        code, missing = guest.read(address, 4 * count, physical=physical)
    except PtinspectError as error:  # a guest of whose tables nothing is known
        code, missing = b"", error.message
    try:
        if len(code) >= 4:
            return _lines(session.disassemble(address, code[: len(code) & ~3])), missing
    except MiError:
        pass
    if physical and not guest.is_flat(address):
        why = missing or f"GDB {session.gdb_version} reads as the CPU does, whose MMU is on"
        raise UserError(f"no code can be read at pa:{address:#x}: {why}", "a GDB of 13 or later")
    try:
        return _lines(session.gdb_command(f"x/{count}i {address:#x}")), ""
    except MiError as error:
        why = missing or error.message
        raise UserError(f"no code can be read at {address:#x}: {why}", "x/8gx ADDR; walk ADDR") from error


def _lines(text: str) -> list[str]:
    return text.expandtabs(8).splitlines()


def named(guest: Guest, code: str, *, physical: bool = False) -> str:
    """Return an instruction with symbols for the addresses that it goes to, or takes."""
    return TARGET.sub(lambda found: _place(guest, int(found[1], 16), physical), code)


def _place(guest: Guest, address: int, physical: bool) -> str:
    """Return the symbol for an address that lies in it, else the address: data may have no symbols."""
    near = guest.nearest(address, physical=physical)
    if near is None:
        return f"{address:#x}"
    return f"<{near if near.offset else near.symbol + near.where}>"
