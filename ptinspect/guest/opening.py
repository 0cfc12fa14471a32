"""Open a guest: start QEMU on a kernel, attach to a gdbstub, or read a memory dump; and leave it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import TargetError, UserError
from ptinspect.files import need_file, open_input
from ptinspect.guest.guest import Guest

if TYPE_CHECKING:
    from ptinspect.link.live import LiveSession
    from ptinspect.link.qemu.machine import LaunchOptions
    from ptinspect.link.qemu.recording import Recording
    from ptinspect.linux.image.vmcoreinfo import VmcoreInfo
    from ptinspect.linux.running.dump_registers import Derived, Given
    from ptinspect.memory.dumpfile import DumpFile
    from ptinspect.memory.source import RamBlock

RECORDING = "recording"
"""Name under which a guest remembers the directory that it is recorded in or replayed from."""


@dataclass(frozen=True)
class Machine:
    """The machine to start, as far as it is chosen; None stands for the default (`LaunchOptions`)."""

    kernel: Path | None = None
    """Kernel to boot, in any form; None for that of the guest, else of the default reference guest."""
    guest: str | None = None
    """A reference guest, by its name."""
    symbols: Path | None = None
    """A vmlinux with the symbols of the kernel."""
    initrd: Path | None = None
    """Initial RAM disk; None for the reference guest's."""
    no_initrd: bool = False
    """Start without one."""
    qemu: str | None = None
    """QEMU: a path, or its name in setup."""
    machine: str | None = None
    """QEMU's -machine."""
    cpu: str | None = None
    """QEMU's -cpu."""
    smp: int | None = None
    """Number of CPUs."""
    memory: int | None = None
    """RAM in MiB."""
    append: str | None = None
    """The kernel's command line."""
    append_more: str | None = None
    """Words added to it."""
    extra: Sequence[str] = ()
    """Further arguments of QEMU."""
    keep: bool = False
    """Leave QEMU running when ptinspect ends."""
    timeline: Path | None = None
    """New directory to record the boot into."""


@dataclass(frozen=True)
class Boot:
    """What is booted."""

    kernel: Path
    """The kernel, as it was named."""
    initrd: Path | None
    symbols: Path
    """File with the kernel's symbols; the kernel itself if there is no better one."""
    cpu: str = ""
    """CPU model that the guest asks for; empty for the default."""
    note: str = ""
    """What the user should know about the guest."""


@dataclass(frozen=True)
class Left:
    """How a guest was left."""

    address: str
    """Its gdbstub."""
    running: bool
    dead: bool
    """True if it had ended already."""


def launch(guest: Guest, machine: Machine, timeout: float = 10.0) -> Boot:
    """Start QEMU, stopped at reset, and attach to it within `timeout` seconds.

    Raises UserError if a guest is attached already or a file is missing, TargetError.
    """
    refuse_second(guest)
    boot = chosen(guest, machine)
    kernel, boot = _for_qemu(guest, boot, machine)
    options = _options(boot, kernel, machine)
    if machine.timeline is None:
        start(guest, options, boot.symbols, timeout, keep=machine.keep)
        return boot
    from shutil import rmtree

    from ptinspect.link.qemu.recording import create

    recording, options = create(machine.timeline, options, boot.symbols)
    with ExitStack() as undo:  # where nothing is recorded the next attempt may have the directory
        undo.callback(rmtree, recording.directory, ignore_errors=True)
        start(guest, options, boot.symbols, timeout, keep=machine.keep)
        undo.pop_all()
    _note(guest, recording)
    return boot


def start(guest: Guest, options: LaunchOptions, symbols: Path, timeout: float, *, keep: bool = False) -> None:
    """Start QEMU in the place of one that was launched before, and attach to it. Raises TargetError."""
    from ptinspect.link.qemu.machine import launch as started

    if guest.qemu is not None:
        guest.qemu.close()
        guest.qemu = None
    guest.progress("starting QEMU")
    start_gdb(guest)
    with ExitStack() as undo:
        undo.callback(guest.end_gdb)
        guest.qemu = started(options, keep=keep)
        undo.callback(abandon, guest)
        session = _session(guest, str(guest.qemu.gdb_socket), symbols, timeout)
        undo.pop_all()
    guest.use_kernel(symbols)
    guest.open_session(session)


