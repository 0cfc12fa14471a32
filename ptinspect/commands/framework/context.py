"""What every command can use: the session, QEMU, the kernel file, snapshots and the user's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptinspect.arch.bits import MASK64, bit
from ptinspect.commands.framework.options import Options
from ptinspect.commands.framework.registry import Needs, Registry
from ptinspect.errors import KernelFileError, PtinspectError, TargetLost, TargetRunning, UserError
from ptinspect.output.model import Report, escape
from ptinspect.script.record import Record
from ptinspect.snapshot.fact_names import kernel_offset

if TYPE_CHECKING:
    from ptinspect.link.qemu.machine import Qemu
    from ptinspect.link.session import Session
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.linux.running.dump_registers import Derived
    from ptinspect.linux.running.guest_view import GuestView
    from ptinspect.snapshot.model import Snapshot


class Interaction(Protocol):
    """Talk with the user while a command runs."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Say how far a long piece of work has come; `total` 0 where it is unknown."""
        ...

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question; False where nobody can answer."""
        ...

    def aside(self, line: str) -> None:
        """Show a line of the guest's console, from any thread."""
        ...

    def step(self, line: str, report: Report) -> None:
        """Show a command that runs as part of another one, and its answer."""
        ...


class Silent:
    """An interaction with nobody: no progress is shown, every question is answered with no."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Show nothing."""

    def confirm(self, question: str) -> bool:
        """Answer no."""
        return False

    def aside(self, line: str) -> None:
        """Show nothing."""

    def step(self, line: str, report: Report) -> None:
        """Show nothing."""


class Follower(Protocol):
    """Show the guest's console as it comes, beside the prompt."""

    def stop(self) -> None:
        """End it."""
        ...


@dataclass
class Settings:
    """Hold what the user chose for the whole run."""

    kernel: Path | None = None
    """Kernel file given with `--kernel`; opened when something needs it."""
    force_kernel: bool = False
    """Use it even if memory holds another kernel's code."""
    gdb: str | None = None
    """GDB to use instead of the one that is found."""
    debug: bool = False
    """Show the traceback of a bug in ptinspect."""


