"""A guest under a debugger: its session, its kernel, its snapshots, and what was found out at this stop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass, field
from ptinspect.dataclass import replace as changed
from ptinspect.errors import GuestError, KernelFileError, PtinspectError, TargetLost, TargetRunning, UserError
from ptinspect.snapshot.fact_names import kernel_offset
from ptinspect.text import escape
from ptinspect.typed import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from pathlib import Path

    from ptinspect.arch.sysregs import CpuState
    from ptinspect.link.gdb.starting import Starting
    from ptinspect.link.qemu.machine import Qemu
    from ptinspect.link.replay import Replay
    from ptinspect.link.session import Session
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.linux.image.module_file import ModuleFiles
    from ptinspect.linux.image.symbols import SymbolTable
    from ptinspect.linux.running.dump_registers import Derived
    from ptinspect.linux.running.guest_view import GuestView
    from ptinspect.snapshot.model import Snapshot
    from ptinspect.stack.kernel_code import KernelCode, Near

PAGE = 4096
"""Bytes of the smallest granule: what is mapped changes at its borders only."""
Found = TypeVar("Found")
"""What is found out at a stop."""


class Watcher(Protocol):
    """Follow a long piece of work."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Show how far it has come; `total` is 0 where that is unknown."""
        ...


class Unwatched:
    """Watch nothing."""

    def progress(self, text: str, done: int, total: int) -> None:
        """Show nothing."""


