"""`import`: files that others wrote, as memory to walk, or as a list of what was mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ptinspect.arch.bits import PhysAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import number_argument
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables.kernel_text_view import SHOWN, TextResult, show_text
from ptinspect.dataclass import dataclass
from ptinspect.guest.expression import Address, address
from ptinspect.guest.kernel_texts import is_kernel_text
from ptinspect.guest.opening import import_dump
from ptinspect.output.encode import Hex
from ptinspect.output.model import Note, Report, escape
from ptinspect.output.table_heads import RootResult

GRANULES = {"4K": 4096, "16K": 16384, "64K": 65536}


@dataclass(frozen=True)
class BlockResult:
    """A block of the guest's memory."""

    start: PhysAddr
    size: int


@dataclass(frozen=True)
class ImportResult:
    """What a dump holds, and the registers that are not in it."""

    file: str
    ram: Sequence[BlockResult]
    cpus: int
    root: RootResult
    registers: Mapping[str, Hex]
    release: str
    assumed: Sequence[str]


@command(
    "import",
    group="Guest",
    summary="Read a memory dump as a guest, or a kernel_page_tables text",
    example="import guest.elf",
    arguments=(
        argument("file", type=Path, metavar="FILE", help="the file"),
        argument("--base", type=address, metavar="pa:ADDR", help="raw image: where its first byte was"),
        argument("--root", type=address, metavar="pa:ADDR", help="the kernel's root table"),
        argument("--granule", choices=tuple(GRANULES), help="size of a page (default: the kernel tells)"),
        number_argument("--va-bits", 25, 52, "width of kernel addresses"),
        argument("--mair", type=arguments.number, metavar="VALUE", help="MAIR_EL1"),
    ),
    result=ImportResult | TextResult,
    details="FILE: an ELF core of QEMU's `monitor dump-guest-memory FILE`, or with --base a raw image of "
    "RAM (`monitor pmemsave`). walk, map, find, summary, snap, check, x and stack work on it as on a "
    "stopped guest. Such files have no TTBR1, TCR and MAIR: they are found through the kernel file, or "
    "the kernel's own VMCOREINFO in memory; what is assumed is printed. A text of the kernel's own "
    "/sys/kernel/debug/kernel_page_tables is listed; diff compares it with a snapshot.",
)
def read(
    ctx: Context,
    *,
    file: Path,
    base: Address | None,
    root: Address | None,
    granule: str | None,
    va_bits: int | None,
    mair: int | None,
) -> Report:
    """Open the file."""
    from ptinspect.linux.running.dump_registers import Given

    if is_kernel_text(ctx.guest, str(file)):
        return show_text(ctx.guest, str(file), ctx.rows(SHOWN))
    given = Given(
        root=None if root is None else root.value(),
        granule=None if granule is None else GRANULES[granule],
        va_bits=va_bits,
        mair=mair,
    )
    found = import_dump(ctx.guest, file, None if base is None else base.value(), given)
    derived, cpus = found.derived, found.cpus
    assumed = [*derived.sources, *([] if cpus else ["the file has no registers of CPUs"])]
    result = ImportResult(
        file=str(file),
        ram=[BlockResult(PhysAddr(block.start), block.size) for block in found.ram],
        cpus=cpus,
        root=RootResult(derived.root, derived.provenance),
        registers={name: Hex(value) for name, value in derived.system.items()},
        release=derived.release,
        assumed=assumed,
    )
    total = sum(block.size for block in result.ram)
    blocks = ", ".join(f"pa:{block.start:#x}+{block.size:#x}" for block in result.ram)
    registers = ", ".join(f"{name} {value:#x}" for name, value in result.registers.items())
    body = [
        Note(f"{file}: {total >> 20} MiB ({blocks}), registers of {cpus} CPUs", "good"),
        Note(f"root pa:{derived.root:#x}: {escape(derived.provenance)}", "dim"),
        Note(f"not in the file: {registers}", "changed"),
        *(Note(f"  {escape(text)}", "dim") for text in assumed),
    ]
    return Report(result, body)
