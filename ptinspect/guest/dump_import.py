"""A memory dump in the place of a guest: what it holds, and the registers that it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.guest.guest import Guest

if TYPE_CHECKING:
    from ptinspect.linux.image.vmcoreinfo import VmcoreInfo
    from ptinspect.linux.running.dump_registers import Derived, Given
    from ptinspect.memory.dumpfile import DumpFile
    from ptinspect.memory.source import RamBlock

EL1H = 0x3C5
"""PSTATE of a CPU whose registers are not known: EL1, SP_EL1."""


@dataclass(frozen=True)
class Imported:
    """Say what a dump holds."""

    ram: Sequence[RamBlock]
    """The guest's memory."""
    cpus: int
    """CPUs whose registers are in the file."""
    derived: Derived
    """The translation registers, which are in no dump, and why they must have been so."""


def import_dump(guest: Guest, path: Path, base: int | None, given: Given) -> Imported:
    """Open a dump in the place of a session: an ELF core, or a raw image of RAM that begins at `base`.

    Raises UserError if a guest is attached, the file is neither, or nothing tells where its tables are.
    """
    from ptinspect.link.dump import DumpSession

    if guest.session is not None and guest.state != "dead":
        raise UserError(f"attached to {guest.session.address} already", "detach first")
    file, cpus, info = _opened(path, base)
    try:
        found = _derived(guest, file, info, given)
    except BaseException:
        file.close()
        raise
    states = cpus or (CpuState(0, (0,) * 31, 0, 0, EL1H, {}),)
    states = tuple(replace(state, system=found.system) for state in states)
    label = f"{file.label}; {', '.join(found.system)} derived: {found.sources[0]}"
    guest.open_session(DumpSession(file, states, label, registers=bool(cpus)), imported=found)
    return Imported(file.ram, len(cpus), found)


def _opened(path: Path, base: int | None) -> tuple[DumpFile, tuple[CpuState, ...], str]:
    """Return the file, and the registers and the VMCOREINFO in its notes."""
    from ptinspect.memory.dumpfile import DumpFile, is_elf, load_core

    if is_elf(path):
        if base is not None:
            raise UserError(f"{path} is an ELF file: it records where its memory was")
        file, notes = load_core(path)
        return file, notes.cpus, notes.vmcoreinfo
    _refuse_packed(path)
    if base is None:
        raise UserError(
            f"{path} is no ELF core: as a raw image of RAM it needs --base",
            "--base pa:0x40000000 on QEMU's virt machine",
        )
    return DumpFile(path, base), (), ""


def _refuse_packed(path: Path) -> None:
    """Raise UserError for the compressed format of kdump, which is no image of RAM."""
    with open_input(path) as file:
        head = file.read(16)
    if head.startswith((b"KDUMP   ", b"makedumpfile")):
        raise UserError(
            f"{path} is in kdump's compressed format, which is not read",
            "write it without -z, -l, -s: monitor dump-guest-memory FILE",
        )


def _derived(guest: Guest, file: DumpFile, info: str, given: Given) -> Derived:
    """Find the translation registers; memory is searched for VMCOREINFO only if nothing else tells."""
    from ptinspect.linux.image.vmcoreinfo import parse, search
    from ptinspect.linux.running.dump_registers import derive

    def progress(done: int, total: int) -> None:
        guest.progress("searching VMCOREINFO", done, total)

    def infos() -> Iterator[VmcoreInfo]:
        noted = parse(info, "a note of the file") if info else None
        if noted is not None:
            yield noted
        yield from search(file, file.ram, progress)

    return derive(file, file.ram, guest.kernel, infos, given)
