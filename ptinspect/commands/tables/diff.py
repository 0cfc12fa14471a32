"""`diff`: compare two snapshots descriptor by descriptor."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.tables.kerneltext import compare_texts, is_kernel_text
from ptinspect.errors import EXIT_CHECK, EXIT_OK, UserError
from ptinspect.guest.regions import names_of
from ptinspect.output.files import form_of, write
from ptinspect.output.model import Note, Report, escape

SHOWN = 20
"""Changes shown to people unless --limit says otherwise; files and JSON hold up to MAX_CHANGES."""


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("a", type=argtypes.snapshot, metavar="A", help="snapshot: a name or a file")
    add("b", type=argtypes.snapshot, metavar="B", help="snapshot: a name or a file")
    add("-o", dest="output", type=Path, metavar="FILE", help="write the whole report to a file")
    add("--expect-only-bit11", action="store_true", help="exit code 1 if anything else changed")
    add(
        "--limit",
        type=argtypes.whole(0, 1 << 24),
        metavar="N",
        help=f"list at most N changes (default {SHOWN} on the screen, 10000 in files and JSON)",
    )


@command(
    "diff",
    group="Snapshots",
    summary="Compare two snapshots, descriptor by descriptor",
    example="diff before after --expect-only-bit11",
    configure=_configure,
    details="Per level: how many descriptors changed, tables marked, leaves that became nG, and every "
    "other kind of change. Each change that is more than bit 11 is listed, decoded. "
    "-o writes text, JSON, CSV or Markdown by the suffix of FILE (.txt .json .csv .md). "
    "A or B may be a text of the kernel's /sys/kernel/debug/kernel_page_tables: what is mapped "
    "is then compared, range by range.",
)
def diff(ctx: Context, args: argparse.Namespace) -> Report:
    """Compare two snapshots."""
    from ptinspect.analysis.diff import MAX_CHANGES
    from ptinspect.analysis.diff import diff as compare
    from ptinspect.linux.layout.mapped_parts import Contents
    from ptinspect.output.views.diff import diff_report

    if args.output is not None:
        form_of(args.output)
    if is_kernel_text(ctx, args.a) or is_kernel_text(ctx, args.b):
        if args.expect_only_bit11:
            raise UserError("the kernel's text does not tell bit 11 of table descriptors")
        report = compare_texts(ctx, args.a, args.b, args.limit)
        if args.output is not None:
            write(report, args.output)
        return report
    a, b = ctx.snapshot_or_file(args.a), ctx.snapshot_or_file(args.b)
    found = compare(a, b, max_changes=MAX_CHANGES if args.limit is None else args.limit)
    code = EXIT_CHECK if args.expect_only_bit11 and not found.only_bit11 else EXIT_OK
    shown = ctx.rows(SHOWN) if args.limit is None else args.limit
    namer = names_of(b, a)[0]
    held = Contents.of_changes(a, found.changes)
    report = diff_report(found, a, b, shown=shown, exit_code=code, regions=namer, contents=held)
    if args.output is None:
        return report
    wide = args.output.suffix.lower() in (".csv", ".md")
    listed = len(found.changes)
    whole = diff_report(found, a, b, shown=listed, wide=wide, exit_code=code, regions=namer, contents=held)
    write(whole, args.output)
    said = Note(f"written to {escape(str(args.output))}", "dim")
    return Report({**report.result, "file": str(args.output)}, (*report.body, said), code)
