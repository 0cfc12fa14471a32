"""`launch`, `attach`, `detach`, `status`, `quit`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.target.status import status_report
from ptinspect.errors import UserError
from ptinspect.files import open_input
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.link.qemu.machine import LaunchOptions


def _configure_launch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kernel", nargs="?", type=Path, metavar="KERNEL", help="Image or vmlinuz to boot")
    add("--symbols", type=Path, metavar="FILE", help="vmlinux with the symbols of KERNEL")
    add("--guest", type=argtypes.guest_name, metavar="NAME", help="a reference guest that setup installed")
    add("--initrd", type=Path, metavar="FILE", help="initial RAM disk (default: the reference guest's)")
    add("--no-initrd", action="store_true", help="start without an initial RAM disk")
    add("--qemu", metavar="Q", help="QEMU to start: a path, or newer (from setup --qemu newer)")
    add("--machine", "-M", metavar="M", help="QEMU machine (default virt,gic-version=3)")
    add("--cpu", metavar="MODEL", help="CPU model (default cortex-a72)")
    add("--smp", type=argtypes.whole(1, 512), metavar="N", help="number of CPUs (default 1)")
    add("--memory", "-m", type=_megabytes, metavar="MB", help="RAM in MB, or 2G (default 1024)")
    add("--append", metavar="TEXT", help="kernel command line instead of the default one")
    add("--append-more", metavar="TEXT", help="words added to the default kernel command line")
    add("--keep", action="store_true", help="leave QEMU running when ptinspect ends")
    add("--unless-attached", action="store_true", help="do nothing where a guest is attached already")


def _configure_attach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", nargs="?", metavar="ADDR", help="host:port, :port, or the path of a Unix socket"
    )
    parser.add_argument(
        "--timeout",
        type=argtypes.seconds,
        metavar="SECONDS",
        help="time that attaching may take (option timeout-attach)",
    )


def _configure_detach(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="leave it running, however it was found")
    group.add_argument("--stop", action="store_true", help="leave it stopped, however it was found")


def _megabytes(text: str) -> int:
    return int(text) if text.isdigit() else max(argtypes.size(text) >> 20, 1)


@dataclass(frozen=True)
class Boot:
    """What `launch` boots."""

    kernel: Path
    """Image or vmlinuz."""
    initrd: Path | None
    """Initial RAM disk, or None."""
    symbols: Path
    """File with the kernel's symbols; the kernel itself if there is no better one."""
    cpu: str = ""
    """CPU model that the guest asks for; empty for the default."""
    note: str = ""
    """What the user should know about the guest."""


@command(
    "launch",
    group="Guest",
    summary="Start QEMU on a kernel, stopped at reset, and attach",
    example="launch --memory 512 -- -d guest_errors",
    configure=_configure_launch,
    details="Without KERNEL: the one of --kernel, else the default reference guest. What stands "
    "behind -- goes to QEMU. QEMU ends with ptinspect unless --keep is given.",
    extra=True,
    not_in_gdb="start QEMU yourself, or use ptinspect without GDB",
)
def launch(ctx: Context, args: argparse.Namespace) -> Report:
    """Start QEMU and attach to it."""
    if args.unless_attached and ctx.session is not None and ctx.state != "dead":
        return status_report(ctx, "attached already")
    _refuse_second(ctx)
    from ptinspect.link.live import LiveSession
    from ptinspect.link.qemu.machine import launch as start

    if ctx.qemu is not None:
        ctx.qemu.close()
        ctx.qemu = None
    boot = _boot(ctx, args)
    options = _options(boot, args)
    ctx.progress("starting QEMU", 0, 0)
    qemu = start(options, keep=args.keep)
    ctx.qemu = qemu
    try:
        session = LiveSession.attach(
            str(qemu.gdb_socket),
            gdb_path=ctx.guest.gdb,
            symbol_file=_for_gdb(boot.symbols),
            timeout=ctx.options.number("timeout-attach"),
        )
    except BaseException:
        ctx.qemu = None
        qemu.keep = False
        qemu.close()
        raise
    ctx.use_kernel(boot.symbols)
    ctx.guest.open_session(session)
    report = status_report(ctx, f"launched {options.kernel.name}, stopped at reset")
    command = {**report.result, "command_line": list(qemu.command_line)}
    note = (Note(boot.note, "changed"),) if boot.note else ()
    return Report(command, (*report.body, *note))


def _boot(ctx: Context, args: argparse.Namespace) -> Boot:
    """Choose kernel, initrd and symbols. Raises UserError."""
    from ptinspect.reference import guests

    kernel = args.kernel or (None if args.guest else ctx.guest.kernel_path)
    if kernel is None:
        guest = guests.guest(args.guest) if args.guest else guests.guest()
        initrd = None if args.no_initrd else args.initrd or guest.initrd
        boot = Boot(guest.kernel, initrd, guest.vmlinux or guest.kernel, guest.cpu, guest.note)
    else:
        initrd = args.initrd
        if initrd is None and not args.no_initrd:
            installed = guests.installed_guests()
            initrd = installed[0].initrd if installed else None
        boot = Boot(kernel, initrd, kernel)
    symbols = args.symbols or (ctx.guest.kernel_path if args.kernel else None)
    boot = replace(boot, symbols=symbols) if symbols is not None else boot
    for file in (boot.kernel, boot.initrd, boot.symbols):
        if file is not None and not file.is_file():
            raise UserError(f"no file {file}")
    if elf_file(boot.kernel) is not None:
        raise UserError(
            f"QEMU cannot boot {boot.kernel}, an ELF file", f"launch IMAGE --symbols {boot.kernel}"
        )
    return boot


