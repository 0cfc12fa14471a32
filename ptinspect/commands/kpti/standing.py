"""`kpti status`, `progress`, `until`, `verdict`: where the rewrite stands, running on in it, how it went."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework import arguments
from ptinspect.commands.framework.arguments import cpu_argument, snapshot_argument, switch, timeout_argument
from ptinspect.commands.framework.command import Needs, argument, command
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK, GuestError, UserError
from ptinspect.guest.expression import address
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.rewrite import NotReached, Runner
from ptinspect.guest.rewrite.state import CpuRole, Standing, cpu_roles, judgement, snapshot_state, standing
from ptinspect.guest.rewrite.stores import NthOfLevel, Percent, Place, run_to
from ptinspect.output.encode import filled
from ptinspect.output.model import Note, Report, Style, Styled, Table, escape, headings
from ptinspect.output.table_heads import source_of

if TYPE_CHECKING:
    from ptinspect.linux.kpti.marks import Frontier
    from ptinspect.linux.kpti.progress import Work
    from ptinspect.linux.kpti.state import KptiState


SECONDS = 180.0
CPU = cpu_argument("say what this CPU does (default: what each does)")
_LEVEL = re.compile(r"([a-z0-9-]+):([0-9]+)$", re.IGNORECASE)


@dataclass(frozen=True)
class FrontierResult:
    """The first descriptor that is not rewritten."""

    va: VirtAddr
    level: int
    descriptor_pa: PhysAddr | None
    source: str


@dataclass(frozen=True)
class StatusResult:
    """Where the guest, or a snapshot, stands with respect to the rewrite."""

    state: str
    reason: str
    algorithm: str | None
    frontier: FrontierResult | None
    table_descriptors: int
    table_descriptors_marked: int
    leaves: int
    leaves_ng: int
    decision: str
    unseen: list[str]
    cpus: list[CpuRole]
    missing: str


@command(
    "kpti status",
    group="KPTI",
    summary="Say whether the rewrite is still to come, in progress, done, or not needed",
    example="kpti status",
    arguments=(
        snapshot_argument("--snap", "a snapshot instead of the guest"),
        CPU,
    ),
    result=StatusResult,
    needs=Needs.STOPPED_UNLESS_SNAP,
    details="From the code, the registers, the flag that the rewrite clears, the marks in the tables, "
    "and whether the kernel has patched itself for KPTI yet. While CPUs are in it, or held for it, "
    "what each of them does.",
    expectable=True,
)
def status(guest: Guest, *, snap: str | None = None, cpu: int | None = None) -> Report:
    """Say where the guest, or a snapshot, stands."""
    cpus: Sequence[CpuRole] = ()
    lacks = where = ""
    if snap:
        snapshot = guest.snapshot_or_file(snap)
        state = snapshot_state(guest, snapshot)
        where = f" ({source_of(snapshot)})"
    else:
        state = standing(guest, "(kpti status)").state
        try:
            cpus = cpu_roles(guest, state.code, cpu)
        except GuestError:
            cpus = ()
        lacks = guest.kernel_missing
    counts = state.counts
    result = filled(
        StatusResult,
        state,
        algorithm=state.algorithm or None,
        frontier=frontier_result(state.frontier),
        table_descriptors=counts.table_descriptors,
        table_descriptors_marked=counts.table_descriptors_marked,
        leaves=counts.leaves,
        leaves_ng=counts.leaves_ng,
        cpus=cpus,
        missing=lacks,
    )
    body: list[Note | Table] = [Note(f"{state.state}: {state.reason}{escape(where)}", "title")]
    if lacks:
        text = f"{lacks}: judged from the tables alone, without the code, its flag and the decision"
        body.append(Note(text, "changed"))
    if state.algorithm:
        body.append(Note(f"algorithm: {state.algorithm}"))
    if state.frontier is not None:
        text = f"frontier: {frontier_text(state.frontier)} (from the {state.frontier.source})"
        body.append(Note(text, "address"))
    if cpu is not None or any(one.role not in ("elsewhere", "unknown") for one in cpus):
        body.append(cpu_table(cpus))
    return Report(result, body)


def frontier_result(found: Frontier | None) -> FrontierResult | None:
    """Return a frontier as the result has it."""
    return None if found is None else filled(FrontierResult, found)


def frontier_text(found: Frontier) -> str:
    """Return a frontier in words."""
    at = "" if found.descriptor_pa is None else f", descriptor at pa:{found.descriptor_pa:#x}"
    return f"{found.va:#x}, level {found.level}{at}"


def cpu_table(cpus: Sequence[CpuRole]) -> Table:
    """Show what each CPU does."""
    words = {True: "on", False: "off", None: "?"}
    columns = headings(">cpu", "does", "TTBR1", "MMU", "pc")
    return Table(columns, [(str(c.cpu), c.role, c.ttbr1, words[c.mmu_on], c.place) for c in cpus])


@dataclass(frozen=True)
class LevelResult:
    """How many descriptors of a level have bit 11."""

    level: int
    name: str
    valid: int
    marked: int


@dataclass(frozen=True)
class Frontiers:
    """Where the rewrite stands, by the registers of the walk and by the marks in the tables."""

    registers: FrontierResult | None
    tables: FrontierResult | None


@dataclass(frozen=True)
class ProgressResult:
    """How far the rewrite is."""

    phase: str
    state: str
    algorithm: str
    marks_tables: bool
    percent: float
    to_rewrite: int
    left: int
    seen_to_begin: bool
    levels: list[LevelResult]
    frontier: Frontiers
    agree: bool | None
    doubts: list[str]
    gaps: int | None
    unseen: list[str]
    flag: int | None
    cpus: list[CpuRole]


@command(
    "kpti progress",
    group="KPTI",
    summary="Say how far the rewrite is, level by level, and where it stands",
    example="kpti progress",
    arguments=(CPU,),
    result=ProgressResult,
    needs=Needs.STOPPED,
    details="The frontier from the registers of the walk and from the marks in the tables, and whether "
    "the two agree; what every CPU does; the flag. Exit code 1 if registers and tables contradict.",
)
def progress(guest: Guest, *, cpu: int | None = None) -> Report:
    """Say how far the rewrite is."""
    Runner(guest, SECONDS)  # there is a kernel file, it is this kernel's, and its rewrite is a known one
    found = standing(guest, "(kpti progress)")
    cpus = cpu_roles(guest, found.state.code, cpu)
    result = _progress(found, cpus)
    body = _shown(result, found, flag_text(found.state, guest.stopped.cpu_count))
    return Report(result, body, 1 if result.doubts else 0)


def _progress(found: Standing, cpus: Sequence[CpuRole]) -> ProgressResult:
    state, work, marks = found.state, found.work, found.marks
    phase = "outside" if state.position is None else state.position.phase
    asked = phase == "walking" and (state.marks_tables or state.doubts)
    by_tables = marks.frontier if state.state == "in-progress" or state.doubts else None
    by_registers = None if state.position is None else state.position.frontier
    return filled(
        ProgressResult,
        state,
        phase=phase,
        percent=round(work.percent, 3),
        to_rewrite=work.total,
        left=work.left,
        seen_to_begin=work.exact,
        levels=[
            LevelResult(v.level, v.name, v.entries_valid, v.table_descriptors_marked + v.leaves_ng)
            for v in state.counts.levels
            if v.tables
        ],
        frontier=Frontiers(frontier_result(by_registers), frontier_result(by_tables)),
        agree=not state.doubts if asked else None,
        gaps=marks.gaps if state.marks_tables else None,
        flag=state.flag.value,
        cpus=cpus,
    )


def _shown(result: ProgressResult, found: Standing, flag: str) -> list[Note | Table]:
    state = found.state
    columns = headings("level", ">valid", ">bit 11", ">")
    body: list[Note | Table] = [
        Note(f"{_where(result.phase, state.state)}; {_share(found.work, state)}", "title"),
        Table(columns, [_level_row(level) for level in result.levels]),
        *(Note(f"not captured: {part}", "changed") for part in state.unseen),
    ]
    by_registers = None if state.position is None else state.position.frontier
    by_tables = None if result.frontier.tables is None else found.marks.frontier
    for title, frontier in (("by the registers", by_registers), ("by the tables", by_tables)):
        if frontier is not None:
            body.append(Note(f"frontier {title}: {frontier_text(frontier)}", "address"))
    if state.doubts:
        body.append(Note("; ".join(state.doubts), "bad"))
    elif result.agree:
        body.append(Note("registers and tables agree", "good"))
    elif result.phase == "walking":
        body.append(Note("the code does not mark tables: registers and tables cannot be compared", "changed"))
    body.append(cpu_table(result.cpus))
    body.append(Note(f"flag: {flag}; algorithm {state.algorithm}", "dim"))
    return body


def _where(phase: str, state: str) -> str:
    if phase != "outside":
        return {
            "before": "the boot CPU is in it; nothing is written yet",
            "walking": "the boot CPU is in the middle of the walk",
            "done": "the walk is over",
        }[phase]
    words = {
        "before": "the rewrite has not begun",
        "in-progress": "no CPU is in the rewrite, but the tables show it unfinished",
        "after": "the rewrite has finished",
        "not-needed": "nothing is rewritten here",
    }
    return words.get(state, "no CPU is in the rewrite")


def _share(work: Work, state: KptiState) -> str:
    """Say how much of the work is done."""
    if state.state == "not-needed":
        return state.counts.marks
    if state.state == "after" and state.position is None:
        c = state.counts
        tables = c.table_descriptors - c.table_descriptors_marked
        return f"{c.leaves - c.leaves_ng} leaves are global, {tables} tables have no mark"
    done, most = work.total - work.left, "" if work.exact else "at most "
    text = f"{done} of {work.total} descriptors are rewritten ({most}{work.percent:.1f} %)"
    if not work.exact:
        text += "; the start of the walk was missed, so what was nG before it counts as done"
    return text


def flag_text(state: KptiState, cpu_count: int) -> str:
    """Say what the flag means, which depends on where the rewrite is."""
    value, position = state.flag.value, state.position
    if value is None:
        return "unknown"
    if not value:
        return "0, the rewrite has finished" if state.state == "after" else "0, it is not in use"
    if position is None:
        return f"{value}, as before the rewrite" if value == 1 else f"{value} CPUs are ready"
    if position.phase == "before" and cpu_count > 1:
        return "1, no other CPU is ready yet" if value == 1 else f"{value} CPUs are ready"
    return "1, no other CPU takes part" if value == 1 else f"all {value} CPUs that take part are ready"


def _level_row(level: LevelResult) -> tuple[str | Styled, ...]:
    share = 100 * level.marked / level.valid if level.valid else 100.0
    style: Style = "good" if level.marked == level.valid else "changed"
    return (
        Styled(f"{level.name} {level.level}", "level"),
        str(level.valid),
        str(level.marked),
        Styled(f"{share:.1f} %", style),
    )


@dataclass(frozen=True)
class TargetResult:
    """The descriptor that is about to be loaded or stored."""

    va: VirtAddr
    level: int
    descriptor_pa: PhysAddr


@dataclass(frozen=True)
class UntilResult(ProgressResult):
    """How far the rewrite is at the point that was reached."""

    reached: bool
    target: TargetResult


def place(text: str) -> Place:
    """Read a point of the rewrite: PERCENT%, LEVEL:N, or an address. Raises UserError."""
    level = _LEVEL.match(text)
    if text.endswith("%"):
        percent = float(text[:-1]) if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text[:-1]) else -1.0
        if not 0 <= percent <= 100:
            raise UserError(f"{text!r}: 0% to 100%")
        return Percent(percent)
    if level is not None and not text.startswith("pa:"):
        return NthOfLevel(arguments.level(level[1]), int(level[2]))
    if not re.match(r"[0-9$A-Za-z_]", text):
        raise UserError(f"{text!r}: PERCENT%, an address, or LEVEL:N", "kpti until 50%, kpti until pmd:10")
    return address(text)


arguments.completes("address", place)


@command(
    "kpti until",
    group="KPTI",
    summary="Run to a chosen point of the rewrite",
    example="kpti until 50%",
    arguments=(
        argument("where", type=place, metavar="PERCENT%|VA|LEVEL:N", help="where to stop"),
        timeout_argument("limit", SECONDS),
    ),
    result=UntilResult | NotReached,
    needs=Needs.STOPPED,
    details="PERCENT%: so many of the descriptors that the walk has to rewrite are done. VA: the leaf "
    "that maps it is next. LEVEL:N: the descriptor number N, from 1, of those of that level that are "
    "left (pmd:10). The guest stands where the descriptor is about to be loaded or stored.",
)
def until(guest: Guest, *, where: Place, timeout: float = SECONDS) -> Report:
    """Run to a point of the rewrite, and say how far it is there."""
    target = run_to(guest, where, timeout)
    if isinstance(target, NotReached):
        return Report(target, [Note(target.reason, "changed")], 1)
    now = progress(guest)
    known = {field.name: getattr(now.value, field.name) for field in fields(ProgressResult)}
    reached = TargetResult(target.va, target.level, target.descriptor_pa)
    return Report(UntilResult(**known, reached=True, target=reached), now.body, now.exit_code)


FINE = ("normal", "not-run")


@dataclass(frozen=True)
class VerdictResult:
    """How the rewrite went, and the evidence."""

    code: str
    meaning: str
    evidence: list[str]
    unknown: list[str]
    before: str | None
    after: str
    recorded_stores: int | None
    algorithm: str | None


@command(
    "kpti verdict",
    group="KPTI",
    summary="Judge how the rewrite went, and show the evidence",
    example="kpti verdict",
    arguments=(
        snapshot_argument("--before", "the tables before (default: before)"),
        snapshot_argument("--after", "the tables after (default: after, or live)"),
        switch("--live", "the guest as it stands, even if there is a snapshot from after"),
    ),
    expectable=True,
    result=VerdictResult,
    details="From the tables before and after (the snapshots before and after, unless others are named; "
    "the guest as it stands if there is none from after), the stores that kpti writes recorded, and the "
    "kernel's code. Codes: normal, no-table-marks, toggle-write-back, lost-write, reverted-entry, "
    "not-run, unknown. A capture that is cut is never normal. Exit code 1 unless normal or not-run.",
)
def verdict(
    guest: Guest, *, before: str | None = None, after: str | None = None, live: bool = False
) -> Report:
    """Judge, and say what it rests on."""
    judged = judgement(guest, before, after, live=live)
    found = judged.verdict
    stores = None if judged.recording is None else len(judged.recording)
    algorithm = None if judged.code is None else judged.code.algorithm
    used = (
        f"tables before: {judged.before or 'none'}",
        f"tables after: {judged.after}",
        f"recorded stores: {'none' if stores is None else stores}",
        f"the kernel's code: {algorithm or 'not known'}",
    )
    style: Style = "good" if found.code in FINE else "bad" if found.code != "unknown" else "changed"
    body = [
        Note(f"{found.code}: {found.meaning}", style),
        *(Note(f"- {escape(text)}") for text in found.evidence),
        *(Note(f"? {escape(text)}", "changed") for text in found.unknown),
        Note("; ".join(used), "dim"),
    ]
    more = {"before": judged.before, "after": judged.after}
    result = filled(VerdictResult, found, recorded_stores=stores, algorithm=algorithm, **more)
    return Report(result, body, EXIT_OK if found.code in FINE else EXIT_CHECK)
