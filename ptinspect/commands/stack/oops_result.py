"""The deaths in a console log, as results have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.dataclass import dataclass, field_names, is_dataclass, replace
from ptinspect.output.encode import ABSENT, Absent, Hex, Result, filled
from ptinspect.output.model import escape
from ptinspect.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptinspect.arch.descriptor import Descriptor
    from ptinspect.arch.esr import Esr
    from ptinspect.linux.oops.kpti_registers import KptiRegisters
    from ptinspect.linux.oops.verdict import Analysis, Panic, RegisterNote


@dataclass(frozen=True)
class SyndromeResult:
    """ESR, decoded."""

    raw: Hex
    ec: Hex
    class_: str
    text: str
    wnr: bool | None
    fault: str | None
    level: int | None
    s1ptw: bool | None


@dataclass(frozen=True)
class StackRangeResult:
    """The bounds of the stack, as the log has them."""

    kind: str
    base: VirtAddr
    top: VirtAddr
    size: int


@dataclass(frozen=True)
class NestedResult:
    """Exceptions on a stack that could not hold them."""

    count: int
    frame_size: int
    evidence: Sequence[str]


@dataclass(frozen=True)
class LastDescriptorResult:
    """The descriptor that a register of the rewrite held last."""

    level: int
    name: str
    kind: str
    output_address: PhysAddr | None
    bit11: bool
    ng: bool | None


@dataclass(frozen=True)
class PrintedStepResult(LastDescriptorResult):
    """One level of the walk that the kernel printed."""

    raw: Hex


@dataclass(frozen=True)
class RegisterResult:
    """A register, and what it is for in the code of the rewrite."""

    value: Hex
    role: str | None
    meaning: str | None
    descriptor: LastDescriptorResult | Absent = ABSENT


@dataclass(frozen=True)
class RewriteLevelResult:
    """How far the rewrite was at one level."""

    level: int
    name: str
    current: Hex
    end: Hex
    complete: bool
    last: Hex


@dataclass(frozen=True)
class RewriteResult:
    """How far the rewrite was, by the registers."""

    algorithm: str
    complete: bool
    swapper_pa: PhysAddr | None
    evidence: Sequence[str]
    levels: Sequence[RewriteLevelResult]


@dataclass(frozen=True)
class LaterResult:
    """A fault while the kernel was dying."""

    message: str
    line: int
    esr: Hex | None
    far: VirtAddr | None


@dataclass(frozen=True)
class VerdictResult:
    """What it died of."""

    code: str
    summary: str
    evidence: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True)
class DeathResult:
    """One death."""

    message: str
    headline: str
    panic: str | None
    kind: str
    line: int
    time: str | None
    architecture: str
    cpu: int | None
    pid: int | None
    comm: str | None
    release: str | None
    esr: SyndromeResult | None
    far: VirtAddr | None
    stack: StackRangeResult | None
    sp: VirtAddr | None
    pc: str | None
    lr: str | None
    used_before_fault: int | None
    recursion: NestedResult | None
    walk_address: VirtAddr | None
    walk: Sequence[PrintedStepResult]
    registers: Mapping[str, RegisterResult]
    kpti: RewriteResult | None
    trace: Sequence[str]
    trace_cut: bool
    interleaved: bool
    notes: Sequence[str]
    later: Sequence[LaterResult]
    later_count: int
    verdict: VerdictResult


@dataclass(frozen=True)
class OopsResult:
    """The deaths in a log."""

    file: str
    total: int
    complete: bool
    panics: Sequence[DeathResult]
    written: str | Absent = ABSENT


def oops_result(analysis: Analysis, name: str) -> OopsResult:
    """Return the deaths with every string escaped: what the log holds is anybody's."""
    deaths = [_death(panic) for panic in analysis.panics]
    found: OopsResult = _escaped(OopsResult(name, analysis.total, analysis.complete, deaths))
    return found


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {name: _escaped(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(held) for held in value]
    if is_dataclass(type(value)):
        return replace(value, **{name: _escaped(getattr(value, name)) for name in field_names(type(value))})
    return value


def _death(panic: Panic) -> DeathResult:
    from ptinspect.linux.death import CODES

    facts, incident = panic.facts, panic.incident
    first, nested, path, stack = incident.first, facts.recursion, facts.path, facts.stack
    return filled(
        DeathResult,
        first,
        message=incident.message,
        panic=incident.panic or None,
        time=first.time or None,
        architecture=incident.architecture,
        comm=first.comm or None,
        release=first.release or None,
        esr=None if facts.esr is None else _syndrome(facts.esr),
        stack=None if stack is None else filled(StackRangeResult, stack),
        pc=first.pc or None,
        lr=first.lr or None,
        used_before_fault=facts.used,
        recursion=None if nested is None else NestedResult(nested.count, nested.frame_size, nested.reasons),
        walk_address=None if path is None else path.address,
        walk=[]
        if path is None
        else [_descriptor(PrintedStepResult, step.name, step.descriptor) for step in path.steps],
        registers={note.name: _register(note, facts.kpti) for note in panic.registers},
        kpti=None if facts.kpti is None else _rewrite(facts.kpti),
        trace_cut=first.elided,
        interleaved=first.mixed,
        later=[filled(LaterResult, later, message=later.headline) for later in incident.later],
        later_count=incident.later_count,
        verdict=filled(VerdictResult, panic.verdict, summary=CODES[panic.verdict.code]),
    )


def _syndrome(esr: Esr) -> SyndromeResult:
    return filled(SyndromeResult, esr, class_=esr.class_name, text=esr.class_text, fault=esr.fault or None)


def _descriptor(kind: type[Result], name: str, found: Descriptor) -> Result:
    ng = None if found.attributes is None else found.attributes.ng
    return filled(kind, found, name=name, kind=str(found.kind), bit11=bool(found.raw >> 11 & 1), ng=ng)


def _register(note: RegisterNote, kpti: KptiRegisters | None) -> RegisterResult:
    last: LastDescriptorResult | Absent = ABSENT
    for level in kpti.levels if kpti is not None else ():
        if note.name == f"x{level.first + 2}":
            last = _descriptor(LastDescriptorResult, level.name, level.last)
    return RegisterResult(Hex(note.value), note.role or None, note.meaning or None, last)


def _rewrite(walk: KptiRegisters) -> RewriteResult:
    levels = [filled(RewriteLevelResult, step, last=step.last.raw) for step in walk.levels]
    return filled(RewriteResult, walk, evidence=walk.reasons, levels=levels)