@dataclass
class Guest:
    """Hold a guest: the session with its stub, its kernel file, the snapshots, the cache of this stop."""

    kernel_path: Path | None = None
    """The kernel file; opened when something needs it."""
    force_kernel: bool = False
    """Use it even if memory holds another kernel's code."""
    module_files: ModuleFiles | None = None
    """Files of modules, which add to the symbols that memory keeps."""
    gdb: str | None = None
    """GDB to use instead of the one that is found."""
    watcher: Watcher = field(default_factory=Unwatched, repr=False)
    """Who follows long pieces of work."""
    session: Session | None = None
    starting: Starting | None = None
    """A GDB that was started for the next attach, or None."""
    qemu: Qemu | None = None
    imported: Derived | None = None
    """What is known of the kernel in the file that `session` is, or None."""
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)
    """What is remembered of this session, by name; it goes with the session."""
    _stop: tuple[object, dict[Hashable, object]] = field(default=(None, {}), repr=False)
    _kernel: KernelImage | None = field(default=None, repr=False)
    _last_view: GuestView | None = field(default=None, repr=False)
    module_symbols: dict[str, SymbolTable] = field(default_factory=dict, repr=False)
    """The symbols of modules that were read so far, by module."""
    _file: tuple[object, Snapshot] | None = field(default=None, repr=False)

    # -- how it stands --------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """How the guest stands: none, stopped, running, dead.

        GDB does not notice that a QEMU has ended while the guest is stopped; one of our own is asked.
        """
        if self.session is None:
            return "none"
        ours = self.qemu is not None and self.session.address == str(self.qemu.gdb_socket)
        if ours and self.qemu is not None and not self.qemu.alive:
            return "dead"
        return self.session.state.name.lower()

    def require(self, name: str, *, stopped: bool) -> Session:
        """Return the session that `name` needs. Raises UserError, TargetLost, or TargetRunning if it runs."""
        if self.session is None:
            raise UserError(
                f"{name}: not attached to a guest",
                "attach ADDR, or launch --kernel FILE; on a snapshot, where it applies: --snap NAME",
            )
        state = self.state
        if state == "dead":
            raise TargetLost(f"{name}: the guest or GDB has ended", "attach or launch again")
        if stopped and state == "running":
            raise TargetRunning(f"{name}: the guest is running", "interrupt stops it")
        return self.session

    @property
    def target(self) -> Session:
        """The attached session, running or stopped. Raises UserError or TargetLost."""
        return self.require("this command", stopped=False)

    @property
    def stopped(self) -> Session:
        """The attached, stopped session. Raises UserError, TargetRunning or TargetLost."""
        return self.require("this command", stopped=True)

    @property
    def has_registers(self) -> bool:
        """Whether the general registers of the stopped guest's CPUs are known: of some files they are not."""
        from ptinspect.link.session import Capability

        return Capability.REGISTERS in self.stopped.capabilities

    @property
    def replay(self) -> Replay | None:
        """The replay of a recorded boot; None where the guest runs for the first time, and without one."""
        found = None if self.session is None else self.session.replay
        return None if found is None or found.mode == "record" else found

    @property
    def stop_token(self) -> object:
        """What tells this stop of the guest from others; None without a guest."""
        return None if self.session is None else self.session.stop_token

    def progress(self, text: str, done: int = 0, total: int = 0) -> None:
        """Tell whoever watches how far a long piece of work has come."""
        self.watcher.progress(text, done, total)

    # -- the cache of a stop --------------------------------------------------------------------

    def once(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """Return what `make` returned for `key` at this stop; it is called once for each stop.

        This is the only cache of what is derived from a stopped guest. Raises what `make` raises.
        """
        token = self.stopped.stop_token
        if self._stop[0] != token:
            self._stop = (token, {})
        found = self._stop[1]
        if key not in found:
            found[key] = make()
        return cast("Found", found[key])

    def forget_stop(self) -> None:
        """Forget what was derived from the guest as it stood; where its kernel lies remains a hint."""
        self._stop = (None, {})

    # -- its kernel -----------------------------------------------------------------------------

    @property
    def kernel(self) -> KernelImage | None:
        """The kernel file, opened at first use; None if none was named. Raises KernelFileError."""
        if self._kernel is None and self.kernel_path is not None:
            from ptinspect.linux.image.image import KernelImage

            self._kernel = KernelImage.open(self.kernel_path)
        return self._kernel

    @property
    def kernel_if_open(self) -> KernelImage | None:
        """The kernel file if something opened it already; never opens it."""
        return self._kernel

    def use_kernel(self, path: Path | None, *, force: bool = False) -> None:
        """Name the kernel file, with `force` even another kernel's; what another one gave is forgotten."""
        if (path, force) != (self.kernel_path, self.force_kernel):
            self.kernel_path, self.force_kernel = path, force
            self._kernel = self._last_view = None
            self.module_symbols = {}
            self.forget_stop()

    def use_modules(self, directory: Path) -> None:
        """Name a directory with files of modules. Raises UserError if there is none."""
        from ptinspect.linux.image.module_file import ModuleFiles

        self.module_files = ModuleFiles(directory)
        self.forget_stop()

    @property
    def view(self) -> GuestView:
        """The kernel that runs, as the chosen CPU has it now. Raises UserError, GuestError, TargetError."""
        return self.once(("view", self.stopped.current_cpu), self._look_at_kernel)

    @property
    def kernel_refused(self) -> KernelFileError | None:
        """Why the kernel file is not used for the stopped guest; None if it is, or nobody can tell yet."""
        if self.state != "stopped" or (self._kernel is None and self.kernel_path is None):
            return None
        try:
            _ = self.view.placement
        except KernelFileError as error:
            return error
        except PtinspectError:  # it is not in memory yet
            pass
        return None

    @property
    def kernel_missing(self) -> str:
        """That there is no kernel file, or one of another kernel; empty if there is a good one."""
        if self.kernel is None:
            return "no kernel file is named (kernel FILE)"
        wrong = self.kernel_refused
        return "" if wrong is None else wrong.message

    def _look_at_kernel(self) -> GuestView:
        from ptinspect.linux.running.guest_view import GuestView

        session = self.stopped
        self._last_view = GuestView(
            session.memory,
            [session.cpu_state(cpu) for cpu in range(session.cpu_count)],
            self.kernel,
            session.ram,
            current=session.current_cpu,
            previous=self._last_view,
            root=None if self.imported is None else self.imported.root_found,
            force=self.force_kernel,
            module_files=self.module_files,
            module_symbols=self.module_symbols,
        )
        return self._last_view

    @property
    def known_offset(self) -> int | None:
        """Run-time minus link-time address of the kernel if it is known already; the guest is not asked."""
        view = self._last_view
        return None if view is None or self.session is None else view.known_offset

    def code(self, state: CpuState | None = None) -> KernelCode:
        """Return what names code of the stopped guest, as a CPU sees it: by default the chosen one."""
        from ptinspect.stack.kernel_code import KernelCode

        current = self.stopped.current_cpu
        return self.once(
            ("code", current, current if state is None else state.cpu),
            lambda: KernelCode(self.view, state, self.kernel),
        )

    def nearest(
        self,
        address: int,
        snapshot: Snapshot | None = None,
        *,
        physical: bool = False,
        state: CpuState | None = None,
    ) -> Near | None:
        """Return the symbol at or below an address, and the distance to it; None if none is known.

        With `physical` it is a physical one; else one of the lower half is as a CPU takes it, the chosen one
        or that of `state`. The file of another kernel than the one that runs, or than that of `snapshot`,
        knows none. One that does not tell where it is linked needs a guest that runs it.
        """
        if self.kernel is None:
            return None
        if snapshot is not None:
            captured, own = snapshot.meta.kernel, escape(self.kernel.banner)
            if not (captured.startswith(own) or own.startswith(captured)):  # either may be short or empty
                return None
            return self._linked(self._link_in(snapshot, self.kernel, address))
        offset = None
        if self.state == "stopped":
            code = self.code(state)
            if physical or code.placed or code.refused or not bit(address, 55):
                return code.nearest(address, physical=physical)
        elif self.session is not None:
            offset = self.known_offset
        if not self.kernel.linked and not offset:
            return None
        return self._linked(address - (offset or 0), as_linked=self.session is not None and offset is None)

    def _link_in(self, snapshot: Snapshot, kernel: KernelImage, address: int) -> int:
        """Return the link-time address of a captured one; one of the lower half is the identity map's."""
        from ptinspect.linux.image.image import FIRST_CODE
        from ptinspect.snapshot.memory import SnapshotMemory
        from ptinspect.tables.walk import walk

        offset = kernel_offset(snapshot.meta.extra)
        if bit(address, 55) or not snapshot.regime.upper:
            return address - offset
        code = (kernel.text_va + offset + FIRST_CODE) & MASK64
        pa = (
            walk(SnapshotMemory(snapshot), code, snapshot.root.pa, snapshot.regime).pa
            if bit(code, 55)
            else None
        )
        return -1 if pa is None else address - pa + FIRST_CODE + kernel.text_va

    def _linked(self, link: int, *, as_linked: bool = False) -> Near | None:
        """Return the symbol at or below a link-time address."""
        from ptinspect.stack.kernel_code import Near

        near = None if self.kernel is None else self.kernel.nearest(link & MASK64)
        return None if near is None else Near(*near, as_linked=as_linked)

    def place(
        self,
        address: int,
        *,
        returns: bool = False,
        snapshot: Snapshot | None = None,
        physical: bool = False,
        state: CpuState | None = None,
    ) -> str:
        """Return a code address with its symbol: `0xffff800010081000 (_stext+0x10)`.

        A physical one is written `pa:0x…`: with `physical`, or while the MMU is off of the CPU that it is
        for (`state`; the chosen one). `returns`: it is a return address, which may lie past the end of the
        function that called. It is one of the guest's, or of a snapshot's.
        """
        back = 4 if returns else 0
        try:
            near = self.nearest(address - back, snapshot, physical=physical, state=state)
        except PtinspectError:
            near = None
        flat = physical or (snapshot is None and self.is_flat(address, state))
        where = f"{'pa:' if flat else ''}{address:#x}"
        return where if near is None else f"{where} ({near.further(back)})"

    def is_flat(self, address: int, state: CpuState | None = None) -> bool:
        """Tell whether a CPU (the chosen one) takes an address as a physical one, since its MMU is off."""
        session = self.session
        if session is None or bit(address, 55) or self.state != "stopped":
            return False
        from ptinspect.arch.sysregs import mmu_on

        if state is None and not self.has_registers:
            return False
        try:
            return mmu_on(state or session.cpu_state(session.current_cpu)) is False
        except PtinspectError:
            return False

    def read(self, address: int, length: int, *, physical: bool) -> tuple[bytes, str]:
        """Return what can be read from an address on, and why it ends early, if it does."""
        parts: list[bytes] = []
        position = address
        read = self.stopped.memory.read if physical else self.view.read_virt
        while position < address + length:
            step = min(PAGE - position % PAGE, address + length - position)
            try:
                parts.append(read(position, step))
            except GuestError as error:
                return b"".join(parts), error.message
            position += step
        return b"".join(parts), ""

    # -- snapshots ------------------------------------------------------------------------------

    def snapshot_or_file(self, name: str) -> Snapshot:
        """Return the snapshot in memory that has this name, else the one in the file of this name.

        Raises UserError if there is neither, SnapshotError if the file is no usable snapshot.
        """
        if name in self.snapshots:
            return self.snapshots[name]
        from pathlib import Path

        from ptinspect.files import need_file

        path = Path(name)
        try:
            stat = path.stat()
        except (OSError, ValueError):  # also of a name that is too long, or has a NUL
            raise self.no_snapshot(name) from None
        need_file(path)
        from ptinspect.snapshot.store import load

        key = (path.resolve(), stat.st_mtime_ns, stat.st_size)
        if self._file is None or self._file[0] != key:
            self._file = (key, load(path))
        return self._file[1]

    def check_name(self, name: str, *, replace: bool = False) -> None:
        """Raise UserError if a snapshot cannot be kept under this name."""
        if not name or "/" in name or not name.isprintable() or name.startswith("-"):
            raise UserError(f"{name!r} is not a name for a snapshot", "use letters, digits, - and _")
        if name in self.snapshots and not replace:
            raise UserError(f"there is a snapshot {name!r} already", "drop it first, or use --replace")

    def load_snapshot(self, path: Path, name: str, *, replace: bool = False) -> Snapshot:
        """Read a snapshot from a file and keep it under a name. Raises UserError, SnapshotError."""
        from ptinspect.snapshot.store import load

        self.check_name(name, replace=replace)
        self.snapshots[name] = changed(load(path), name=name)
        return self.snapshots[name]

    def drop_snapshots(self, names: Sequence[str]) -> None:
        """Forget snapshots: all of these, or none. Raises UserError if there is no such one."""
        for name in names:
            if name not in self.snapshots:
                raise self.no_snapshot(name)
        for name in dict.fromkeys(names):
            del self.snapshots[name]

    def no_snapshot(self, name: str) -> UserError:
        """Return the error that there is no such snapshot; its hint names those that there are."""
        known = ", ".join(self.snapshots)
        return UserError(
            f"no snapshot and no file {name!r}",
            f"in memory: {known}" if known else "none in memory; 'snap NAME' captures one",
        )

    # -- the session ----------------------------------------------------------------------------

    def open_session(
        self, session: Session, qemu: Qemu | None = None, imported: Derived | None = None
    ) -> None:
        """Take over a session that was just attached, and the QEMU or the file that it belongs to."""
        self.session, self.imported, self._last_view = session, imported, None
        self.module_symbols = {}
        self.forget_stop()
        self.kept.clear()
        if qemu is not None:
            self.qemu = qemu

    def take_gdb(self) -> Starting | None:
        """Return the GDB that was started ahead, if there is one; the caller ends it."""
        starting, self.starting = self.starting, None
        return starting

    def end_gdb(self) -> None:
        """End the GDB that was started ahead, if nobody has taken it."""
        starting = self.take_gdb()
        if starting is not None:
            starting.end("it is not needed")

    def drop_session(self) -> None:
        """Close the session, if there is one; QEMU stays."""
        session, self.session = self.session, None
        self.kept.clear()
        self.forget_stop()
        if session is not None:
            session.close()

    @property
    def fate(self) -> str:
        """What becomes of the guest when it is left, in words; empty without one that lives."""
        from ptinspect.link.session import Capability

        session, qemu = self.session, self.qemu
        if session is None or Capability.RUN not in session.capabilities or self.state == "dead":
            return ""
        if qemu is not None and not qemu.keep:
            return "the guest that was launched here is ended"
        return f"the guest is left {'running' if session.was_running else 'stopped'}, as it was found"

    def close(self) -> None:
        """Leave the guest as it was found and end the QEMU that was launched; every step is tried.

        Safe to call twice. Raises TargetError if a guest that lives on could not be left as it was found.
        """
        self.end_gdb()
        session, qemu = self.session, self.qemu
        self.session = self.qemu = None
        self.kept.clear()
        self.forget_stop()
        try:
            if session is not None and (qemu is None or qemu.keep):
                session.detach()
        finally:
            if session is not None:
                session.close()
            if qemu is not None:
                qemu.close()

    def notices(self) -> tuple[str, ...]:
        """Return what happened to the lanes to memory since this was asked last."""
        return () if self.session is None else self.session.notices()

    def look(self) -> str:
        """Notice what somebody else did to the guest meanwhile; return a line about it, or nothing."""
        changed = "" if self.session is None else self.session.look()
        if changed:
            self.kept.clear()
        return changed
