"""`kpti break`, `kpti run`, `kpti status`: the kernel's rewrite of its own tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.arguments import add_cpu_option
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.kpti.kpti_cpus import cpu_table, cpus_in
from ptinspect.errors import GuestError, UserError
from ptinspect.guest.rewrite import C_FUNCTIONS, PHASES, Outcome, Runner
from ptinspect.guest.rewrite_state import snapshot_state, standing
from ptinspect.link.gdb.slots import Purpose, fitting
from ptinspect.output.model import Column, Note, Report, Styled, Table, escape, hex_address

if TYPE_CHECKING:
    from ptinspect.linux.kpti.marks import Frontier
    from ptinspect.linux.kpti.state import KptiState

RUN_SECONDS = 180.0


def _configure_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=argtypes.seconds,
        default=RUN_SECONDS,
        metavar="SECONDS",
        help=f"limit for the whole run (default {RUN_SECONDS:.0f})",
    )
    parser.add_argument(
        "--percent",
        type=argtypes.whole(0, 100),
        default=50,
        metavar="N",
        help="how many percent of the pmd entries that are to be rewritten are so at `during` (default 50)",
    )
    parser.add_argument("--replace", action="store_true", help="replace snapshots of these names")


def _configure_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--snap", type=argtypes.snapshot, metavar="SNAP", help="a snapshot instead of the guest"
    )
    add_cpu_option(parser, "say what this CPU does (default: what each does)")


POINTS = {
    "entry": "entry of the identity-mapped function",
    "before_first_write": "before the first descriptor is written",
    "after_writes": "all descriptors written, TLB not flushed yet",
    "return": "return to kpti_install_ng_mappings",
}
BOOT_CPU = "$w0 == 0"
"""True at the entry on the boot CPU: the number of the CPU is the function's first argument. The others
come there too, and wait."""
IMPORTANT = ("entry", "after_writes", "before_first_write", "return")
"""Which points come first where the CPU has few breakpoints; the C function comes last."""


@command(
    "kpti break",
    group="KPTI",
    summary="Set the breakpoints that matter around the rewrite",
    example="kpti break",
    needs=Needs.STOPPED,
    details="The identity-mapped function runs at its physical address, on the boot CPU alone.",
)
def set_breakpoints(ctx: Context, args: argparse.Namespace) -> Report:
    """Set breakpoints at the points of the rewrite; the C function too if it is known where it runs."""
    runner = Runner(ctx.guest, RUN_SECONDS)
    rows: list[tuple[str, str, str]] = []
    listed: list[dict[str, Any]] = []
    placed = ctx.view().placed
    functions = runner.runtime(C_FUNCTIONS) if placed else []
    points = {name: runner.point(name) for name in POINTS}
    wanted = [*(points[name] for name in IMPORTANT), *functions]
    slots = runner.session.slots
    slots.claim(wanted[:1])
    chosen, left = fitting(wanted, slots.free("breakpoint"))

    def add(name: str, address: int, meaning: str) -> None:
        if address in chosen:
            condition = BOOT_CPU if name == "entry" else None
            found = runner.session.set_breakpoint(address, purpose=Purpose.REWRITE, condition=condition)
            rows.append((str(found.id), hex_address(address), meaning))
            listed.append(
                {"id": found.id, "point": name, "address": hex_address(address), "meaning": meaning}
            )

    for address in functions:
        add("kpti_install_ng_mappings", address, "the C function, once per CPU")
    for name, meaning in POINTS.items():
        add(name, points[name], f"{meaning} (physical)")
    table = Table((Column("no.", "right"), Column("address"), Column("what")), rows, "Breakpoints")
    result = {
        "algorithm": runner.code.algorithm,
        "breakpoints": listed,
        "left_out": [hex_address(address) for address in left],
    }
    body: list[Table | Note] = [table]
    if left:
        places = ", ".join(ctx.place(address) for address in left)
        more = f"left out, the CPU has no breakpoint for it: {places}; break lists them, delete N frees one"
        body.append(Note(more, "changed"))
    if not placed:
        body.append(Note("The C function is left out: it is not known yet where it will run.", "dim"))
    return Report(result, body)


@command(
    "kpti run",
    group="KPTI",
    summary="Run through the rewrite and capture the tables before, during and after it",
    example="kpti run --percent 50",
    needs=Needs.STOPPED,
    configure=_configure_run,
    details="The captures are kept as snapshots: before, during, after. Exit code 1 if the kernel "
    "does not rewrite its tables; kpti status says why. In the middle of the rewrite it captures what is "
    "left: during, where the guest stands, and after.",
)
def run(ctx: Context, args: argparse.Namespace) -> Report:
    """Run through the rewrite and capture."""
    from ptinspect.guest.rewrite import run as run_through

    taken = [name for name in PHASES if name in ctx.snapshots]
    if taken and not args.replace:
        raise UserError(
            f"there are snapshots of the name {', '.join(taken)} already", "--replace, or drop them"
        )
    outcome = run_through(ctx.guest, timeout=args.timeout, percent=args.percent)
    if not outcome.reached:
        state = standing(ctx.guest, "(kpti run)").state
        off = "this CPU does not need KPTI, or it is switched off (kpti=, mitigations=)"
        why = f"{off}; {state.counts.marks}" if state.state == "before" else state.reason
        outcome.reason = f"{outcome.reason}; {why}"
    return ran(outcome)


def ran(outcome: Outcome) -> Report:
    """Report a run."""
    from ptinspect.analysis.summary import summarize

    rows = []
    for name, snapshot in outcome.snapshots.items():
        counts = summarize(snapshot)
        rows.append(
            (
                Styled(name, "title"),
                str(len(snapshot.tables)),
                _share(counts.table_descriptors_marked, counts.table_descriptors),
                _share(counts.leaves_ng, counts.leaves),
                snapshot.meta.where,
            )
        )
    columns = (
        Column("snapshot"),
        Column("tables", "right"),
        Column("table descriptors marked", "right"),
        Column("leaves nG", "right"),
        Column("where"),
    )
    result = {
        "reached": outcome.reached,
        "reason": outcome.reason,
        "algorithm": outcome.algorithm,
        "whole": outcome.whole,
        "snapshots": list(outcome.snapshots),
        "stops": [{"point": point, "pc": hex_address(pc)} for point, pc in outcome.stops],
    }
    body: list[Note | Table] = [Note(outcome.reason, "good" if outcome.whole else "changed")]
    if rows:
        body.append(Table(columns, rows))
        compare = "diff before after says what changed; " if outcome.whole else ""
        body.append(Note(f"{compare}save NAME FILE keeps a snapshot", "dim"))
    return Report(result, body, 0 if outcome.reached else 1)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}"


@command(
    "kpti status",
    group="KPTI",
    summary="Say whether the rewrite is still to come, in progress, done, or not needed",
    example="kpti status",
    configure=_configure_status,
    details="From the code, the registers, the flag that the rewrite clears, the marks in the tables, "
    "and whether the kernel has patched itself for KPTI yet. While CPUs are in it, or held for it, "
    "what each of them does.",
    expectable=True,
)
def status(ctx: Context, args: argparse.Namespace) -> Report:
    """Say where the guest, or a snapshot, stands."""
    from ptinspect.output.views.snapshot import source_of

    cpus: list[dict[str, Any]] = []
    lacks = where = ""
    if args.snap:
        snapshot = ctx.snapshot_or_file(args.snap)
        state = snapshot_state(ctx.guest, snapshot)
        where = f" ({source_of(snapshot)})"
    else:
        ctx.guest.require("kpti status", stopped=True)
        state = standing(ctx.guest, "(kpti status)").state
        cpus = _cpus(ctx, state, args.cpu)
        lacks = ctx.guest.kernel_missing
    frontier, counts = state.frontier, state.counts
    result = {
        "state": state.state,
        "reason": state.reason,
        "algorithm": state.algorithm or None,
        "frontier": frontier_json(frontier),
        "table_descriptors": counts.table_descriptors,
        "table_descriptors_marked": counts.table_descriptors_marked,
        "leaves": counts.leaves,
        "leaves_ng": counts.leaves_ng,
        "decision": state.decision,
        "unseen": list(state.unseen),
        "cpus": cpus,
        "missing": lacks,
    }
    body: list[Note | Table] = [Note(f"{state.state}: {state.reason}{escape(where)}", "title")]
    if lacks:
        text = f"{lacks}: judged from the tables alone, without the code, its flag and the decision"
        body.append(Note(text, "changed"))
    if state.algorithm:
        body.append(Note(f"algorithm: {state.algorithm}"))
    if frontier is not None:
        body.append(Note(f"frontier: {frontier_text(frontier)} (from the {frontier.source})", "address"))
    if args.cpu is not None or any(cpu["role"] not in ("elsewhere", "unknown") for cpu in cpus):
        body.append(cpu_table(cpus))
    return Report(result, body)


def _cpus(ctx: Context, state: KptiState, only: int | None) -> list[dict[str, Any]]:
    """Say what every CPU does, as far as the rewrite goes."""
    try:
        return cpus_in(ctx, ctx.view(), state.code, only)
    except GuestError:
        return []


def frontier_json(found: Frontier | None) -> dict[str, Any] | None:
    """Return a frontier as JSON has it."""
    if found is None:
        return None
    pa = None if found.descriptor_pa is None else hex_address(found.descriptor_pa)
    return {"va": hex_address(found.va), "level": found.level, "descriptor_pa": pa, "source": found.source}


def frontier_text(found: Frontier) -> str:
    """Return a frontier in words."""
    at = "" if found.descriptor_pa is None else f", descriptor at pa:{found.descriptor_pa:#x}"
    return f"{found.va:#x}, level {found.level}{at}"
