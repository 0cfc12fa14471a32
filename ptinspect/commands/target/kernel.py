"""`kernel`, `symbol`, `modules`: the kernel file, what it knows, and which modules are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.arch.levels import size_text
from ptinspect.commands.framework.arguments import MODULES, address_argument, switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.commands.run.breakpoints import placed
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError, PtinspectError, UserError
from ptinspect.files import need_file
from ptinspect.guest.breakpoints.breakpoints import symbol_breakpoints
from ptinspect.guest.expression import Address
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import also_in, early, names_at_hand
from ptinspect.output.encode import ABSENT, Absent, Hex
from ptinspect.output.model import Note, Report, Table, escape, facts, headings


@dataclass(frozen=True)
class KernelResult:
    """The kernel file; None if there is none."""

    file: str | None
    banner: str | Absent = ABSENT
    symbols: int | Absent = ABSENT
    text: Hex | Absent = ABSENT
    size: int | Absent = ABSENT
    modules: str | Absent = ABSENT
    """The directory with files of modules."""
    breakpoints_deleted: Sequence[int] | Absent = ABSENT
    """Breakpoints at symbols that this kernel does not have."""


@command(
    "kernel",
    group="Guest",
    summary="Name the guest's kernel file, or show it",
    example="kernel vmlinux",
    arguments=(
        argument(
            "file",
            nargs="?",
            type=Path,
            metavar="FILE",
            help="Image, vmlinuz, or vmlinux, packed or not, or a .deb",
        ),
        switch("--force", "use it even if the guest runs another kernel"),
        MODULES,
    ),
    result=KernelResult,
    details="Symbols, and where the kernel runs, come from it. The same as --kernel FILE. The file of "
    "another kernel than the one in the stopped guest is refused (their code is compared). Symbols of "
    "loaded modules come from the guest's memory; with --modules those that it does not keep, as of data, "
    "from files such as those below /lib/modules.",
    changes=True,
)
def kernel(
    guest: Guest, *, file: Path | None = None, force: bool = False, modules: Path | None = None
) -> Report:
    """Name or show the kernel file."""
    if modules is not None:
        guest.use_modules(modules)
    deleted: list[int] = []
    notes: list[Note] = []
    if file is not None:
        need_file(file)
        path, forced = guest.kernel_path, guest.force_kernel
        guest.use_kernel(file, force=force)
        try:
            if (wrong := guest.kernel_refused) is not None:
                raise wrong
            _ = guest.kernel
        except KernelFileError:  # the one named before stays
            guest.use_kernel(path, force=forced)
            raise
        if guest.state == "stopped" and file != path:
            deleted, notes = _followed(guest)
    found = guest.kernel
    if found is None:
        return Report(KernelResult(None), (Note("no kernel file; 'kernel FILE' names one", "dim"),))
    files = ABSENT if guest.module_files is None else str(guest.module_files.directory)
    result = KernelResult(
        str(found.path),
        escape(found.banner),
        len(found.symbols),
        Hex(found.text_va),
        found.size,
        files,
        deleted or ABSENT,
    )
    rows = [
        ("file", str(found.path)),
        ("banner", escape(found.banner)),
        ("symbols", str(len(found.symbols))),
        ("linked at", f"{f'{found.text_va:#x}' if found.linked else 'not known'}, {size_text(found.size)}"),
    ]
    if guest.module_files is not None:
        rows.append(("modules", str(guest.module_files.directory)))
    return Report(result, (facts(rows), *notes))


def _followed(guest: Guest) -> tuple[list[int], list[Note]]:
    """Have breakpoints at symbols follow the kernel file; return those deleted, and what became of all."""
    breakpoints = symbol_breakpoints(guest)
    lost = breakpoints.follow_another()
    notes = [Note(f"breakpoint {one.id} {placed(guest, one)}", "changed") for one in breakpoints.all]
    notes += [
        Note(f"breakpoint {one.id} at {one.address.text} is deleted: this kernel has no such symbol", "bad")
        for one in lost
    ]
    return [one.id for one in lost], notes


@dataclass(frozen=True)
class SymbolResult:
    """An address, and the symbol at or below it."""

    address: Hex
    symbol: str
    offset: int | None
    pa: PhysAddr | None
    physical: bool | Absent = ABSENT
    """True for a physical address: as typed, or of a symbol of which no other is known yet."""
    as_linked: bool | Absent = ABSENT
    """True of a symbol if it is not known where the kernel will run."""
    module: str | Absent = ABSENT
    """The module that it is in; absent for the kernel itself."""
    also: Sequence[str] | Absent = ABSENT
    """Modules that have another symbol of this name."""


@command(
    "symbol",
    aliases=("sym",),
    group="Guest",
    summary="Find a symbol, or what lies at an address",
    example="symbol kpti_install_ng_mappings",
    arguments=(address_argument("what", metavar="SYMBOL|ADDR"),),
    result=SymbolResult,
    details="With a stopped guest, addresses are those at run time, KASLR included; pa: where it lies.",
)
def symbol(guest: Guest, *, what: Address) -> Report:
    """Find a symbol by name or by address."""
    if guest.kernel is None:
        raise UserError("symbols need the kernel file", "kernel FILE, or --kernel FILE")
    as_linked, pa, note = early(guest, what)
    physical = what.physical or (as_linked and pa is not None and not guest.kernel.linked)
    address = pa if physical and pa is not None else what.value(names_at_hand(guest))
    physical = physical or guest.is_flat(address)
    near = guest.nearest(address, physical=physical)
    if guest.state == "stopped" and pa is None and not physical:
        try:
            pa = guest.view.pa_of(address)
        except PtinspectError:
            pa = None
    also = also_in(guest, what) if near and not near.module else []
    where = "" if pa is None or physical else f", pa:{pa:#x}"
    place = guest.place(address, physical=physical) + where + ("" if near else ": no symbol there")
    result = SymbolResult(
        address=Hex(address),
        symbol="" if near is None else near.symbol,
        offset=None if near is None else near.offset,
        pa=None if pa is None else PhysAddr(pa),
        physical=physical or ABSENT,
        as_linked=as_linked or ABSENT,
        module=(near.module if near else "") or ABSENT,
        also=also or ABSENT,
    )
    body = [Note(place)]
    if note:
        body.append(Note(note, "changed"))
    if guest.state == "stopped":
        body += [Note(f"not used: {escape(why)}", "changed") for why in guest.view.modules.refused]
    if also:
        body.append(Note(f"modules have one of this name too: {', '.join(also)}; NAME [MODULE]", "dim"))
    return Report(result, body)


@dataclass(frozen=True)
class PartResult:
    """A part of a module's memory."""

    start: VirtAddr
    end: VirtAddr


