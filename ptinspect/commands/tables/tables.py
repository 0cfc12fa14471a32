"""`map`, `summary`, `find`: what the tables say as a whole, of the guest or of a snapshot."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ptinspect.arch.levels import level_number
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_root_options
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, UserError
from ptinspect.guest import expression
from ptinspect.guest.capturing import snapshot_of
from ptinspect.guest.names import names, range_of
from ptinspect.guest.regions import names_of
from ptinspect.guest.source import Tables, source
from ptinspect.output.model import Report

if TYPE_CHECKING:
    from ptinspect.analysis.map import MapFilter
    from ptinspect.snapshot.model import Snapshot

SHOWN = 200
"""Runs shown unless --limit says otherwise."""


def _configure_map(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("range", nargs="?", type=expression.address_range, metavar="RANGE", help=argtypes.RANGE_HELP)
    add("--level", "-l", action="append", type=argtypes.level, metavar="L", help="only leaves of this level")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--ng", action="store_true", default=None, help="only leaves with nG")
    group.add_argument("--global", dest="ng", action="store_false", help="only leaves without nG")
    for who in ("el1", "el0"):
        level = who.upper()
        add(f"--{who}", type=_letters, default="", metavar="RWX", help=f"what {level} must be allowed")
        add(
            f"--{who}-not",
            type=_letters,
            default="",
            metavar="RWX",
            help=f"what {level} must not be allowed",
        )
    add("--type", default="", metavar="TYPE", help="part of the memory type: device, normal, nc")
    add("--cont", action="store_true", default=None, help="only leaves with the contiguous hint")
    add("--pa", type=expression.address_range, metavar="RANGE", help="only leaves that lead into this range")
    add("--bar", action="store_true", help="draw the tables entry by entry; RANGE: those on its way")
    add("--mixed", action="store_true", help="contiguous groups whose entries differ in AF or dirty")
    add("--against", type=argtypes.snapshot, metavar="SNAP", help="with --bar: what changed since SNAP")
    add("--merge", action="store_true", help="join leaves whose physical addresses do not follow each other")
    add(
        "--limit",
        type=argtypes.whole(1, 1 << 24),
        metavar="N",
        help=f"list at most N runs (default {SHOWN} on the screen, 100000 in JSON)",
    )
    add_root_options(parser)


def _configure_find(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=expression.address,
        metavar="PA",
        help="physical address; a kernel address or symbol is translated first",
    )
    parser.add_argument(
        "--limit", type=argtypes.whole(1, 100_000), default=1000, metavar="N", help="at most N hits"
    )
    add_root_options(parser)


def _letters(text: str) -> str:
    if set(text.lower()) - set("rwx"):
        raise UserError(f"{text!r}: use letters of rwx")
    return text.lower()


@command(
    "map",
    group="Tables",
    summary="List what is mapped, as runs of equal attributes",
    example="map --level pmd --ng",
    configure=_configure_map,
    details="Only the tables of RANGE and of the chosen levels are read. --bar draws them in characters, "
    "one for each entry; --against shows what changed. `all` after a physical address: every leaf leads "
    "there; `…`: the others lead elsewhere. --mixed lists contiguous groups whose entries "
    "differ in AF, or in whether they are dirty: the CPU may set these one by one.",
)
def show_map(ctx: Context, args: argparse.Namespace) -> Report:
    """List runs of leaves."""
    from ptinspect.analysis.map import MAX_RUNS, MapFilter, runs
    from ptinspect.output.views.tables import map_report

    va_range = range_of(ctx.guest, args.range, getattr(args, "cpu", None), getattr(args, "snap", None))
    if args.bar:
        return bars(ctx, args, None if va_range is None else va_range[0])
    wanted = MapFilter(
        ng=args.ng,
        el1=args.el1,
        el1_not=args.el1_not,
        el0=args.el0,
        el0_not=args.el0_not,
        memory_type=args.type,
        contiguous=args.cont,
        va_range=va_range,
        pa_range=range_of(ctx.guest, args.pa, getattr(args, "cpu", None), getattr(args, "snap", None)),
        merge_pa=args.merge,
        max_runs=args.limit or MAX_RUNS,
    )
    snapshot, wanted = _with_levels(ctx, args, wanted)
    if args.mixed:
        return _mixed(ctx, args, snapshot, wanted)
    namer, layout = names_of(snapshot)
    found = runs(snapshot, wanted, namer, layout.edges)
    return map_report(snapshot, found, found.truncated, args.limit or ctx.rows(SHOWN))


def _mixed(ctx: Context, args: argparse.Namespace, snapshot: Snapshot, wanted: MapFilter) -> Report:
    """List contiguous groups whose entries differ in AF or dirty."""
    from itertools import islice

    from ptinspect.analysis.contiguous import mixed_groups
    from ptinspect.output.views.tables import groups_report

    found = list(islice(mixed_groups(snapshot, wanted.va_range, wanted.levels), wanted.max_runs + 1))
    shown = args.limit or ctx.rows(SHOWN)
    return groups_report(snapshot, found[: wanted.max_runs], names_of(snapshot)[0], shown)


def bars(ctx: Context, args: argparse.Namespace, va: int | None) -> Report:
    """Draw tables in characters: all levels at once, and the tables on the way to an address."""
    from ptinspect.analysis.atlas import atlas, changes
    from ptinspect.output.views.bars import bars_report

    snapshot = snapshot_of(ctx.guest, Tables.of(args), "map")
    before = None if args.against is None else ctx.snapshot_or_file(args.against)
    shown = atlas(snapshot) if before is None else changes(before, snapshot)
    return bars_report(snapshot, shown, va, before)


def _with_levels(ctx: Context, args: argparse.Namespace, wanted: MapFilter) -> tuple[Snapshot, MapFilter]:
    """Return the snapshot to list, read no deeper than needed, and the filter with levels as numbers."""
    from dataclasses import replace

    first = None if wanted.va_range is None else wanted.va_range[0]
    start = source(ctx.guest, Tables.of(args), "map", first).regime.start_level
    levels = frozenset(level_number(level, start) for level in args.level or ())
    if levels:
        wanted = replace(wanted, levels=levels)
    deepest = max(levels) if levels else 3
    return snapshot_of(ctx.guest, Tables.of(args), "map", wanted.va_range, max_level=deepest), wanted


@command(
    "summary",
    group="Tables",
    summary="Count tables, marks, leaves and nG, level by level",
    example="summary",
    configure=add_root_options,
    expectable=True,
)
def summary(ctx: Context, args: argparse.Namespace) -> Report:
    """Count what the tables hold."""
    from ptinspect.analysis.summary import summarize
    from ptinspect.output.views.tables import summary_report

    snapshot = snapshot_of(ctx.guest, Tables.of(args), "summary")
    return summary_report(snapshot, summarize(snapshot))


@command(
    "find",
    group="Tables",
    summary="List the virtual addresses that map a physical one",
    example="find pa:0x41475000",
    configure=_configure_find,
    details="Also says so if the address lies in a translation table, and what that entry translates.",
)
def find(ctx: Context, args: argparse.Namespace) -> Report:
    """Find what maps a physical address."""
    from ptinspect.analysis.find import find_pa
    from ptinspect.output.views.tables import find_report

    pa = _physical(ctx, args)
    snapshot = snapshot_of(ctx.guest, Tables.of(args), "find")
    found = find_pa(snapshot, pa, max_hits=args.limit)
    return find_report(snapshot, pa, found, found.truncated, names_of(snapshot)[0])


def _physical(ctx: Context, args: argparse.Namespace) -> int:
    """Return the physical address that is asked for; a kernel address is translated first."""
    value: int = args.address.value(names(ctx.guest, getattr(args, "cpu", None), args.snap))
    if args.address.physical or not value >> 55 & 1:
        return value
    from ptinspect.tables.walk import walk

    where = source(ctx.guest, Tables.of(args), "find", value)
    found = walk(where.memory, value, where.root.pa, where.regime)
    if found.pa is None:
        raise GuestError(f"{value:#x} is not mapped: {found.reason}", f"walk {value:#x} shows why")
    return found.pa
