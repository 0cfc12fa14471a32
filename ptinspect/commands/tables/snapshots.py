"""`snap`, `snaps`, `save`, `load`, `drop`: captures of whole trees, in memory and in files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.guest import expression
from ptinspect.guest.capturing import capture_snapshot
from ptinspect.guest.names import range_of
from ptinspect.guest.roots import ROOT_HELP, RULES, RULES_HELP, root_choice
from ptinspect.guest.source import Tables, source
from ptinspect.output.model import Report, escape
from ptinspect.output.views.snapshot import listed, told

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Snapshot

SUFFIX = ".npz"
"""Suffix of snapshot files, added where the user gives none."""


def _configure_snap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name to keep it under")
    parser.add_argument(
        "--range", type=expression.address_range, metavar="RANGE", help=f"only a part; {argtypes.RANGE_HELP}"
    )
    parser.add_argument(
        "--root",
        type=root_choice,
        metavar="ROOT",
        help=ROOT_HELP,
    )
    parser.add_argument("--regime", choices=RULES, help=RULES_HELP)
    add_cpu_option(parser)
    parser.add_argument("--note", default="", metavar="TEXT", help="free text kept in the snapshot")
    parser.add_argument(
        "--max-tables",
        type=argtypes.whole(1, 1 << 24),
        default=262_144,
        metavar="N",
        help="stop after so many tables (default 262144, which is 1 GiB of tables)",
    )
    parser.add_argument("--replace", action="store_true", help="replace the snapshot that has this name")


def _configure_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=argtypes.snapshot, metavar="NAME", help="the snapshot")
    parser.add_argument("file", type=Path, metavar="FILE", help=f"file to write, {SUFFIX}")


def _configure_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="snapshot file")
    parser.add_argument("--as", dest="name", metavar="NAME", help="name to keep it under")
    parser.add_argument("--replace", action="store_true", help="replace the snapshot that has this name")


def _configure_drop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", type=argtypes.snapshot, nargs="+", metavar="NAME", help="the snapshots")


def check_name(ctx: Context, name: str, replace: bool) -> None:
    """Raise UserError if a snapshot cannot be kept under `name`."""
    if not name or "/" in name or not name.isprintable() or name.startswith("-"):
        raise UserError(f"{name!r} is not a name for a snapshot", "use letters, digits, - and _")
    if name in ctx.snapshots and not replace:
        raise UserError(f"there is a snapshot {name!r} already", "drop it first, or use --replace")


def keep(ctx: Context, snapshot: Snapshot) -> Snapshot:
    """Keep a snapshot in memory under its name."""
    ctx.snapshots[snapshot.name] = snapshot
    return snapshot


@command(
    "snap",
    group="Snapshots",
    summary="Capture the whole tree under the root, with all registers",
    example="snap before",
    needs=Needs.STOPPED,
    configure=_configure_snap,
    details="The snapshot stays in memory until `save` writes it to a file. All commands that look at "
    "tables take it with --snap NAME; diff compares two.",
    changes=True,
)
def snap(ctx: Context, args: argparse.Namespace) -> Report:
    """Capture the tree under the root."""
    check_name(ctx, args.name, args.replace)
    args.snap = None
    va_range = range_of(ctx.guest, args.range, getattr(args, "cpu", None), getattr(args, "snap", None))
    found = source(ctx.guest, Tables.of(args), "snap", None if va_range is None else va_range[0])
    snapshot = capture_snapshot(
        ctx.guest, found, args.name, va_range=va_range, max_tables=args.max_tables, note=args.note
    )
    return told(keep(ctx, snapshot), "captured")


@command(
    "snaps",
    group="Snapshots",
    summary="List the snapshots in memory",
    example="snaps",
)
def snaps(ctx: Context, args: argparse.Namespace) -> Report:
    """List the snapshots in memory."""
    return listed(list(ctx.snapshots.values()))


@command(
    "save",
    group="Snapshots",
    summary="Write a snapshot to a file",
    example="save before before.npz",
    configure=_configure_save,
    details="The file is compressed and written in one step; load, --snap and diff read it.",
)
def save(ctx: Context, args: argparse.Namespace) -> Report:
    """Write a snapshot to a file."""
    from ptinspect.snapshot.store import save as store

    snapshot = ctx.snapshot_or_file(args.name)
    path: Path = args.file if args.file.suffix else args.file.with_suffix(SUFFIX)
    store(snapshot, path)
    return told(snapshot, f"saved in {escape(str(path))},", path=path)


@command(
    "load",
    group="Snapshots",
    summary="Read a snapshot from a file",
    example="load before.npz",
    configure=_configure_load,
    changes=True,
)
def load(ctx: Context, args: argparse.Namespace) -> Report:
    """Read a snapshot from a file."""
    from dataclasses import replace

    from ptinspect.snapshot.store import load as read

    name = args.name or args.file.stem
    check_name(ctx, name, args.replace)
    snapshot = replace(read(args.file), name=name)
    return told(keep(ctx, snapshot), "loaded", path=args.file)


@command(
    "drop",
    group="Snapshots",
    summary="Forget a snapshot",
    example="drop before",
    configure=_configure_drop,
    changes=True,
)
def drop(ctx: Context, args: argparse.Namespace) -> Report:
    """Forget snapshots."""
    for name in args.names:
        if name not in ctx.snapshots:
            raise ctx.guest.no_snapshot(name)
    for name in dict.fromkeys(args.names):
        del ctx.snapshots[name]
    return listed(list(ctx.snapshots.values()))
