"""Make snapshots of the guest, and keep the latest capture of a stop for the commands that follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ptinspect import __version__
from ptinspect.arch.bits import MASK64, VirtAddr
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import replace
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.guest.guest import Guest
from ptinspect.guest.roots import Source, source
from ptinspect.guest.table_choice import Tables
from ptinspect.snapshot.fact_names import KERNEL_OFFSET, POSITION, RECORDING
from ptinspect.text import escape

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Meta, Snapshot

FEW = 4
"""Tables that cannot be read and prove nothing yet."""


def capture_snapshot(
    guest: Guest,
    source: Source,
    name: str,
    *,
    va_range: tuple[int, int] | None = None,
    max_level: int = LEVEL_LAST,
    max_tables: int | None = None,
    note: str = "",
    extra: Mapping[str, str] | None = None,
) -> Snapshot:
    """Capture the tables under a root down to `max_level`, the whole half or `va_range` (ends included).

    `extra` adds facts to the snapshot's own. Raises TargetError if the link fails; tables that cannot
    be read are marked in the snapshot. Raises GuestError if that is most of them: what was taken for a
    root is none, and other bytes were taken for descriptors.
    """
    from ptinspect.snapshot.model import Snapshot
    from ptinspect.tables.capture import capture

    wanted = None if va_range is None else (VirtAddr(va_range[0]), VirtAddr(va_range[1]))

    def progress(done: int, total: int) -> None:
        guest.progress("reading tables", done, total)

    tables, truncated = capture(
        source.memory,
        source.root.pa,
        source.regime,
        va_range=wanted,
        max_level=max_level,
        max_tables=max_tables,
        progress=progress,
    )
    if source.snapshot is not None:
        old = source.snapshot
        return Snapshot(
            name, source.root, source.regime, tables, old.cpus, old.ram, old.meta, wanted, truncated
        )
    session = guest.stopped
    _refuse_no_table(guest, source, len(tables), len(tables) - int(tables.readable.sum()))
    cpus = tuple(map(session.cpu_state, range(session.cpu_count if guest.has_registers else 0)))
    meta = _meta(guest, source, note, {**source.facts, **(extra or {})})
    return Snapshot(
        name, source.root, source.regime, tables, cpus, tuple(session.ram), meta, wanted, truncated
    )


def snap(
    guest: Guest,
    name: str,
    tables: Tables,
    *,
    va_range: tuple[int, int] | None = None,
    max_tables: int | None = None,
    note: str = "",
    replace: bool = False,
) -> Snapshot:
    """Capture the tables under a root and keep them in `guest.snapshots`.

    Raises UserError if there is a snapshot of this name and it is not to be replaced; see capture_snapshot.
    """
    guest.check_name(name, replace=replace)
    found = source(guest, tables, None if va_range is None else va_range[0])
    made = capture_snapshot(guest, found, name, va_range=va_range, max_tables=max_tables, note=note)
    guest.snapshots[name] = made
    return made


def snapshot_of(guest: Guest, tables: Tables) -> Snapshot:
    """Return the snapshot that `tables` names, or a capture of the guest."""
    return capture_of(guest, source(guest, tables))


def capture_of(
    guest: Guest, where: Source, va_range: tuple[int, int] | None = None, *, max_level: int = LEVEL_LAST
) -> Snapshot:
    """Return the snapshot that is the source, or a capture of it.

    A whole capture of the guest is kept until it runs; a part is read each time.
    """
    if where.snapshot is not None and where.root is where.snapshot.root:
        return where.snapshot

    def read() -> Snapshot:
        return capture_snapshot(guest, where, f"({where.label})", va_range=va_range, max_level=max_level)

    if where.snapshot is not None or va_range is not None or max_level != LEVEL_LAST:
        return read()
    known_by = ("capture", where.root.pa, where.regime, frozenset(where.facts.items()))
    found = guest.once(known_by, read)
    if (found.root, found.name) == (where.root, f"({where.label})"):
        return found
    return replace(found, root=where.root, name=f"({where.label})")  # the same tables, chosen otherwise


def _refuse_no_table(guest: Guest, source: Source, count: int, bad: int) -> None:
    """Raise GuestError if most tables cannot be read, unless the root is known to be the kernel's own.

    That one may be damaged, which is what somebody wants to look at.
    """
    if bad < FEW or 2 * bad <= count:
        return
    try:
        view = guest.view
        if view.is_kernels and view.swapper().pa == source.root.pa:
            return
    except PtinspectError:
        pass
    raise GuestError(
        f"pa:{source.root.pa:#x} ({source.root.provenance}) is no root table: {bad} of the {count} "
        "tables that it leads to are not in memory",
        "regime shows what the registers hold; walk ADDR shows one way through these tables",
    )


def naming_facts(guest: Guest) -> dict[str, str]:
    """Return what gives names to the addresses of the guest at this stop; found once for each stop."""
    from ptinspect.linux.running.guest_layout import facts

    return dict(guest.once("names of addresses", lambda: facts(guest.view)))


def _recorded(guest: Guest) -> dict[str, str]:
    """Return where the stopped guest stands in a recorded boot, if it is in one."""
    from ptinspect.guest import opening

    replay, recording = guest.stopped.replay, guest.kept.get(opening.RECORDING)
    if replay is None:
        return {}
    named = {RECORDING: recording.id} if recording is not None and recording.id else {}
    return {POSITION: str(replay.position), **named}


def _meta(guest: Guest, source: Source, note: str, more: Mapping[str, str]) -> Meta:
    from datetime import UTC, datetime

    from ptinspect.snapshot.model import Meta

    session = guest.stopped
    state = session.cpu_state(session.current_cpu)
    extra = {**_recorded(guest), **more}
    banner = ""
    try:
        view = guest.view
        banner = view.banner()
        extra |= {**naming_facts(guest), **extra}
        if guest.kernel is not None:
            extra[KERNEL_OFFSET] = f"{view.kaslr_offset & MASK64:#x}"
    except (GuestError, KernelFileError):
        pass  # a guest without a recognisable kernel is captured all the same
    where = f"cpu {state.cpu} at {guest.place(state.pc, state=state)}"
    if not guest.has_registers:
        where = f"{session.address}, registers unknown"
    if not banner and guest.imported is not None:
        banner = guest.imported.banner
    return Meta(
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        tool_version=__version__,
        where=where,
        kernel=escape(banner),
        source=source.memory.label,
        note=note,
        extra=extra,
    )
