"""ptinspect from Python: the same guest, snapshots and answers as the commands, as typed values.

    from ptinspect.api import Guest, load

    with Guest.launch(memory=512) as guest:
        run = guest.rewrite()
        before, after = run.snapshots["before"], run.snapshots["after"]
        assert diff(before, after).only_bit11
        print(guest.walk(guest.symbol("swapper_pg_dir")).pa)

A boot that was recorded (`Guest.launch(timeline="boot")`, the command, or a campaign) is replayed:

    with Guest.open_timeline("boot") as guest:
        guest.goto("end")
        for place, known in guest.who("$sp", level="pmd", every=True):
            print(hex(place.pa), [(write.position, write.place, hex(write.after)) for write in known.writes])

Everything raises PtinspectError; its subclasses are in ptinspect.errors. Nothing here prints or asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ptinspect.analysis.check import check
from ptinspect.analysis.diff import Diff, diff
from ptinspect.analysis.findings import Finding, Findings
from ptinspect.analysis.map import MapFilter, Run, runs
from ptinspect.analysis.summary import Summary, summarize
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.commands.stack.guard import MARGIN
from ptinspect.files import need_file
from ptinspect.guest import capturing, opening
from ptinspect.guest import guest as layer
from ptinspect.guest.breakpoints.reachable import set_breakpoint
from ptinspect.guest.expression import address
from ptinspect.guest.names import symbol
from ptinspect.guest.opening import Machine
from ptinspect.guest.recordings import timeline as recordings
from ptinspect.guest.recordings.path_writers import Place, path_histories
from ptinspect.guest.recordings.timeline import Positions
from ptinspect.guest.recordings.way_back import back
from ptinspect.guest.recordings.writers import History, Write
from ptinspect.guest.rewrite.rewrite import Outcome, run_through
from ptinspect.guest.rewrite.state import Judgement, judgement
from ptinspect.guest.roots import source
from ptinspect.guest.run_control import go_on, until
from ptinspect.guest.stacks.kernel_stacks import depth
from ptinspect.guest.stacks.stack_guard import Guarded, guard
from ptinspect.guest.table_choice import Tables, root_choice
from ptinspect.link.session import Session, StopInfo
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.snapshot.memory import SnapshotMemory
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.store import load, save
from ptinspect.stack.depth import Depth
from ptinspect.tables.walk import Walk, walk

__all__ = [
    "Diff",
    "Finding",
    "Findings",
    "Guarded",
    "Guest",
    "History",
    "Judgement",
    "MapFilter",
    "Outcome",
    "Place",
    "Positions",
    "Run",
    "Snapshot",
    "Summary",
    "Walk",
    "Write",
    "check",
    "diff",
    "load",
    "runs",
    "save",
    "summarize",
    "walk_in",
]


def walk_in(snapshot: Snapshot, va: int) -> Walk:
    """Translate an address by a snapshot's tables, step by step."""
    return walk(SnapshotMemory(snapshot), va, snapshot.root.pa, snapshot.regime)


