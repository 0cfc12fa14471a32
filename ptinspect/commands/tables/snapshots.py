"""`snap`, `snaps`, `save`, `load`, `drop`: captures of whole trees, in memory and in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import PART, TABLES, number_argument, switch
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.guest.capturing import snap as capture
from ptinspect.guest.expression import Range
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import range_of
from ptinspect.guest.table_choice import Tables
from ptinspect.output.encode import filled
from ptinspect.output.model import Note, Report, Table, escape, headings
from ptinspect.output.table_heads import (
    RegimeResult,
    RootResult,
    regime_result,
    root_result,
    warnings,
)
from ptinspect.snapshot.fact_names import WRITERS
from ptinspect.text import counted

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Snapshot

SUFFIX = ".npz"
"""Suffix of snapshot files, added where the user gives none."""
NAME = argument("name", type=arguments.snapshot, metavar="NAME", help="the snapshot")
REPLACE = switch("--replace", "replace the snapshot that has this name")


def snapshot_file(text: str) -> Path:
    """Read the name of a snapshot file to be written; it gets its suffix."""
    path = Path(text)
    return path if path.suffix or not path.name else path.with_suffix(SUFFIX)


arguments.completes("file", snapshot_file)


@dataclass(frozen=True)
class SnapshotResult:
    """One snapshot: what was captured, when and where."""

    name: str
    root: RootResult
    regime: RegimeResult
    tables: int
    unreadable: int
    va_range: Sequence[VirtAddr] | None
    """First and last address of the part that was captured; None for the whole half."""
    truncated: str
    complete: bool
    unseen: Sequence[str]
    created: str
    tool_version: str
    where: str
    kernel: str
    source: str
    note: str
    extra: Mapping[str, str]
    cpus: int


@dataclass(frozen=True)
class FileResult(SnapshotResult):
    """A snapshot that a file holds."""

    file: str


@dataclass(frozen=True)
class SnapshotsResult:
    """The snapshots in memory."""

    snapshots: Sequence[SnapshotResult]


@command(
    "snap",
    group="Snapshots",
    summary="Capture the whole tree under the root, with all registers",
    example="snap before",
    arguments=(
        argument("name", written="snapshot", metavar="NAME", help="name to keep it under"),
        PART,
        *TABLES[:3],
        argument("--note", default="", metavar="TEXT", help="free text kept in the snapshot"),
        number_argument(
            "--max-tables",
            1,
            1 << 24,
            "stop after so many tables (default: 16 GiB of them, or what half of the free disk holds)",
        ),
        REPLACE,
    ),
    result=SnapshotResult,
    needs=Needs.STOPPED,
    details="The snapshot stays in memory until `save` writes it to a file. All commands that look at "
    "tables take it with --snap NAME; diff compares two.",
    changes=True,
)
def snap(
    guest: Guest,
    *,
    name: str,
    part: Range | None,
    tables: Tables,
    note: str,
    max_tables: int | None,
    replace: bool,
) -> Report:
    """Capture the tree under the root."""
    made = capture(
        guest,
        name,
        tables,
        va_range=range_of(guest, part, tables.cpu),
        max_tables=max_tables,
        note=note,
        replace=replace,
    )
    return _one(_result(made), made, "captured")


@command(
    "snaps",
    group="Snapshots",
    summary="List the snapshots in memory",
    example="snaps",
    result=SnapshotsResult,
)
def snaps(guest: Guest) -> Report:
    """List the snapshots in memory."""
    found = list(guest.snapshots.values())
    rows = [(s.name, str(len(s.tables)), escape(s.meta.created)[:19], escape(s.meta.where)) for s in found]
    columns = headings("name", ">tables", "created (UTC)", "where")
    table = Table(columns, rows, empty="no snapshots; 'snap NAME' captures one, 'load FILE' reads one")
    return Report(SnapshotsResult([_result(s) for s in found]), (table,))


@command(
    "save",
    group="Snapshots",
    summary="Write a snapshot to a file",
    example="save before before.npz",
    arguments=(
        NAME,
        argument("file", type=snapshot_file, written="file", metavar="FILE", help=f"file to write, {SUFFIX}"),
    ),
    result=FileResult,
    details="The file is compressed and written in one step; load, --snap and diff read it.",
)
def save(guest: Guest, *, name: str, file: Path) -> Report:
    """Write a snapshot to a file."""
    from ptinspect.snapshot.store import save as store

    snapshot = guest.snapshot_or_file(name)
    store(snapshot, file)
    return _one(_stored(snapshot, file), snapshot, f"saved in {escape(str(file))},")


@command(
    "load",
    group="Snapshots",
    summary="Read a snapshot from a file",
    example="load before.npz",
    arguments=(
        argument("file", type=Path, metavar="FILE", help="snapshot file"),
        argument("--as", dest="name", metavar="NAME", help="name to keep it under"),
        REPLACE,
    ),
    result=FileResult,
    changes=True,
)
def load(guest: Guest, *, file: Path, name: str | None, replace: bool) -> Report:
    """Read a snapshot from a file."""
    snapshot = guest.load_snapshot(file, name or file.stem, replace=replace)
    return _one(_stored(snapshot, file), snapshot, "loaded")


@command(
    "drop",
    group="Snapshots",
    summary="Forget a snapshot",
    example="drop before",
    arguments=(argument("names", type=arguments.snapshot, nargs="+", metavar="NAME", help="the snapshots"),),
    result=SnapshotsResult,
    changes=True,
)
def drop(guest: Guest, *, names: list[str]) -> Report:
    """Forget snapshots."""
    guest.drop_snapshots(names)
    return snaps(guest)


def _one(result: SnapshotResult, snapshot: Snapshot, verb: str) -> Report:
    """Report what was done with a snapshot."""
    body = [
        Note(f"{verb} {snapshot.name}: {counted(len(snapshot.tables), 'table')}", "good"),
        Note(f"root pa:{snapshot.root.pa:#x}: {escape(snapshot.root.provenance)}", "dim"),
        *([Note(escape(snapshot.meta.where), "dim")] if snapshot.meta.where else []),
        *warnings(snapshot),
    ]
    return Report(result, body)


def _stored(snapshot: Snapshot, path: Path) -> FileResult:
    return FileResult(**vars(_result(snapshot)), file=str(path))


def _result(snapshot: Snapshot) -> SnapshotResult:
    from ptinspect.snapshot.coverage import unseen

    meta, missing = snapshot.meta, unseen(snapshot)
    return filled(
        SnapshotResult,
        meta,
        name=snapshot.name,
        root=root_result(snapshot.root),
        regime=regime_result(snapshot.regime),
        tables=len(snapshot.tables),
        unreadable=int((~snapshot.tables.readable).sum()),
        va_range=snapshot.va_range,
        truncated=snapshot.truncated,
        complete=not missing,
        unseen=missing,
        extra={name: text for name, text in meta.extra.items() if name != WRITERS},
        cpus=len(snapshot.cpus),
    )