def abandon(guest: Guest) -> None:
    """Drop the session, and end the QEMU that was launched."""
    guest.drop_session()
    if guest.qemu is not None:
        guest.qemu.end()
        guest.qemu = None


def _note(guest: Guest, recording: Recording) -> None:
    """Remember that the guest is recorded, and have the length noted when it is left."""
    replay = guest.stopped.replay
    if replay is None:
        raise TargetError("QEMU does not say that it records")
    guest.kept[RECORDING] = recording
    replay.on_leave = lambda position: replace(recording, end=position).save()


def attach(guest: Guest, address: str | None = None, timeout: float = 10.0) -> LiveSession:
    """Attach to a gdbstub (host:port, :port, or a Unix socket's path), by default that of the QEMU launched.

    Raises UserError if a guest is attached already or none is named, ConnectError.
    """
    refuse_second(guest)
    if address is None:
        if guest.qemu is None or not guest.qemu.alive:
            raise UserError(
                "attach: which gdbstub?", "attach :1234, attach host:port, or attach /path/to/socket"
            )
        address = str(guest.qemu.gdb_socket)
    session = _session(guest, address, guest.kernel_path, timeout)
    guest.open_session(session)
    return session


def detach(guest: Guest, resume: bool | None = None) -> Left:
    """Leave the guest as it was found, running if `resume`, stopped if not. Raises UserError without one."""
    session = guest.session
    if session is None:
        raise UserError("not attached to a guest")
    running = session.was_running if resume is None else resume
    dead = guest.state == "dead"
    try:
        if not dead:
            session.detach(resume)
    finally:
        guest.drop_session()
    return Left(session.address, running and not dead, dead)


def refuse_second(guest: Guest) -> None:
    """Raise UserError if a guest is attached; a session that has ended is dropped."""
    if guest.session is not None and guest.state != "dead":
        raise UserError(f"attached to {guest.session.address} already", "detach first")
    guest.drop_session()


def _session(guest: Guest, address: str, symbols: Path | None, timeout: float) -> LiveSession:
    """Attach a GDB, which is given the symbols of an ELF file but not its debug information."""
    start_gdb(guest)
    try:
        from ptinspect.link.live import LiveSession

        file = elf_file(symbols)
        if file is not None:
            from ptinspect.linux.image.gdbfile import gdb_file

            file = gdb_file(file)
        starting = guest.take_gdb()
        if starting is not None:
            starting.meanwhile = _first_needed()
        return LiveSession.attach(
            address, gdb_path=guest.gdb, symbol_file=file, starting=starting, timeout=timeout
        )
    finally:
        guest.end_gdb()


def _first_needed() -> Iterator[None]:
    """Import what the first look at a guest needs, in two parts."""
    from ptinspect.linux.running import guest_layout, guest_view  # noqa: F401

    yield
    from ptinspect.analysis import map as _  # noqa: F401


def start_gdb(guest: Guest) -> None:
    """Start the GDB of the next attach, unless it was started already."""
    from ptinspect.link.gdb.starting import begun

    guest.starting = guest.starting or begun(guest.gdb)


def elf_file(kernel: Path | None) -> Path | None:
    """Return the ELF file that a kernel file is or has inside it; GDB can do nothing with an Image.

    Raises KernelFileError if it cannot be read, or is damaged.
    """
    if kernel is None:
        return None
    from ptinspect.linux.image.unpacking import UnknownFile, is_elf, plain

    try:
        found = plain(kernel)
    except UnknownFile:
        return None
    return found if is_elf(found) else None


def boots_by_firmware(words: Sequence[str]) -> bool:
    """Tell whether QEMU's arguments name a firmware, which then starts the kernel."""
    return any(word in ("-bios", "--bios", "-pflash", "--pflash") for word in words) or any(
        mark in word for word in words for mark in ("if=pflash", "pflash0=")
    )


