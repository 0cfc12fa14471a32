"""What every command can use: the session, QEMU, the kernel file, snapshots and the user's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptinspect.commands.registry import Needs, Registry
from ptinspect.errors import TargetLost, TargetRunning, UserError

if TYPE_CHECKING:
    from ptinspect.linux.image import KernelImage
    from ptinspect.linux.view import GuestView
    from ptinspect.snapshot.model import Snapshot
    from ptinspect.target.qemu import Qemu
    from ptinspect.target.session import Session, StopInfo


class Interaction(Protocol):
    """Talk with the user while a command runs."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Say how far a long piece of work has come; `total` 0 where it is unknown."""
        ...

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question; False where nobody can answer."""
        ...


class Silent:
    """An interaction with nobody: no progress is shown, every question is answered with no."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Show nothing."""

    def confirm(self, question: str) -> bool:
        """Answer no."""
        return False


@dataclass
class Settings:
    """Hold what the user chose for the whole run."""

    kernel: Path | None = None
    """Kernel file given with `--kernel`; opened when something needs it."""
    gdb: str | None = None
    """GDB to use instead of the one that is found."""
    timeout: float = 10.0
    """Seconds that attaching may take."""
    debug: bool = False
    """Show the traceback of a bug in ptinspect."""


@dataclass
class Context:
    """Hold the state that commands share; closed at the end of the process."""

    registry: Registry
    """The commands, for `help` and for commands that run others."""
    settings: Settings = field(default_factory=Settings)
    """What the user chose."""
    interaction: Interaction = field(default_factory=Silent)
    """Progress and questions."""
    interactive: bool = False
    """True in the REPL."""
    json: bool = False
    """True where answers are printed as JSON."""
    session: Session | None = None
    """The attached gdbstub, or None."""
    qemu: Qemu | None = None
    """The QEMU that `launch` started, or None."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    """Snapshots in memory by name."""
    leave: bool = False
    """Set by `quit`: no further command is read."""
    _kernel: KernelImage | None = field(default=None, repr=False)
    _view: tuple[int, GuestView] | None = field(default=None, repr=False)

    def check(self, needs: Needs, name: str) -> None:
        """Raise UserError, TargetRunning or TargetLost unless `needs` of the command `name` is met."""
        if needs is Needs.NOTHING:
            return
        if self.session is None:
            raise UserError(
                f"{name}: not attached to a guest",
                "attach ADDR, or launch --kernel FILE; on a snapshot, where it applies: --snap NAME",
            )
        from ptinspect.target.session import RunState

        if self.session.state is RunState.DEAD:
            raise TargetLost(f"{name}: the guest or GDB has gone", "detach, then attach or launch again")
        if needs is Needs.STOPPED and self.session.state is RunState.RUNNING:
            raise TargetRunning(f"{name}: the guest is running", "interrupt stops it")

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

    def progress(self, text: str, done: int, total: int) -> None:
        """Pass progress of a long piece of work on to whoever watches."""
        self.interaction.progress(text, done, total)

    def confirm(self, question: str) -> bool:
        """Ask the user a yes-or-no question; False where nobody can answer."""
        return self.interaction.confirm(question)

    @property
    def kernel(self) -> KernelImage | None:
        """The kernel file, opened at first use; None if none was named. Raises KernelFileError."""
        if self._kernel is None and self.settings.kernel is not None:
            from ptinspect.linux.image import KernelImage

            self._kernel = KernelImage.open(self.settings.kernel)
        return self._kernel

    def use_kernel(self, path: Path | None) -> None:
        """Name the kernel file; what was known from another one is forgotten."""
        if path != self.settings.kernel:
            self.settings.kernel = path
            self._kernel = None
            self._view = None

    def open_session(self, session: Session, qemu: Qemu | None = None) -> None:
        """Take over a session that was just attached, and the QEMU it belongs to."""
        self.session, self._view = session, None
        if qemu is not None:
            self.qemu = qemu

    def close(self) -> None:
        """Detach and end the QEMU that was launched; every step is tried. Safe to call twice."""
        session, qemu = self.session, self.qemu
        self.session, self.qemu, self._view = None, None, None
        try:
            if session is not None:
                session.close()
        finally:
            if qemu is not None:
                qemu.close()

    def on_stop(self, act: Callable[[Session], StopInfo]) -> StopInfo:
        """Run `act` on the session, which resumes and stops the guest; nothing cached survives it."""
        self._view = None
        return act(self.target)
