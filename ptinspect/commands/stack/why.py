"""`why`: one verdict, with its evidence, on the fault that the guest stands at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.commands.framework.arguments import CPU
from ptinspect.commands.framework.command import Needs, command
from ptinspect.commands.written import WriteResult, told, write_result
from ptinspect.dataclass import dataclass, replace
from ptinspect.guest.guest import Guest
from ptinspect.guest.names import need_registers
from ptinspect.output.encode import ABSENT, Absent, Hex, filled
from ptinspect.output.model import Note, Report

if TYPE_CHECKING:
    from ptinspect.guest.recordings.writers import Write
    from ptinspect.guest.stacks.fault import Judged
    from ptinspect.stack.verdict import Change


@dataclass(frozen=True)
class EsrResult:
    """The syndrome."""

    raw: Hex
    fault: str | None
    level: int | None


@dataclass(frozen=True)
class RecursionResult:
    """Exceptions that could not be stored, nested in each other."""

    count: int
    frame_size: int


@dataclass(frozen=True)
class ChangeResult:
    """The descriptor that the verdict names."""

    level: int
    name: str
    descriptor_pa: PhysAddr
    before: Hex
    after: Hex
    snapshot: str
    """Which one holds `before`; empty if a recording shows it."""


@dataclass(frozen=True)
class WhyResult:
    """The verdict on one CPU, with its evidence."""

    cpu: int
    code: str
    text: str
    evidence: Sequence[str]
    unknown: Sequence[str]
    """What this guest cannot show."""
    esr: EsrResult
    far: VirtAddr
    sp: VirtAddr
    free: int | None
    used_before_fault: int | None
    frames: int
    dying: Sequence[str]
    recursion: RecursionResult
    descriptor: ChangeResult | None
    written: WriteResult | Absent = ABSENT
    """In a replay: the write that lost the entry."""


@command(
    "why",
    group="Stack",
    summary="Explain the fault that the guest stands at",
    example="why",
    arguments=(CPU,),
    result=WhyResult,
    needs=Needs.STOPPED,
    details="Joins ESR and FAR, the stacks, the recursion, the walk of the faulting address, and what "
    "snapshots in memory hold on that path. In a replay the store is searched that lost the entry, which "
    "may take half a minute. Without --cpu: the chosen CPU, or the first one with a "
    "verdict on its stack if nothing is proved there. The codes are those of oops.",
    expectable=True,
)
def why(guest: Guest, *, cpu: int | None = None) -> Report:
    """Explain."""
    from ptinspect.guest.stacks.fault import judge, judge_cpu, with_writer

    need_registers(guest)
    result = why_result(with_writer(guest, judge(guest) if cpu is None else judge_cpu(guest, cpu)))
    return Report(
        result, [Note(f"cpu {result.cpu}: {result.code}: {result.text}", "title"), *reasons(result)]
    )


def reasons(result: WhyResult) -> list[Note]:
    """Show what supports a verdict, and what remains unknown."""
    by = [] if isinstance(result.written, Absent) else told(result.written)
    return [
        *(Note(f"  - {line}") for line in result.evidence),
        *(Note(f"  ? {line}", "dim") for line in result.unknown),
        *(Note(line, "bad") for line in by),
    ]


def why_result(found: Judged) -> WhyResult:
    """Return a verdict as results have it."""
    facts, verdict = found.facts, found.why
    stack = facts.stack
    return filled(
        WhyResult,
        verdict,
        cpu=found.cpu,
        esr=filled(EsrResult, facts.esr),
        far=VirtAddr(facts.far),
        sp=VirtAddr(facts.sp),
        free=None if stack is None or not stack.holds_sp(facts.sp) else facts.sp - stack.base,
        used_before_fault=facts.used_before,
        frames=facts.frames,
        dying=facts.dying,
        recursion=RecursionResult(facts.repeated, facts.frame_size),
        descriptor=None if verdict.change is None else filled(ChangeResult, verdict.change),
        written=ABSENT if found.written is None else _written(found.written, verdict.change),
    )


def _written(write: Write, change: Change | None) -> WriteResult:
    return replace(write_result(write, None, None), changes=() if change is None else change.kinds)
