"""Instructions of the guest as GDB writes them, read where they lie."""

from __future__ import annotations

from ptinspect.errors import MiError, PtinspectError, UserError
from ptinspect.guest.guest import Guest


def instructions(guest: Guest, address: int, count: int, *, physical: bool = False) -> tuple[list[str], str]:
    """Return GDB's lines for instructions from an address on, and why they end early if they do.

    A virtual address is translated by our own walk, so that neither the MMU nor the level that the CPU runs
    at counts. What cannot be read so is left to GDB, which reads as the CPU does; so is all before GDB 13.
    Raises UserError if no instruction can be read.
    """
    try:
        code, missing = guest.read(address, 4 * count, physical=physical)
    except PtinspectError as error:  # a guest of whose tables nothing is known
        code, missing = b"", error.message
    session = guest.stopped
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