@dataclass
class Context:
    """Hold the state that commands share; closed at the end of the process."""

    registry: Registry[Context]
    """The commands, for `help` and for commands that run others."""
    settings: Settings = field(default_factory=Settings)
    """What the user chose."""
    interaction: Interaction = field(default_factory=Silent)
    """Progress and questions."""
    interactive: bool = False
    """True in the REPL."""
    json: bool = False
    """True where answers are printed as JSON."""
    options: Options = field(default_factory=Options)
    """What the user chose with `set` and in the configuration file."""
    session: Session | None = None
    """The attached gdbstub, or None."""
    imported: Derived | None = None
    """What is known of the kernel in the file that `session` is, or None."""
    qemu: Qemu | None = None
    """The QEMU that `launch` started, or None."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    """Snapshots in memory by name."""
    follower: Follower | None = field(default=None, repr=False)
    """What shows the guest's console beside the prompt, or None."""
    latest: tuple[object, Snapshot] | None = field(default=None, repr=False)
    """The last whole capture that a command made for itself, and what it is valid for."""
    past: list[str] = field(default_factory=list)
    """The lines typed at the prompt so far, oldest first; those of earlier runs too."""
    record: Record = field(default_factory=Record)
    """What was run, and the script that `record` makes of it."""
    leave: bool = False
    """Set by `quit`: no further command is read."""
    memo: dict[str, object] = field(default_factory=dict)
    """What commands remember of this session for each other; goes with it."""
    _kernel: KernelImage | None = field(default=None, repr=False)
    _view: tuple[int, GuestView] | None = field(default=None, repr=False)
    _older: GuestView | None = field(default=None, repr=False)
    _file: tuple[object, Snapshot] | None = field(default=None, repr=False)

    def check(self, needs: Needs, name: str) -> None:
        """Raise UserError, TargetRunning or TargetLost unless `needs` of the command `name` is met."""
        if needs is Needs.NOTHING:
            return
        if self.session is None:
            raise UserError(
                f"{name}: not attached to a guest",
                "attach ADDR, or launch --kernel FILE; on a snapshot, where it applies: --snap NAME",
            )
        state = self.state
        if state == "dead":
            raise TargetLost(f"{name}: the guest or GDB has gone", "attach or launch again")
        if needs is Needs.STOPPED and state == "running":
            raise TargetRunning(f"{name}: the guest is running", "interrupt stops it")

    @property
    def state(self) -> str:
        """How the guest stands: none, stopped, running, dead.

        GDB says nothing about a QEMU that ends while the guest is stopped; one of our own is asked.
        """
        if self.session is None:
            return "none"
        ours = self.qemu is not None and self.session.address == str(self.qemu.gdb_socket)
        if ours and self.qemu is not None and not self.qemu.alive:
            return "dead"
        return self.session.state.name.lower()

    @property
    def target(self) -> Session:
        """The attached session, running or stopped. Raises UserError or TargetLost."""
        self.check(Needs.TARGET, "this command")
        assert self.session is not None
        return self.session

    @property
    def stopped(self) -> Session:
        """The attached, stopped session. Raises UserError, TargetRunning or TargetLost."""
        self.check(Needs.STOPPED, "this command")
        assert self.session is not None
        return self.session

    def rows(self, own: int) -> int:
        """Return how many rows a list shows where the user does not say: `own`, or the option `rows`."""
        return int(self.options.number("rows")) or own

    def progress(self, text: str, done: int, total: int) -> None:
        """Pass progress of a long piece of work on to whoever watches."""
        self.interaction.progress(text, done, total)

    def confirm(self, question: str) -> bool:
        """Ask the user a yes-or-no question; False where nobody can answer."""
        return self.interaction.confirm(question)

    def step(self, line: str, report: Report) -> None:
        """Show a command that runs as part of this one, and its answer."""
        self.interaction.step(line, report)

    @property
    def kernel(self) -> KernelImage | None:
        """The kernel file, opened at first use; None if none was named. Raises KernelFileError."""
        if self._kernel is None and self.settings.kernel is not None:
            from ptinspect.linux.image.image import KernelImage

            self._kernel = KernelImage.open(self.settings.kernel)
        return self._kernel

    @property
    def kernel_if_open(self) -> KernelImage | None:
        """The kernel file if something opened it already; never opens it."""
        return self._kernel

    @property
    def known_offset(self) -> int | None:
        """Run-time minus link-time address of the kernel if it is known already; the guest is not asked."""
        view = self._older if self._view is None else self._view[1]
        return None if view is None or self.session is None else view.known_offset

    def view(self) -> GuestView:
        """Return the view of the running kernel at this stop. Raises UserError, GuestError, TargetError."""
        session = self.stopped
        if self._view is None or self._view[0] != session.stop_token:
            from ptinspect.linux.running.guest_view import GuestView

            states = [session.cpu_state(cpu) for cpu in range(session.cpu_count)]
            older = self._older if self._view is None else self._view[1]
            view = GuestView(
                session.memory,
                states,
                self.kernel,
                session.ram,
                current=session.current_cpu,
                previous=older,
                root=None if self.imported is None else self.imported.root_found,
                force=self.settings.force_kernel,
            )
            self._view = (session.stop_token, view)
        return self._view[1]

    def nearest(self, address: int, snapshot: Snapshot | None = None) -> tuple[str, int] | None:
        """Return the symbol at or below a code address and the distance to it; None if none is known.

        A physical address stands for the code that the identity map runs there. The file of another kernel
        than the one that runs, or than that of `snapshot`, knows none.
        """
        if self.kernel is None:
            return None
        try:
            if snapshot is None:
                offset = self._offset(physical=not bit(address, 55))
            else:
                said, own = snapshot.meta.kernel, escape(self.kernel.banner)
                if not (said.startswith(own) or own.startswith(said)):  # either may be short or empty
                    return None
                offset = -kernel_offset(snapshot.meta.extra)
        except KernelFileError:
            return None
        return self.kernel.nearest((address + offset) & MASK64)

    def _offset(self, *, physical: bool) -> int:
        """Return what to add to a run-time address to get the link-time one; 0 where nobody knows.

        Raises KernelFileError if the file is another kernel's than the guest's, and where nobody knows if it
        does not tell where it is linked: its addresses are offsets then.
        """
        try:
            view, kernel = self.view(), self.kernel
            if physical and kernel is not None:
                return kernel.text_va - view.pa_of_link(kernel.text_va)
            return -view.kaslr_offset
        except KernelFileError:
            raise
        except PtinspectError as error:
            if self.kernel is not None and not self.kernel.linked:
                raise KernelFileError(f"{self.kernel.path.name} does not tell where it runs") from error
            return 0

    def place(self, address: int, *, returns: bool = False, snapshot: Snapshot | None = None) -> str:
        """Return a code address with its symbol: `0xffff800010081000 (_stext+0x0)`.

        `returns`: it is a return address, which may lie past the end of the function that called. It is one
        of the guest's, or of a snapshot's.
        """
        back = 4 if returns else 0
        try:
            near = self.nearest(address - back, snapshot)
        except PtinspectError:
            near = None
        return f"{address:#x}" if near is None else f"{address:#x} ({near[0]}+{near[1] + back:#x})"

    def code_at(self, address: int, length: int) -> bytes:
        """Return code as it stands in the guest, at a virtual or an identity-mapped address."""
        if bit(address, 55):
            return self.view().read_virt(address, length)
        return self.stopped.memory.read(address, length)

    def snapshot_or_file(self, name: str) -> Snapshot:
        """Return the snapshot in memory that has this name, else the one in the file of this name.

        Raises UserError if there is neither, SnapshotError if the file is no usable snapshot.
        """
        if name in self.snapshots:
            return self.snapshots[name]
        path = Path(name)
        if not path.is_file():
            raise self.no_snapshot(name)
        from ptinspect.snapshot.store import load

        stat = path.stat()
        key = (path.resolve(), stat.st_mtime_ns, stat.st_size)
        if self._file is None or self._file[0] != key:
            self._file = (key, load(path))
        return self._file[1]

    def no_snapshot(self, name: str) -> UserError:
        """Return the error that says that there is no such snapshot, and which there are."""
        known = ", ".join(self.snapshots)
        return UserError(
            f"no snapshot and no file {name!r}",
            f"in memory: {known}" if known else "none in memory; 'snap NAME' captures one",
        )

    def use_kernel(self, path: Path | None, *, force: bool = False) -> None:
        """Name the kernel file, with `force` even another kernel's; what another one told is forgotten."""
        if (path, force) != (self.settings.kernel, self.settings.force_kernel):
            self.settings.kernel, self.settings.force_kernel = path, force
            self._kernel = self._view = self._older = None

    def open_session(
        self, session: Session, qemu: Qemu | None = None, imported: Derived | None = None
    ) -> None:
        """Take over a session that was just attached, and the QEMU or the file that it belongs to."""
        self.session, self.imported, self._view, self._older = session, imported, None, None
        self.memo.clear()
        if qemu is not None:
            self.qemu = qemu

    def close(self) -> None:
        """Detach and end the QEMU that was launched; every step is tried. Safe to call twice.

        Raises TargetError if a guest that lives on could not be left as it was found by GDB.
        """
        self.record.end()
        session, qemu = self.session, self.qemu
        follower, self.follower = self.follower, None
        if follower is not None:
            follower.stop()
        self.session, self.qemu, self._view = None, None, None
        self.memo.clear()
        try:
            if session is not None and (qemu is None or qemu.keep):
                session.detach()
        finally:
            if session is not None:
                session.close()
            if qemu is not None:
                qemu.close()

    def drop_session(self) -> None:
        """Close the session, if there is one; QEMU stays."""
        session, self.session = self.session, None
        self.memo.clear()
        self.forget_stop()
        if session is not None:
            session.close()

    @property
    def stop_token(self) -> object:
        """What tells this stop of the guest from others; None without a guest."""
        return None if self.session is None else self.session.stop_token

    def notices(self) -> tuple[str, ...]:
        """Return what happened to the lanes to memory since it was asked last."""
        return () if self.session is None else self.session.notices()

    def look(self) -> str:
        """Notice what somebody else did to the guest meanwhile; return what to say about it."""
        said = "" if self.session is None else self.session.look()
        if said:
            self.forget_stop()
            self.memo.clear()
        return said

    def forget_stop(self) -> None:
        """Forget what was derived from the guest as it stood; where its kernel lies remains a hint."""
        if self._view is not None:
            self._older, self._view = self._view[1], None
