"""`report`: snapshots, differences, stack traces and campaigns as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.guest.regions import names_of
from ptinspect.output.files import write_text
from ptinspect.output.model import Note, Report, escape

if TYPE_CHECKING:
    from ptinspect.output.html import Page


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.html", help="the page to write")
    add(
        "names",
        nargs="*",
        default=[],
        type=argtypes.snapshot,
        metavar="NAME",
        help="snapshots: names or files, in order",
    )
    add("--trace", action="append", type=Path, default=[], metavar="FILE", help="a file of stack trace")
    add("--campaign", action="append", type=Path, default=[], metavar="DIR", help="a campaign's directory")
    add("--title", metavar="TEXT", help="title of the page")


@command(
    "report",
    group="Snapshots",
    summary="Draw snapshots and what lies between them as one HTML page",
    example="report tables.html before after",
    configure=_configure,
    details="The page is one file that needs no network: every table as a map, entry by entry, coloured "
    "by state, to be opened level by level, with the descriptor under the cursor decoded; each "
    "snapshot against the one named before it; the difference as a table that can be filtered; the depth "
    "of stacks over time; tables of campaigns (campaign report joins the shards of one). "
    "Without names: all snapshots in memory.",
)
def report(ctx: Context, args: argparse.Namespace) -> Report:
    """Write the page."""
    from ptinspect.output.html import Page

    if args.file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{args.file}: the name of a page ends in .html")
    names = args.names or list(ctx.snapshots)
    if not names and not args.trace and not args.campaign:
        raise UserError("nothing to show: no snapshot is in memory", "snap NAME captures one")
    shown = [*names, *map(str, args.trace), *map(str, args.campaign)]
    page = Page(args.title or f"ptinspect: {', '.join(Path(name).name for name in shown)}")
    _add_snapshots(ctx, page, names)
    _add_traces(page, args.trace)
    _add_campaigns(page, args.campaign)
    text = page.text()
    write_text(args.file, text)
    size = len(text.encode())
    missing = list(dict.fromkeys(text for each in page.maps for text in each["unseen"]))
    result = {
        "file": str(args.file),
        "bytes": size,
        "maps": [each["title"] for each in page.maps],
        "unseen": missing,
        "traces": [each["title"] for each in page.traces],
        "campaigns": [each["title"] for each in page.campaigns],
        "diffs": [{"a": each["a"], "b": each["b"]} for each in page.diffs],
    }
    notes = [Note(escape(text), "bad") for text in missing]
    return Report(result, (Note(f"written to {escape(str(args.file))}, {size / 1e6:.1f} MB"), *notes))


def _add_snapshots(ctx: Context, page: Page, names: list[str]) -> None:
    """Add each snapshot, and each against the one before it."""
    from ptinspect.analysis.atlas import atlas, changes
    from ptinspect.analysis.diff import diff
    from ptinspect.linux.layout.mapped_parts import Contents
    from ptinspect.output.views.diff import diff_report

    before = None
    for number, name in enumerate(names):
        ctx.progress("drawing", number, len(names))
        snapshot = ctx.snapshot_or_file(name)
        page.add_map(snapshot, atlas(snapshot), snapshot.name)
        if before is not None:
            found = diff(before, snapshot)
            page.add_map(snapshot, changes(before, snapshot), f"{before.name} → {snapshot.name}")
            held, namer = Contents.of_changes(before, found.changes), names_of(snapshot, before)[0]
            page.add_diff(diff_report(found, before, snapshot, shown=0, regions=namer, contents=held))
        before = snapshot


def _add_traces(page: Page, files: list[Path]) -> None:
    from ptinspect.output.views.trace import picture
    from ptinspect.stack.trace_file import load

    page.traces += [picture(load(file), file.name) for file in files]


def _add_campaigns(page: Page, directories: list[Path]) -> None:
    from ptinspect.commands.session.campaign import drawn

    page.campaigns += [drawn([directory], f"campaign {directory.name}") for directory in directories]
