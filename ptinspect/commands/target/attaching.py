"""`launch`, `attach`, `timeline open`, `status`, `detach`, `quit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import (
    CPU,
    MODULES,
    number_argument,
    switch,
    timeout_argument,
    within,
)
from ptinspect.commands.framework.command import argument, command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass, replace
from ptinspect.guest import opening
from ptinspect.guest.condition import Condition, condition
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import cpu_state
from ptinspect.guest.opening import Machine
from ptinspect.guest.recordings.timeline import Timeline, open_recording
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Cell, Note, Report, Style, Styled, Table, escape, facts

STATE_STYLES: dict[str, Style] = {"stopped": "good", "running": "changed", "dead": "bad"}


def megabytes(text: str) -> int:
    """Read a size of RAM: a number of megabytes, or 2G. Raises UserError."""
    return int(text) if text.isdigit() else max(arguments.size(text) >> 20, 1)


GUEST = argument("--guest", type=arguments.guest_name, metavar="NAME", help="a guest that setup installed")
CPU_MODEL = argument("--cpu", metavar="MODEL", help="CPU model (default cortex-a72)")
MEMORY = argument("--memory", "-m", type=megabytes, metavar="MB", help="RAM in MB, or 2G (default 1024)")


@dataclass(frozen=True, kw_only=True)
class LaunchResult(Condition):
    """How a guest stands that was started."""

    command_line: list[str]


@command(
    "launch",
    group="Guest",
    summary="Start QEMU on a kernel, stopped at reset, and attach",
    example="launch --memory 512 -- -d guest_errors",
    arguments=(
        *within(
            "machine",
            Machine,
            argument("kernel", nargs="?", type=Path, metavar="KERNEL", help="kernel to boot, in any form"),
            argument("--symbols", type=Path, metavar="FILE", help="vmlinux with the symbols of KERNEL"),
            GUEST,
            argument("--initrd", type=Path, metavar="FILE", help="initial RAM disk (default: the guest's)"),
            switch("--no-initrd", "start without an initial RAM disk"),
            argument("--qemu", metavar="Q", help="QEMU to start: a path, or newer (from setup --qemu newer)"),
            argument("--machine", "-M", metavar="M", help="QEMU machine (default virt,gic-version=3)"),
            CPU_MODEL,
            number_argument("--smp", 1, 512, "number of CPUs (default 1)"),
            MEMORY,
            argument("--append", metavar="TEXT", help="kernel command line instead of the default one"),
            argument("--append-more", metavar="TEXT", help="words added to the default kernel command line"),
            switch("--keep", "leave QEMU running when ptinspect ends"),
            argument(
                "--timeline", type=Path, metavar="DIR", help="record the boot, for timeline open, into DIR"
            ),
        ),
        MODULES,
        switch("--unless-attached", "do nothing where a guest is attached already"),
    ),
    result=LaunchResult | Condition,
    details="Without KERNEL: the one of --kernel, else the default reference guest. It may be an Image or a "
    "vmlinux, packed, an EFI zboot image, or in a Debian package: what is inside is what QEMU gets. With a "
    "firmware (-- -bios FILE) an EFI file stays as it is. What follows -- goes to QEMU. QEMU ends with "
    "ptinspect unless --keep is given.",
    extra=True,
    not_in_gdb="start QEMU yourself, or use ptinspect without GDB",
)
def launch(
    ctx: Context,
    *,
    machine: Machine,
    modules: Path | None = None,
    unless_attached: bool = False,
    extra: Sequence[str] = (),
) -> Report:
    """Start QEMU and attach to it."""
    if unless_attached and ctx.guest.session is not None and ctx.guest.state != "dead":
        found = condition(ctx.guest)
        return Report(found, (Note("attached already", "good"), condition_table(ctx.guest, found)))
    if modules is not None:
        ctx.guest.use_modules(modules)
    wanted = replace(machine, extra=extra)
    boot = opening.launch(ctx.guest, wanted, ctx.options.number("timeout-attach"))
    found = condition(ctx.guest)
    words = () if ctx.guest.qemu is None else ctx.guest.qemu.command_line
    body: list[Table | Note] = [
        Note(f"launched {boot.kernel.name}, stopped at reset", "good"),
        condition_table(ctx.guest, found),
        *([Note(boot.note, "changed")] if boot.note else []),
    ]
    return Report(LaunchResult(**vars(found), command_line=list(words)), body)


@dataclass(frozen=True)
class AttachResult(Condition):
    """How a guest stands that was attached to."""

    left_behind: list[str] | Absent = ABSENT


@command(
    "attach",
    group="Guest",
    summary="Attach to a gdbstub that runs already",
    example="attach :1234",
    arguments=(
        argument("address", nargs="?", metavar="ADDR", help="host:port, :port, or the path of a Unix socket"),
        timeout_argument("time that attaching may take (option timeout-attach)"),
        MODULES,
    ),
    result=AttachResult,
    details="host:port, :port, or the path of a Unix socket; without ADDR, the guest launched here. "
    "The guest is stopped while ptinspect is attached and left as it was found. What an earlier session "
    "that was killed has left in its memory is put back and reported.",
    not_in_gdb="use GDB's own: target remote :1234",
)
def attach(
    ctx: Context, *, address: str | None = None, timeout: float | None = None, modules: Path | None = None
) -> Report:
    """Attach to a gdbstub."""
    guest = ctx.guest
    if modules is not None:
        guest.use_modules(modules)
    session = opening.attach(guest, address, timeout or ctx.options.number("timeout-attach"))
    found, left = condition(guest), session.left_behind
    headline = Note(f"attached to {address or session.address}", "good")
    body = (headline, condition_table(guest, found))
    result = AttachResult(**vars(found), left_behind=list(left) or ABSENT)
    return Report(result, (*(Note(escape(line), "changed") for line in left), *body))


@command(
    "status",
    group="Guest",
    summary="Say what ptinspect is attached to and how it stands",
    example="status",
    arguments=(CPU,),
    result=Condition,
    expectable=True,
)
def status(guest: Guest, *, cpu: int | None = None) -> Report:
    """Say what ptinspect is attached to."""
    found = condition(guest, cpu)
    return Report(found, (condition_table(guest, found),))


def _where(found: Timeline | None) -> str:
    """Say where the guest stands in a recorded run."""
    if found is None:
        return ""
    what = f"recorded into {found.directory}" if found.mode == "record" else f"replay of {found.directory}"
    end = "" if found.end is None else f" of {found.end:,}"
    return f"{what}, at position {found.position:,}{end}"


def condition_table(guest: Guest, found: Condition) -> Table:
    """Show how a guest stands, line by line."""
    mmu = "" if found.mmu_on is None else f", MMU {'on' if found.mmu_on else 'off'}"
    place = "" if found.pc is None else guest.place(found.pc, state=cpu_state(guest, found.cpu))
    where = f"cpu {found.cpu} at {place}, EL{found.el}{mmu}" if place else ""
    used = None if guest.session is None or found.slots is None else guest.session.slots_used()
    why = found.reason if guest.session is None or not found.reason else guest.session.stop.words
    state = found.state if found.state != "none" else "not attached"
    lines: list[tuple[str, Cell]] = [
        ("guest", Styled(state, STATE_STYLES.get(found.state, "dim"))),
        ("stub", found.address),
        ("stands", where),
        ("stopped by", why),
        ("CPUs", str(found.cpus) if found.cpus else ""),
        ("QEMU", found.qemu + (f" (pid {found.pid})" if found.pid is not None else "")),
        ("runs by", found.accel.upper() if found.accel in ("kvm", "tcg") else found.accel),
        ("slots", "" if used is None else str(used)),
        ("GDB", found.gdb),
        ("memory by", found.memory),
        ("timeline", _where(found.timeline)),
        ("kernel", found.kernel),
        ("not used", Styled(escape(found.kernel_refused), "bad")),
        ("console", found.console),
        ("snapshots", ", ".join(found.snapshots)),
    ]
    rows = [(name, value if isinstance(value, Styled) else escape(value)) for name, value in lines]
    return facts(rows)


@dataclass(frozen=True)
class DetachResult:
    """How a guest was left."""

    detached: str
    running: bool


@command(
    "detach",
    group="Guest",
    summary="Leave the guest as it was found",
    example="detach",
    arguments=(
        switch("--resume", "leave it running, however it was found", one_of="how"),
        switch("--stop", "leave it stopped, however it was found", one_of="how"),
    ),
    result=DetachResult,
    not_in_gdb="use GDB's own: detach, or disconnect",
)
def detach(guest: Guest, *, resume: bool = False, stop: bool = False) -> Report:
    """Detach; the guest runs again if it ran before."""
    left = opening.detach(guest, True if resume else False if stop else None)
    how = f"the guest is left {'running' if left.running else 'stopped'}"
    text = "detached: the guest has ended" if left.dead else f"detached: {how}"
    return Report(DetachResult(left.address, left.running), (Note(text),))


@command(
    "timeline open",
    group="Timeline",
    summary="Replay a recorded boot, from its start",
    example="timeline open boot.timeline",
    arguments=(
        argument("directory", type=Path, metavar="DIR", help="what launch --timeline has made"),
        argument("--qemu", metavar="Q", help="QEMU to start (default: one of the version that recorded)"),
        switch("--trust", "start QEMU with the further arguments that it names"),
    ),
    result=Condition,
    details="Open those of people whom you trust: QEMU takes the machine's states from it. "
    "It must be the same version of QEMU. A recording that broke off is replayed as far as it goes.",
    not_in_gdb="start QEMU yourself with rr=replay, or use ptinspect without GDB",
)
def replay(ctx: Context, *, directory: Path, qemu: str | None = None, trust: bool = False) -> Report:
    """Start QEMU on a recording, and attach to it."""
    open_recording(ctx.guest, directory, qemu, ctx.options.number("timeout-attach"), trust=trust)
    found = condition(ctx.guest)
    head = Note(f"replaying {escape(str(directory))}, stopped at its start", "good")
    return Report(found, (head, condition_table(ctx.guest, found)))


@dataclass(frozen=True)
class QuitResult:
    """Nothing: ptinspect ends."""


@command(
    "quit",
    aliases=("q", "exit"),
    group="Guest",
    summary="Leave ptinspect",
    example="quit",
    result=QuitResult,
    recorded=False,
    not_in_gdb="use GDB's own",
)
def leave(ctx: Context) -> Report:
    """Leave ptinspect; the guest is detached, or ended if it was launched here."""
    ctx.leave = True
    return Report(QuitResult())