def _for_qemu(guest: Guest, boot: Boot, machine: Machine) -> tuple[Path, Boot]:
    """Return the file that QEMU is to be given: unpacked, for it knows few packings, and knows no vmlinux.

    What is no known kernel is given as it is, and the user is told. Raises KernelFileError.
    """
    from ptinspect.linux.image.unpacking import UnknownFile, bootable

    guest.progress(f"reading {boot.kernel.name}")
    try:
        firmware = boots_by_firmware((machine.machine or "", *machine.extra))
        return bootable(boot.kernel, firmware=firmware), boot
    except UnknownFile:
        doubt = f"{boot.kernel.name} is no kernel that is known: QEMU runs its bytes as they are"
        return boot.kernel, replace(boot, note="; ".join(filter(None, (boot.note, doubt))))


def chosen(guest: Guest, machine: Machine) -> Boot:
    """Choose kernel, initrd and symbols. Raises UserError."""
    from ptinspect.reference import guests

    kernel = machine.kernel or (None if machine.guest else guest.kernel_path)
    if kernel is None:
        found = guests.guest(machine.guest) if machine.guest else guests.guest()
        initrd = None if machine.no_initrd else machine.initrd or found.initrd
        boot = Boot(found.kernel, initrd, found.vmlinux or found.kernel, found.cpu, found.note)
    else:
        initrd = machine.initrd
        if initrd is None and not machine.no_initrd:
            installed = guests.installed_guests()
            initrd = installed[0].initrd if installed else None
        boot = Boot(kernel, initrd, kernel)
    symbols = machine.symbols or (guest.kernel_path if machine.kernel else None)
    boot = replace(boot, symbols=symbols) if symbols is not None else boot
    for file in (boot.kernel, boot.initrd, boot.symbols):
        if file is not None:
            known = not file.exists() and any(one.name == str(file) for one in guests.installed_guests())
            need_file(file, hint=f"launch --guest {file}" if known else "")
    return boot


def _options(boot: Boot, kernel: Path, machine: Machine) -> LaunchOptions:
    """Return what QEMU is started with. Raises UserError without a CPU or without memory."""
    from ptinspect.link.qemu.machine import LaunchOptions

    if any(count is not None and count < 1 for count in (machine.smp, machine.memory)):
        raise UserError("a machine has at least one CPU and 1 MiB of memory")
    options = LaunchOptions(
        kernel, boot.initrd, extra=tuple(machine.extra), program=program(machine.qemu or "")
    )
    if boot.cpu:
        options = replace(options, cpu=boot.cpu)
    chosen = {name: getattr(machine, name) for name in ("machine", "cpu", "smp", "memory", "append")}
    options = replace(options, **{name: value for name, value in chosen.items() if value not in (None, "")})
    if machine.append_more:
        options = replace(options, append=f"{options.append} {machine.append_more}")
    return options


def program(chosen: str) -> str:
    """Return the path of a QEMU that is named by path or as setup names it; nothing if none is."""
    if not chosen or "/" in chosen:
        return chosen
    from ptinspect.reference import emulator

    return str(emulator.find(chosen).program)


EL1H = 0x3C5
"""PSTATE of a CPU whose registers are not known: EL1, SP_EL1."""


@dataclass(frozen=True)
class Imported:
    """Say what a dump holds."""

    ram: Sequence[RamBlock]
    cpus: int
    """CPUs whose registers are in the file."""
    derived: Derived
    """The translation registers, which are in no dump, and why they must have been so."""


def import_dump(guest: Guest, path: Path, base: int | None, given: Given) -> Imported:
    """Open a dump in the place of a session: an ELF core, or a raw image of RAM that begins at `base`.

    Raises UserError if a guest is attached, the file is neither, or nothing tells where its tables are.
    """
    from ptinspect.link.dump import DumpSession

    refuse_second(guest)
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
