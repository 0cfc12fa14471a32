"""`check`: what should hold in the tables of a healthy kernel, of the guest, a snapshot or a pair."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_root_options
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import EXIT_CHECK, EXIT_OK, KernelFileError
from ptinspect.guest.capturing import snapshot_of
from ptinspect.guest.regions import names_of
from ptinspect.guest.source import Tables
from ptinspect.output.model import Report

if TYPE_CHECKING:
    from ptinspect.analysis.aliases import Places
    from ptinspect.linux.layout.regions import Layout
    from ptinspect.snapshot.model import Snapshot

ZERO_LEVELS = ("p4d", "pud", "pmd", "pte")


def _configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_root_options(parser)
    add("--against", type=argtypes.snapshot, metavar="SNAP", help="compare with this earlier snapshot")
    add(
        "--rewrite-done",
        action="store_true",
        help="the rewrite has ended: bit 11 must be set where it should",
    )
    add("--partial", action="store_true", help="exit code 0 if what was captured is sound")
    add("--expect-clean", action="store_true", help="exit code 1 if there is any finding at all")
    add(
        "--limit",
        type=argtypes.whole(1, 1 << 20),
        default=100,
        metavar="N",
        help="findings listed per rule (100)",
    )


@command(
    "check",
    group="Tables",
    summary="Say which rules the tables break, and what shows it",
    example="check --snap after --against before",
    configure=_configure,
    details="Exit code 1 if a finding is an error, or if not all was captured (a range, --max-tables, tables "
    "that cannot be read), which --partial allows; with --expect-clean, if there is any finding. "
    "With --against, what was lost, reverted, moved or left unmarked since the earlier snapshot.",
    expectable=True,
)
def check(ctx: Context, args: argparse.Namespace) -> Report:
    """Apply the rules."""
    from ptinspect.analysis.check import Pair, check_pair, check_stacks
    from ptinspect.analysis.check import check as check_one
    from ptinspect.analysis.findings import RULES, Findings
    from ptinspect.linux.layout.mapped_parts import Contents
    from ptinspect.output.views.check import MOVED, check_report
    from ptinspect.output.views.snapshot import source_of

    snapshot = snapshot_of(ctx.guest, Tables.of(args), "check")
    found = Findings(limit=args.limit, shared=_shared(ctx, snapshot), partial=args.partial)
    label, head = snapshot.name, source_of(snapshot)
    areas = _places(names_of(snapshot)[1])
    before = ctx.snapshot_or_file(args.against) if args.against else None
    if before is not None:
        label = f"{before.name} -> {snapshot.name}"
        head = f"{source_of(before)} -> {source_of(snapshot)}"
        check_pair(Pair(before, snapshot, args.rewrite_done, _early(ctx, snapshot), areas), found)
    else:
        check_one(snapshot, found, rewrite_done=args.rewrite_done, places=areas)
        check_stacks(snapshot, found)
    failed = not found.ok or (args.expect_clean and bool(found.totals))
    namer = names_of(snapshot, before)[0]
    held = None
    if before is not None:
        held = Contents(before, ((f.va_start, f.va_end) for f in found.kept if f.rule in MOVED))
    return check_report(
        found,
        label,
        RULES,
        EXIT_CHECK if failed else EXIT_OK,
        source=head,
        regions=namer,
        contents=held,
    )


def _places(names: Layout) -> Places:
    """Return where the areas lie that rules speak of."""
    from ptinspect.analysis.aliases import Places

    def of(*wanted: str) -> tuple[tuple[int, int], ...]:
        return tuple((region.start, region.end) for region in names.regions if region.name in wanted)

    return Places(
        text=of("kernel text"),
        linear=of("linear map"),
        vmalloc=of("vmalloc"),
        modules=of("modules", "bpf"),
        fixmap=of("fixmap"),
    )


def _shared(ctx: Context, snapshot: Snapshot) -> frozenset[int]:
    """Return the tables of KASAN's zero shadow (mm/kasan/init.c), as far as the kernel file names them."""
    try:
        kernel = ctx.kernel
    except KernelFileError:
        kernel = None
    if kernel is None or "swapper_pg_dir" not in kernel.symbols:
        return frozenset()
    base = snapshot.root.pa - kernel.lookup("swapper_pg_dir")
    names = (f"kasan_{which}_{level}" for which in ("early_shadow", "zero") for level in ZERO_LEVELS)
    return frozenset(kernel.lookup(name) + base for name in names if name in kernel.symbols)


def _early(ctx: Context, snapshot: Snapshot) -> list[tuple[int, int, str]]:
    """Return where the tables of early boot lie, as far as the kernel file names them."""
    kernel = ctx.kernel
    if kernel is None:
        return []
    found = []
    for start, end, skip in (("init_pg_dir", "init_pg_end", 0), ("swapper_pg_dir", "swapper_pg_end", 1)):
        try:
            base = snapshot.root.pa - kernel.lookup("swapper_pg_dir")
            first = kernel.lookup(start) + base + skip * snapshot.regime.granule
            found.append((first, kernel.lookup(end) + base, start))
        except KernelFileError:
            continue
    return found