def _options(boot: Boot, args: argparse.Namespace) -> LaunchOptions:
    from ptinspect.link.qemu.machine import LaunchOptions

    options = LaunchOptions(
        boot.kernel, boot.initrd, extra=tuple(args.extra), program=_program(args.qemu or "")
    )
    if boot.cpu:
        options = replace(options, cpu=boot.cpu)
    chosen = {name: getattr(args, name) for name in ("machine", "cpu", "smp", "memory", "append")}
    options = replace(options, **{name: value for name, value in chosen.items() if value not in (None, "")})
    if args.append_more:
        options = replace(options, append=f"{options.append} {args.append_more}")
    return options


def _program(chosen: str) -> str:
    """Return the path of a QEMU that is named by path or as setup names it; nothing if none is."""
    if not chosen or "/" in chosen:
        return chosen
    from ptinspect.reference import emulator

    return str(emulator.find(chosen).program)


def elf_file(kernel: Path | None) -> Path | None:
    """Return the file if it is an ELF file; GDB can do nothing with an Image, nor QEMU with ELF."""
    if kernel is None:
        return None
    try:
        with open_input(kernel) as file:
            return kernel if file.read(4) == b"\x7fELF" else None
    except OSError as error:
        raise UserError(f"cannot read {kernel}: {error.strerror or error}") from error


def _for_gdb(kernel: Path | None) -> Path | None:
    """Return what GDB is given of an ELF file: its symbols, not its debug information."""
    file = elf_file(kernel)
    if file is None:
        return None
    from ptinspect.linux.image.gdbfile import gdb_file

    return gdb_file(file)


def _refuse_second(ctx: Context) -> None:
    if ctx.session is not None and ctx.state != "dead":
        raise UserError(f"attached to {ctx.session.address} already", "detach first")
    if ctx.session is not None:
        ctx.guest.drop_session()


@command(
    "attach",
    group="Guest",
    summary="Attach to a gdbstub that runs already",
    example="attach :1234",
    configure=_configure_attach,
    details="host:port, :port, or the path of a Unix socket; without ADDR, the guest launched here. "
    "The guest is stopped while ptinspect is attached and left as it was found. What an earlier session "
    "that was killed has left in its memory is put back, and said.",
    not_in_gdb="use GDB's own: target remote :1234",
)
def attach(ctx: Context, args: argparse.Namespace) -> Report:
    """Attach to a gdbstub."""
    _refuse_second(ctx)
    address = args.address
    if address is None:
        if ctx.qemu is None or not ctx.qemu.alive:
            raise UserError(
                "attach: which gdbstub?", "attach :1234, attach host:port, or attach /path/to/socket"
            )
        address = str(ctx.qemu.gdb_socket)
    from ptinspect.link.live import LiveSession

    session = LiveSession.attach(
        address,
        gdb_path=ctx.guest.gdb,
        symbol_file=_for_gdb(ctx.guest.kernel_path),
        timeout=args.timeout or ctx.options.number("timeout-attach"),
    )
    ctx.guest.open_session(session)
    report = status_report(ctx, f"attached to {address}")
    if not session.left_behind:
        return report
    notes = (Note(escape(line), "changed") for line in session.left_behind)
    return Report({**report.result, "left_behind": list(session.left_behind)}, (*notes, *report.body))


@command(
    "detach",
    group="Guest",
    summary="Leave the guest as it was found",
    example="detach",
    needs=Needs.NOTHING,
    configure=_configure_detach,
    not_in_gdb="use GDB's own: detach, or disconnect",
)
def detach(ctx: Context, args: argparse.Namespace) -> Report:
    """Detach; the guest runs again if it ran before."""
    session = ctx.session
    if session is None:
        raise UserError("not attached to a guest")
    resume = True if args.resume else False if args.stop else None
    running = session.was_running if resume is None else resume
    dead = ctx.state == "dead"
    try:
        if not dead:
            session.detach(resume)
    finally:
        ctx.guest.drop_session()
    how = "the guest has gone" if dead else f"the guest is left {'running' if running else 'stopped'}"
    return Report({"detached": session.address, "running": running and not dead}, (Note(f"detached: {how}"),))


@command(
    "status",
    group="Guest",
    summary="Say what ptinspect is attached to and how it stands",
    example="status",
    configure=add_cpu_option,
    expectable=True,
)
def status(ctx: Context, args: argparse.Namespace) -> Report:
    """Say what ptinspect is attached to."""
    return status_report(ctx, "", args.cpu)


@command(
    "quit",
    aliases=("q", "exit"),
    group="Guest",
    summary="Leave ptinspect",
    example="quit",
    recorded=False,
    not_in_gdb="use GDB's own",
)
def leave(ctx: Context, args: argparse.Namespace) -> Report:
    """Leave ptinspect; the guest is detached, or ended if it was launched here."""
    ctx.leave = True
    return Report({})