@dataclass(frozen=True)
class ModuleResult:
    """A module that is loaded."""

    name: str
    state: str
    """live, coming, going or unformed: enum module_state of the kernel."""
    address: VirtAddr
    """Of its struct module."""
    parts: Sequence[PartResult]
    """Its code comes first."""


@dataclass(frozen=True)
class ModulesResult:
    """The modules that are loaded."""

    modules: Sequence[ModuleResult]
    incomplete: str | Absent = ABSENT
    """Why there may be more."""


@command(
    "modules",
    group="Look",
    summary="List the modules that the guest has loaded",
    example="modules",
    result=ModulesResult,
    needs=Needs.STOPPED,
    expectable=True,
    details="The kernel's own list, in its order: the last one loaded comes first. Their symbols are known: "
    "symbol init_module, break 'virtnet_open [virtio_net]'.",
)
def modules(guest: Guest) -> Report:
    """List the modules on the kernel's list."""
    known = guest.view.modules
    found = [
        ModuleResult(
            one.name,
            one.state,
            VirtAddr(one.address),
            [PartResult(*map(VirtAddr, part)) for part in one.parts],
        )
        for one in known.listed
    ]
    rows = [
        (
            one.name,
            one.state,
            size_text(sum(part.end - part.start for part in one.parts)),
            f"{one.parts[0].start:#x}" if one.parts else "?",
            f"{one.address:#x}",
        )
        for one in found
    ]
    columns = headings("name", "state", ">size", "from", "kept at")
    body = [Table(columns, rows, empty="no module is loaded")]
    more = [Note(escape(known.incomplete), "bad")] if known.incomplete else []
    return Report(ModulesResult(found, known.incomplete or ABSENT), (*body, *more))
