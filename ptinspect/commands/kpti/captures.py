"""`kpti break`, `kpti run`: stop at the points of the rewrite, and capture the tables around it."""

from __future__ import annotations

from ptinspect.commands.framework.arguments import number_argument, switch, timeout_argument
from ptinspect.commands.framework.command import Needs, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.rewrite import PHASES, run_through
from ptinspect.guest.rewrite.rewrite import set_breakpoints as set_around
from ptinspect.output.encode import ABSENT, Absent, Hex
from ptinspect.output.model import Note, Report, Styled, Table, headings, hex_address

RUN_SECONDS = 180.0
MEANINGS = {
    "kpti_install_ng_mappings": "the C function, once per CPU",
    "entry": "entry of the identity-mapped function (physical)",
    "before_first_write": "before the first descriptor is written (physical)",
    "after_writes": "all descriptors written, TLB not flushed yet (physical)",
    "return": "return to kpti_install_ng_mappings (physical)",
}


@dataclass(frozen=True)
class BreakpointResult:
    """A breakpoint around the rewrite."""

    id: int
    point: str
    address: Hex
    meaning: str
    pending: bool | Absent = ABSENT
    """True while it is not known where the kernel runs."""


@dataclass(frozen=True)
class BreakpointsResult:
    """The breakpoints around the rewrite."""

    algorithm: str
    breakpoints: list[BreakpointResult]
    left_out: list[Hex]


@command(
    "kpti break",
    group="KPTI",
    summary="Set the breakpoints that matter around the rewrite",
    example="kpti break",
    result=BreakpointsResult,
    needs=Needs.STOPPED,
    details="The identity-mapped function runs at its physical address, on the boot CPU alone.",
)
def set_breakpoints(guest: Guest) -> Report:
    """Set breakpoints at the points of the rewrite."""
    found = set_around(guest, RUN_SECONDS)
    listed = [
        BreakpointResult(number, point, Hex(address), MEANINGS[point], True if pending else ABSENT)
        for number, point, address, pending in found.points
    ]
    rows = [
        (str(one.id), "pending" if one.pending is True else hex_address(one.address), one.meaning)
        for one in listed
    ]
    body: list[Table | Note] = [Table(headings(">no.", "address", "what"), rows, "Breakpoints")]
    if found.left_out:
        places = ", ".join(guest.place(address) for address in found.left_out)
        more = f"left out, the CPU has no breakpoint for it: {places}; break lists them, delete N frees one"
        body.append(Note(more, "changed"))
    if not found.placed:
        text = "It is not known yet where the kernel runs; the breakpoints follow it."
        if not guest.stopped.escort.everywhere:
            text = "The C function is left out: it is not known yet where it will run."
        body.append(Note(text, "dim"))
    return Report(BreakpointsResult(found.algorithm, listed, [Hex(at) for at in found.left_out]), body)


@dataclass(frozen=True)
class StopResult:
    """A point that was reached."""

    point: str
    pc: Hex


@dataclass(frozen=True)
class RunResult:
    """A run through the rewrite."""

    reached: bool
    reason: str
    algorithm: str
    whole: bool
    snapshots: list[str]
    stops: list[StopResult]


@command(
    "kpti run",
    group="KPTI",
    summary="Run through the rewrite and capture the tables before, during and after it",
    example="kpti run --percent 50",
    arguments=(
        timeout_argument(f"limit for the whole run (default {RUN_SECONDS:.0f})", RUN_SECONDS),
        number_argument(
            "--percent",
            0,
            100,
            "how many percent of the pmd entries to be rewritten are so at `during` (default 50)",
            default=50,
        ),
        switch("--replace", "replace snapshots of these names"),
    ),
    result=RunResult,
    needs=Needs.STOPPED,
    details="The captures are kept as snapshots: before, during, after. Exit code 1 if the kernel "
    "does not rewrite its tables; kpti status shows why. In the middle of the rewrite it captures what is "
    "left: during, where the guest stands, and after.",
)
def run(guest: Guest, *, timeout: float = RUN_SECONDS, percent: int = 50, replace: bool = False) -> Report:
    """Run through the rewrite and capture."""
    from ptinspect.analysis.summary import summarize

    taken = [name for name in PHASES if name in guest.snapshots]
    if taken and not replace:
        raise UserError(
            f"there are snapshots of the name {', '.join(taken)} already", "--replace, or drop them"
        )
    outcome = run_through(guest, timeout=timeout, percent=percent)
    rows = []
    for name, snapshot in outcome.snapshots.items():
        counts = summarize(snapshot)
        rows.append(
            (
                Styled(name, "title"),
                str(len(snapshot.tables)),
                f"{counts.table_descriptors_marked} of {counts.table_descriptors}",
                f"{counts.leaves_ng} of {counts.leaves}",
                snapshot.meta.where,
            )
        )
    body: list[Note | Table] = [Note(outcome.reason, "good" if outcome.whole else "changed")]
    if rows:
        columns = headings("snapshot", ">tables", ">table descriptors marked", ">leaves nG", "where")
        body.append(Table(columns, rows))
        compare = "diff before after shows what changed; " if outcome.whole else ""
        body.append(Note(f"{compare}save NAME FILE keeps a snapshot", "dim"))
    result = RunResult(
        outcome.reached,
        outcome.reason,
        outcome.algorithm,
        outcome.whole,
        list(outcome.snapshots),
        [StopResult(point, Hex(pc)) for point, pc in outcome.stops],
    )
    return Report(result, body, 0 if outcome.reached else 1)
