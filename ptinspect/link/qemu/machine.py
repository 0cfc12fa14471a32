"""Start QEMU on a kernel, stopped at reset, on a private socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import TargetError
from ptinspect.link.qemu.listener import is_listening
from ptinspect.processes import PrivateDirectory, die_with_parent, poll

PROGRAM = "qemu-system-aarch64"
PROGRAM_VARIABLE = "PTINSPECT_QEMU"
"""Environment variable with the QEMU to start instead of the one in PATH."""
RAM_NAME = "guest-ram"
"""Name of the RAM where it is larger than the host's."""
START_SECONDS = 60.0
LAST_WORDS = 2000
"""Bytes of a log that are shown."""
SOCKET_PATH_LIMIT = 107
"""Longest path of a Unix socket, bytes (unix(7))."""


@dataclass(frozen=True)
class LaunchOptions:
    """Say which machine to start. Defaults: the machine of the bug report on lost table entries."""

    kernel: Path
    """Image, vmlinuz or ELF file that QEMU can boot."""
    initrd: Path | None = None
    machine: str = "virt,gic-version=3"
    """QEMU's -machine."""
    cpu: str = "cortex-a72"
    """QEMU's -cpu."""
    smp: int = 1
    memory: int = 1024
    """RAM in MiB."""
    append: str = "rdinit=/init console=ttyAMA0 earlycon=pl011,0x9000000 nokaslr kpti=on"
    extra: Sequence[str] = ()
    """Further arguments of QEMU."""
    program: str = ""
    """QEMU itself, by path or by its name in PATH; empty for $PTINSPECT_QEMU, else the system's."""
    console: Path | None = None
    """File for what the guest prints; None for one in QEMU's directory."""


class Qemu:
    """A QEMU that ptinspect started."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        command_line: Sequence[str],
        own: PrivateDirectory,
        *,
        keep: bool,
        console: Path | None,
    ) -> None:
        self.process, self.pid = process, process.pid
        self.command_line = tuple(command_line)
        self._own, self.directory = own, own.path
        """Private directory with the socket, the console and QEMU's own messages."""
        self.gdb_socket = own.path / "gdb.sock"
        """Unix socket of the gdbstub."""
        self.console = console or own.path / "console.log"
        """File that the guest's first serial port is written to."""
        self.keep = keep
        """Leave it running when ptinspect ends."""

    @property
    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """Return the end of what QEMU itself wrote, else of the guest's console."""
        return _tail(self.directory / "qemu.log") or _tail(self.console)

    def close(self) -> None:
        """End QEMU and remove its directory, unless it is to be kept. Safe to call twice."""
        if not (self.keep and self.alive):
            self.end(remove=not self.keep)

    def end(self, remove: bool = True) -> None:
        """End QEMU, even one to be kept, and remove its directory if `remove`."""
        if self.alive:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
        if self.alive:
            self.process.kill()
            self.process.wait(10)
        if remove:
            self._own.remove()
        self._own.release()


def launch(options: LaunchOptions, *, keep: bool = False) -> Qemu:
    """Start QEMU stopped at reset, with a private directory, and return when its gdbstub listens.

    Without `keep`, QEMU ends with the thread that calls this. Raises TargetError with the command line and
    QEMU's last words if it will not start.
    """
    program = find_program(options.program)
    own = _own_directory()
    words = _command_line(program, options, own.path)
    try:
        with (own.path / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(own.lock,),
                preexec_fn=None if keep else die_with_parent,  # noqa: PLW1509 - calls prctl only
            )
    except OSError as error:
        own.remove()
        raise TargetError(f"cannot start {program}: {error.strerror or error}") from error
    qemu = Qemu(process, words, own, keep=keep, console=options.console)
    with contextlib.ExitStack() as undo:
        undo.callback(qemu.end)
        _wait_until_it_listens(qemu)
        undo.pop_all()
    return qemu


def find_program(chosen: str = "") -> str:
    """Return the path of the QEMU to start: `chosen`, else $PTINSPECT_QEMU, else the one in PATH.

    Raises TargetError.
    """
    named = chosen or os.environ.get(PROGRAM_VARIABLE)
    program = shutil.which(named or PROGRAM)
    if program is None and named:
        raise TargetError(f"no program {named}", f"--qemu or {PROGRAM_VARIABLE} names a {PROGRAM}")
    if program is None:
        raise TargetError(
            f"{PROGRAM} is not installed", "ptinspect setup --yes, or apt install qemu-system-arm"
        )
    return program


def _command_line(program: str, options: LaunchOptions, folder: Path) -> list[str]:
    words = [program, "-machine", options.machine, "-cpu", options.cpu]
    words += ["-smp", str(options.smp), *_memory(options)]
    words += ["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]
    words += ["-serial", f"file:{options.console or folder / 'console.log'}"]
    words += ["-kernel", str(options.kernel)]
    if options.initrd is not None:
        words += ["-initrd", str(options.initrd)]
    words += ["-append", options.append]
    words += ["-S", "-gdb", f"unix:{escape(folder / 'gdb.sock')},server=on,wait=off"]
    return [*words, *options.extra]


def _memory(options: LaunchOptions) -> list[str]:
    """Give the guest its RAM; more than the host has is only reserved, which Linux else refuses to map.

    Source: QEMU's qapi/qom.json, `reserve` of memory-backend-ram (since 6.1).
    """
    words = ["-m", f"{options.memory}M"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    given = any("memory-backend" in word for word in (options.machine, *options.extra))
    if options.memory << 20 <= host or given:
        return words
    backend = f"memory-backend-ram,id={RAM_NAME},size={options.memory}M,reserve=off"
    return [*words, "-object", backend, "-machine", f"memory-backend={RAM_NAME}"]


def escape(path: Path) -> str:
    """Return a path as an option of QEMU takes it: commas are doubled."""
    return str(path).replace(",", ",,")


def _own_directory() -> PrivateDirectory:
    """Make a directory in which a Unix socket can be. Raises TargetError."""
    try:
        own = PrivateDirectory()
    except OSError as error:
        raise TargetError(f"no directory for QEMU's files: {error.strerror or error}") from error
    if len(os.fsencode(own.path / "gdb.sock")) > SOCKET_PATH_LIMIT:
        own.remove()
        raise TargetError(f"{own.path} is too long a path for a Unix socket", "set TMPDIR to another one")
    return own


def _wait_until_it_listens(qemu: Qemu) -> None:
    if not poll(lambda: is_listening(qemu.gdb_socket) or not qemu.alive, START_SECONDS, 0.01):
        raise _will_not_start(qemu, f"opened no gdbstub within {START_SECONDS:g} s")
    if not qemu.alive:
        raise _will_not_start(qemu, f"ended with exit code {qemu.process.returncode}")


def _will_not_start(qemu: Qemu, how: str) -> TargetError:
    from shlex import join

    words = qemu.last_words() or "(it wrote nothing)"
    return TargetError(f"QEMU {how}: {words}", f"it was started as: {join(qemu.command_line)}")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - LAST_WORDS, 0))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
