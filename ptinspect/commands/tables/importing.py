"""`import`: files that others wrote, as memory to walk, or as a list of what was mapped."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables.kerneltext import is_kernel_text, show
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.guest import expression
from ptinspect.output.model import Note, Report, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.image.vmcoreinfo import VmcoreInfo
    from ptinspect.linux.running.dump_registers import Derived
    from ptinspect.memory.dumpfile import DumpFile

GRANULES = ("4K", "16K", "64K")
EL1H = 0x3C5
"""PSTATE of a CPU whose registers are not known: EL1, SP_EL1."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the file")
    add("--base", type=expression.address, metavar="pa:ADDR", help="raw image: where its first byte was")
    add("--root", type=expression.address, metavar="pa:ADDR", help="the kernel's root table")
    add("--granule", choices=GRANULES, help="size of a page (default: the kernel tells)")
    add("--va-bits", type=argtypes.whole(25, 52), metavar="N", help="width of kernel addresses")
    add("--mair", type=argtypes.number, metavar="VALUE", help="MAIR_EL1")


@command(
    "import",
    group="Guest",
    summary="Read a memory dump as a guest, or a kernel_page_tables text",
    example="import guest.elf",
    configure=_configure,
    details="FILE: an ELF core of QEMU's `monitor dump-guest-memory FILE`, or with --base a raw image of "
    "RAM (`monitor pmemsave`). walk, map, find, summary, snap, check, x and stack work on it as on a "
    "stopped guest. Such files have no TTBR1, TCR and MAIR: they are found through the kernel file, or "
    "the kernel's own VMCOREINFO in memory; what is assumed is said. A text of the kernel's own "
    "/sys/kernel/debug/kernel_page_tables is listed; diff compares it with a snapshot.",
)
def read(ctx: Context, args: argparse.Namespace) -> Report:
    """Open the file."""
    from ptinspect.memory.elfcore import is_elf

    if is_kernel_text(ctx, str(args.file)):
        return show(ctx, args.file)
    if ctx.session is not None and ctx.state != "dead":
        raise UserError(f"attached to {ctx.session.address} already", "detach first")
    if is_elf(args.file):
        if args.base is not None:
            raise UserError(f"{args.file} is an ELF file, which says itself where its memory was")
        return _core(ctx, args)
    _refuse_packed(args.file)
    if args.base is None:
        raise UserError(
            f"{args.file} is no ELF core: as a raw image of RAM it needs --base",
            "--base pa:0x40000000 on QEMU's virt machine",
        )
    return _raw(ctx, args)


def _refuse_packed(path: Path) -> None:
    """Raise UserError for the compressed format of kdump, which is no image of RAM."""
    with open_input(path) as file:
        head = file.read(16)
    if head.startswith((b"KDUMP   ", b"makedumpfile")):
        raise UserError(
            f"{path} is in kdump's compressed format, which is not read",
            "write it without -z, -l, -s: monitor dump-guest-memory FILE",
        )


def _core(ctx: Context, args: argparse.Namespace) -> Report:
    from ptinspect.memory.elfcore import load

    file, notes = load(args.file)
    return _open(ctx, args, file, notes.cpus, notes.vmcoreinfo)


def _raw(ctx: Context, args: argparse.Namespace) -> Report:
    from ptinspect.memory.dumpfile import DumpFile

    return _open(ctx, args, DumpFile(args.file, args.base.value()), (), "")


def _open(
    ctx: Context, args: argparse.Namespace, file: DumpFile, cpus: tuple[CpuState, ...], info: str
) -> Report:
    """Find the translation registers and take the place of a session; the file is closed if that fails."""
    try:
        found = _derive(ctx, args, file, info)
    except BaseException:
        file.close()
        raise
    from dataclasses import replace

    from ptinspect.link.dump import DumpSession

    states = cpus or (CpuState(0, (0,) * 31, 0, 0, EL1H, {}),)
    states = tuple(replace(state, system=found.system) for state in states)
    label = f"{file.label}; {', '.join(found.system)} derived: {found.sources[0]}"
    session = DumpSession(file, states, label, registers=bool(cpus))
    ctx.guest.open_session(session, imported=found)
    return _told(args.file, file, found, len(cpus))


def _derive(ctx: Context, args: argparse.Namespace, file: DumpFile, info: str) -> Derived:
    from ptinspect.linux.image.vmcoreinfo import parse, search
    from ptinspect.linux.running.dump_registers import Given, derive

    def infos() -> Iterator[VmcoreInfo]:
        noted = parse(info, "a note of the file") if info else None
        if noted is not None:
            yield noted
        yield from search(file, file.ram, lambda done, all_: ctx.progress("searching VMCOREINFO", done, all_))

    given = Given(
        root=None if args.root is None else args.root.value(),
        granule=None if args.granule is None else int(args.granule[:-1]) << 10,
        va_bits=args.va_bits,
        mair=args.mair,
    )
    return derive(file, file.ram, ctx.kernel, infos, given)


def _told(path: Path, file: DumpFile, found: Derived, cpus: int) -> Report:
    total = sum(block.size for block in file.ram)
    assumed = list(found.sources)
    if not cpus:
        assumed.append("the file has no registers of CPUs")
    result: dict[str, Any] = {
        "file": str(path),
        "ram": [{"start": hex_address(b.start), "size": b.size} for b in file.ram],
        "cpus": cpus,
        "root": {"pa": hex_address(found.root), "provenance": found.provenance},
        "registers": {name: hex_address(value) for name, value in found.system.items()},
        "release": found.release,
        "assumed": assumed,
    }
    blocks = ", ".join(f"pa:{b.start:#x}+{b.size:#x}" for b in file.ram)
    head = f"{path}: {total >> 20} MiB ({blocks}), registers of {cpus} CPUs"
    body = [
        Note(head, "good"),
        Note(f"root pa:{found.root:#x}: {escape(found.provenance)}", "dim"),
        Note("not in the file: " + ", ".join(f"{n} {v:#x}" for n, v in found.system.items()), "changed"),
        *(Note(f"  {escape(text)}", "dim") for text in assumed),
    ]
    return Report(result, body)