class Guest:
    """A guest under a debugger: attached to, or started here. Use it in a `with` statement."""

    def __init__(self, context: Context) -> None:
        """Use `launch` or `attach`."""
        self.context = context
        """What the commands work on."""

    @classmethod
    def launch(
        cls,
        kernel: str | Path | None = None,
        *,
        symbols: str | Path | None = None,
        modules: str | Path | None = None,
        guest: str | None = None,
        initrd: str | Path | None = None,
        no_initrd: bool = False,
        qemu: str | None = None,
        machine: str | None = None,
        cpu: str | None = None,
        smp: int | None = None,
        memory: int | None = None,
        append: str | None = None,
        append_more: str | None = None,
        keep: bool = False,
        timeline: str | Path | None = None,
        extra: Sequence[str] = (),
    ) -> Self:
        """Start QEMU, stopped at reset. The arguments are the options of the command `launch`.

        `memory` is in MiB; `qemu` is which QEMU, `extra` further words for it. Without `kernel` or `guest` it
        is the default reference guest. Raises UserError, TargetError.
        """
        wanted = Machine(
            kernel=_path(kernel),
            guest=guest,
            symbols=_path(symbols),
            initrd=_path(initrd),
            no_initrd=no_initrd,
            qemu=qemu,
            machine=machine,
            cpu=cpu,
            smp=smp,
            memory=memory,
            append=append,
            append_more=append_more,
            extra=extra,
            keep=keep,
            timeline=_path(timeline),
        )
        return cls._opened(None, modules, lambda held: opening.launch(held, wanted))

    @classmethod
    def attach(
        cls,
        address: str,
        *,
        kernel: str | Path | None = None,
        modules: str | Path | None = None,
        timeout: float = 10.0,
    ) -> Self:
        """Attach to a gdbstub: host:port, :port, or the path of a Unix socket. Raises ConnectError."""
        path = _path(kernel)
        if path is not None:
            need_file(path)
        return cls._opened(path, modules, lambda held: opening.attach(held, address, timeout))

    @classmethod
    def open_timeline(
        cls, directory: str | Path, *, qemu: str | None = None, trust: bool = False, timeout: float = 10.0
    ) -> Self:
        """Replay a recorded boot, from its start. The arguments are the options of `timeline open`.

        Raises UserError if there is no recording, or it is another QEMU's; TargetError.
        """
        where = Path(directory)

        def use(held: layer.Guest) -> object:
            return recordings.open_recording(held, where, qemu, timeout, trust=trust)

        return cls._opened(None, None, use)

    @classmethod
    def _opened(
        cls, kernel: Path | None, modules: str | Path | None, use: Callable[[layer.Guest], object]
    ) -> Self:
        found = cls(Context(build_registry(), layer.Guest(kernel)))
        try:
            if modules is not None:
                found.context.guest.use_modules(Path(modules))
            use(found.context.guest)
        except BaseException:
            found.close()
            raise
        return found

    def __enter__(self) -> Self:
        """Return the guest."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the guest as it was found; one that was launched ends."""
        self.close()

    def close(self) -> None:
        """Leave the guest as it was found; one that was launched ends. Safe to call twice."""
        self.context.close()

    def command(self, line: str) -> Mapping[str, Any]:
        """Run a command line as at the prompt and return its result: what `--json` prints."""
        return self.context.registry.run(self.context, line).result

    @property
    def session(self) -> Session:
        """Run control, registers and memory. Raises UserError, TargetLost."""
        return self.context.guest.target

    @property
    def view(self) -> GuestView:
        """The running kernel at this stop: where it lies, its symbols and types."""
        return self.context.guest.view

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The snapshots in memory, by name."""
        return self.context.guest.snapshots

    def symbol(self, name: str) -> int:
        """Return the run-time address of a symbol. Raises UserError, KernelFileError."""
        return symbol(self.context.guest, name)

    def snap(self, name: str = "snap", *, root: str | None = None, cpu: int | None = None) -> Snapshot:
        """Capture all tables under a root (default: the kernel's own) and all registers.

        The snapshot is also kept in `snapshots`. `root`: as `--root` takes it.
        """
        tables = Tables(root_choice(root) if root else None, cpu=cpu)
        return capturing.snap(self._now(), name, tables)

    def walk(self, va: int, *, cpu: int | None = None) -> Walk:
        """Translate an address by the live tables, step by step."""
        found = source(self.context.guest, Tables(cpu=cpu), va)
        return walk(found.memory, va, found.root.pa, found.regime)

    def stack(self, cpu: int | None = None) -> Depth:
        """Examine the kernel stack of a CPU (default: the one that stopped): bounds, use, frames."""
        return depth(self.context.guest, cpu)

    def rewrite(self, *, percent: int = 50, timeout: float = 180.0) -> Outcome:
        """Run through the kernel's rewrite of its tables, and capture them before, during and after it.

        The captures are kept in `snapshots` too. Raises UserError, GuestError, TargetTimeout.
        """
        return run_through(self._now(), percent=percent, timeout=timeout)

    def verdict(self, *, live: bool = False) -> Judgement:
        """Judge which way the rewrite has gone, from the snapshots, or `live` from the guest as it stands."""
        return judgement(self._now(), live=live)

    def guard(self, seconds: float, *, margin: int = MARGIN) -> Guarded:
        """Run until a stack is about to be lost: `margin` bytes are left, or nothing can be stored on it."""
        return guard(self._now(), margin=margin, seconds=seconds)

    def until(self, *places: str | int, timeout: float = 60.0) -> StopInfo:
        """Run until one of these addresses or symbols is reached. Raises TargetTimeout; it stands then."""
        wanted = [address(place) if isinstance(place, str) else place for place in places]
        return until(self._now(), wanted, timeout).stop

    def stop_at(self, place: str | int, *, temporary: bool = False, condition: str | None = None) -> int:
        """Set a breakpoint and return its number; one at a symbol follows the kernel, wherever that runs.

        Raises UserError if it can never be hit.
        """
        wanted = address(place if isinstance(place, str) else f"{place:#x}")
        return set_breakpoint(self._now(), wanted, temporary=temporary, condition=condition)[0].id

    def go_on(self, timeout: float = 60.0) -> StopInfo:
        """Let the guest run until it stops. Raises TargetTimeout: it runs on."""
        stop = go_on(self._now(), timeout)
        assert stop is not None
        return stop

    def timeline(self) -> Positions:
        """Return where a recorded guest stands, and which positions are known. Raises UserError."""
        return recordings.positions(self._now())

    def goto(self, place: int | str, timeout: float = 300.0) -> StopInfo:
        """Go to a position of a replay: instructions executed, start, end, kpti-entry, kpti-end.

        Breakpoints do not stop it on the way. Raises UserError, TargetTimeout.
        """
        return recordings.go_to(self._now(), place, timeout)

    def go_back(self, timeout: float = 300.0) -> StopInfo:
        """Run a replay backwards to the last breakpoint or watchpoint before, or to its start."""
        return back(self._now(), timeout)

    def step_back(self, count: int = 1) -> StopInfo:
        """Go back some instructions of a replay. Raises UserError at its start."""
        return recordings.step_back(self._now(), count)

    def who(
        self, place: str | int, *, level: int | str | None = None, every: bool = False, timeout: float = 300.0
    ) -> list[tuple[Place, History]]:
        """Return who wrote the descriptors on an address' path last before this position, or `every` write.

        `place`: as `who` takes it, pa:0x… too; a number is a virtual address. `level`: only that one. Raises
        UserError outside a replay, TargetTimeout; the guest stands where it stood then.
        """
        wanted = address(place if isinstance(place, str) else f"{place:#x}")
        return path_histories(self._now(), wanted, Tables(), level, every=every, seconds=timeout)

    def _now(self) -> layer.Guest:
        """Return the guest; what was read before somebody else changed it is forgotten."""
        guest = self.context.guest
        if guest.state == "stopped":
            guest.look()
        return guest


def _path(name: str | Path | None) -> Path | None:
    return Path(name) if name else None
