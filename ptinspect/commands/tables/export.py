"""`export`: a snapshot's descriptors in files that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.arch.levels import level_number
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables.kerneltext import lines_of
from ptinspect.errors import UserError
from ptinspect.files import replacing
from ptinspect.guest import expression
from ptinspect.guest.names import range_of
from ptinspect.guest.regions import names_of
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.analysis.descriptor_batches import RowFilter
    from ptinspect.snapshot.model import Snapshot

FORMATS = ("csv", "jsonl", "parquet", "ptdump")
"""What --format takes, and the suffixes of files that say it."""
ERAS = (
    "4.16", "5.0", "5.4", "5.6", "5.8", "5.10", "5.11", "5.12", "5.17", "6.4", "6.5", "6.9", "6.13", "6.15",
)  # fmt: skip
"""The forms of the kernel's own text, by the first release that has it (linux/releases.py)."""
KINDS = ("table", "block", "page", "invalid", "reserved", "leaf", "valid")
GROUPS = {"leaf": {"block", "page"}, "valid": {"table", "block", "page"}}


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", type=argtypes.snapshot, metavar="NAME", help="a snapshot in memory, or its file")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write, in one step")
    add("--format", choices=FORMATS, help="default: what FILE's suffix says")
    add("--range", type=expression.address_range, metavar="RANGE", help=f"only a part; {argtypes.RANGE_HELP}")
    add("--level", "-l", action="append", type=argtypes.level, metavar="L", help="only tables of this level")
    add("--kind", action="append", choices=KINDS, help="only these; leaf: block and page; valid: no faults")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--ng", action="store_true", default=None, help="only with bit 11 (nG, the mark)")
    group.add_argument("--global", dest="ng", action="store_false", help="only without bit 11")
    add("--type", default="", metavar="TYPE", help="part of the memory type: device, normal, nc")
    add("--cont", action="store_true", default=None, help="only leaves with the contiguous hint")
    add("--pa", type=expression.address_range, metavar="RANGE", help="only leaves that lead into this range")
    add("--era", choices=ERAS, help="ptdump: the release whose form it is (default: the snapshot's kernel)")


@command(
    "export",
    group="Snapshots",
    summary="Write a snapshot as CSV, JSON lines, Parquet, or the kernel's own text",
    example="export before -o before.csv --level pmd",
    configure=_configure,
    details="One row for each descriptor that is not zero, a shared table once, at its lowest address. "
    "Parquet needs pyarrow: pip install 'ptinspect[parquet]'. ptdump is the text of the kernel's own "
    "/sys/kernel/debug/kernel_page_tables, to be compared with it by diff.",
)
def export(ctx: Context, args: argparse.Namespace) -> Report:
    """Write the file."""
    from ptinspect.output.views.snapshot import seen, warnings

    form = _form(args)
    args.snap = args.name
    snapshot = ctx.snapshot_or_file(args.name)
    found: dict[str, Any]
    if form == "ptdump":
        found = _write_ptdump(ctx, args, snapshot)
    else:
        found = {"rows": _write_rows(ctx, args, snapshot, form)}
    size = args.output.stat().st_size
    result = {"file": str(args.output), "format": form, **found, "bytes": size, "snapshot": snapshot.name}
    result |= seen(snapshot)
    what = "lines" if form == "ptdump" else "descriptors"
    target = escape(str(args.output))
    said = f"{found['rows']} {what} of {escape(snapshot.name)} written to {target}, {size / 1e6:.1f} MB"
    notes = [Note(text, "changed") for text in found.get("assumed", ())]
    return Report(result, (Note(said), *notes, *warnings(snapshot)))


def _form(args: argparse.Namespace) -> str:
    """Return the format that is asked for, or that the file's suffix says. Raises UserError."""
    suffix = args.output.suffix.lower().removeprefix(".")
    found = args.format or (suffix if suffix in FORMATS else "")
    if not found:
        raise UserError(
            f"{args.output}: its suffix says no format", f"--format, one of: {', '.join(FORMATS)}"
        )
    return str(found)


def _write_rows(ctx: Context, args: argparse.Namespace, snapshot: Snapshot, form: str) -> int:
    """Write one row for each descriptor; return how many."""
    from ptinspect.analysis.descriptor_batches import batches
    from ptinspect.output.rows import WRITERS, Regions, pyarrow

    if form == "parquet":
        pyarrow()
    namer, layout = names_of(snapshot)
    regions = Regions(layout.edges, namer, snapshot.regime.va_min)

    def progress(done: int, total: int) -> None:
        ctx.progress("writing tables", done, total)

    found = batches(snapshot, _filter(ctx, args, snapshot), progress)
    with replacing(args.output) as file:
        return WRITERS[form](file, found, snapshot.regime, regions)


def _filter(ctx: Context, args: argparse.Namespace, snapshot: Snapshot) -> RowFilter:
    from ptinspect.analysis.descriptor_batches import RowFilter

    start = snapshot.regime.start_level
    levels = frozenset(level_number(level, start) for level in args.level or ())
    kinds: set[str] = set()
    for kind in args.kind or ():
        kinds |= GROUPS.get(kind, {kind})
    return RowFilter(
        levels=levels or None,
        kinds=frozenset(kinds) or None,
        bit11=args.ng,
        memory_type=args.type,
        contiguous=args.cont,
        va_range=range_of(ctx.guest, args.range, getattr(args, "cpu", None), getattr(args, "snap", None)),
        pa_range=range_of(ctx.guest, args.pa, getattr(args, "cpu", None), getattr(args, "snap", None)),
    )


def _write_ptdump(ctx: Context, args: argparse.Namespace, snapshot: Snapshot) -> dict[str, Any]:
    """Write the kernel's own text; return what to say about it."""
    chosen = [args.range, args.level, args.kind, args.ng is not None, args.type, args.cont, args.pa]
    if any(chosen):
        raise UserError("the kernel's text is of all its tables: no filters with --format ptdump")
    ctx.progress("writing lines", 0, 0)
    made, said = lines_of(snapshot, args.era)
    count = 0
    with replacing(args.output) as file:
        for line in made:
            file.write(f"{line}\n".encode())
            count += 1
    return {"rows": count, **said}
