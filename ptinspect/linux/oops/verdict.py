"""What a death was, by the evidence that its log holds, and what the log cannot tell."""

from __future__ import annotations

from dataclasses import dataclass

from ptinspect.arch.esr import Esr
from ptinspect.linux.oops.causes import interleaved, other_cause
from ptinspect.linux.oops.codes import Verdict
from ptinspect.linux.oops.depth import (
    CHAIN_AVERAGE,
    LARGEST_FRAME,
    Chain,
    Recursion,
    at_exception_entry,
    single_bit,
)
from ptinspect.linux.oops.model import Incident, StackRange
from ptinspect.linux.oops.printed_walk import Path
from ptinspect.linux.oops.rewrite import KptiRegisters
from ptinspect.linux.releases import exception_frames, parse

EC_PC_SP = 0x26
"""ESR_ELx.EC of an SP alignment fault (Arm ARM ESR_ELx)."""
EC_CURRENT = frozenset({0x21, 0x25})
"""ESR_ELx.EC of instruction and data aborts from the current exception level."""


@dataclass(frozen=True)
class Facts:
    """All that was worked out from one death's log."""

    incident: Incident
    """The values as printed."""
    esr: Esr | None
    """The first fault's ESR, decoded."""
    stack: StackRange | None
    """The stack SP is on, or has run off."""
    used: int | None
    """Bytes of it in use before the first fault."""
    recursion: Recursion | None
    """The recursing fault, if it is proved."""
    chain: Chain
    """The calls in the trace."""
    path: Path | None
    """The printed walk of an address in the stack, or of the faulting address."""
    kpti: KptiRegisters | None
    """The rewrite's walk in the registers, if it is there."""
    kpti_place: str
    """The symbol that places the fault in or behind the rewrite, or empty."""


def verdict(facts: Facts) -> Verdict:
    """Return the verdict on one death; a code other than `unknown` only where the log proves it."""
    incident = facts.incident
    if incident.architecture not in ("arm64", "unknown") and incident.first.kind != "panic":
        note = f"the registers are those of {incident.architecture}, not of arm64"
        return Verdict("unknown", (note,), ("faults of other architectures are not explained",))
    if incident.first.mixed and (wrong := interleaved(incident)):
        return Verdict("unknown", tuple(wrong), ("which of the interleaved lines belongs to which CPU",))
    if incident.first.kind != "bad-stack":
        return other_cause(incident, facts.esr)
    for rule in (_no_values, _sp_wrong, _mapping_gone, _ran_down):
        found = rule(facts)
        if found is not None:
            return _cautious(found, incident)
    return _cautious(
        Verdict("unknown", tuple(_where(facts)), ("why the kernel found too little stack",)), incident
    )


def _cautious(found: Verdict, incident: Incident) -> Verdict:
    unknown = list(found.unknown)
    if incident.first.damaged:
        unknown.append(f"digits are missing in the log: {', '.join(incident.first.damaged)}")
    if incident.first.mixed:
        unknown.append("lines of several CPUs are interleaved: a value may belong to another one")
    return Verdict(found.code, found.evidence, tuple(unknown))


def _no_values(facts: Facts) -> Verdict | None:
    first = facts.incident.first
    if first.sp is not None and first.stacks:
        return None
    missing = [
        name
        for name, there in (("SP", first.sp is not None), ("the stacks' bounds", bool(first.stacks)))
        if not there
    ]
    evidence = ("the kernel's bad-stack path was reached: an exception found too little room on the stack",)
    return Verdict(
        "unknown",
        evidence,
        (f"{' and '.join(missing)}: not in the log, or damaged", "why there was too little room"),
    )


def _where(facts: Facts) -> list[str]:
    """Say where SP and FAR lie."""
    first, stack = facts.incident.first, facts.stack
    evidence = ["the kernel's bad-stack path was reached: an exception found too little room on the stack"]
    if stack is not None and first.sp is not None:
        evidence.append(f"SP {first.sp:#x} is {place(first.sp, stack)}")
    if first.far is not None and not stale(facts.esr):
        on = first.stack_of(first.far) or stack
        if on is not None:
            evidence.append(f"FAR {first.far:#x} is {place(first.far, on)}")
    return evidence


def place(address: int, stack: StackRange) -> str:
    """Say where `address` lies relative to a stack."""
    if stack.base <= address <= stack.top:
        return f"in the {stack.kind} stack, {address - stack.base:#x} above its base"
    if address < stack.base:
        return f"{stack.base - address:#x} bytes below the base of the {stack.kind} stack"
    return f"{address - stack.top:#x} bytes above the top of the {stack.kind} stack"


def stale(esr: Esr | None) -> bool:
    """Tell whether ESR and FAR are left from an earlier exception: an interrupt sets neither."""
    return esr is None or (esr.ec not in EC_CURRENT and esr.ec != EC_PC_SP)


def _sp_wrong(facts: Facts) -> Verdict | None:
    first = facts.incident.first
    assert first.sp is not None
    unknown = ("what changed SP", "how deep the stack was: SP does not say it")
    if first.sp % 16 and facts.esr is not None and facts.esr.ec == EC_PC_SP:
        evidence = [
            f"SP {first.sp:#x} is not a multiple of 16 and ESR says SP alignment fault: "
            "every store to the stack faults"
        ]
        if at_exception_entry(first.pc):
            evidence.append(f"pc {first.pc} is the exception entry: it faulted on its own first use of SP")
        if first.registers.get(29) is not None and not any(
            s.contains(first.registers[29]) for s in first.stacks
        ):
            evidence.append(f"x29 {first.registers[29]:#x} is in none of the printed stacks either")
        return Verdict("sp-corrupted", tuple(evidence), unknown)
    if facts.stack is not None:
        return None
    ranges = ", ".join(f"{s.kind} [{s.base:#x}..{s.top:#x}]" for s in first.stacks)
    evidence = [f"SP {first.sp:#x} is in none of the stacks, nor within a stack's size below one: {ranges}"]
    task = first.task_stack
    bit = single_bit(first.sp, task) if task is not None else None
    if task is not None and bit is not None:
        evidence.append(f"it differs from an address of the task stack in bit {bit} alone")
    x29 = first.registers.get(29)
    if task is not None and x29 is not None and task.contains(x29):
        evidence.append(
            f"x29 {x29:#x} is still in the task stack: {task.top - x29} bytes up to the last frame record"
        )
    if at_exception_entry(first.pc):
        evidence.append(f"pc {first.pc} is the exception entry: it faulted on its own first store")
    return Verdict("sp-corrupted", tuple(evidence), unknown)


def _mapping_gone(facts: Facts) -> Verdict | None:
    """Judge a translation fault inside of the stack: its mapping is not there."""
    from ptinspect.linux.oops.mapping import judge, lost_address

    address = lost_address(facts.incident, facts.esr)
    return None if address is None else judge(facts, *address)


def _ran_down(facts: Facts) -> Verdict | None:
    """Judge a stack that was used down to its base."""
    first, stack = facts.incident.first, facts.stack
    if stack is None or first.sp is None or at_exception_entry(first.pc):
        return None
    largest = max(exception_frames(parse(first.release)))
    far = None if stale(facts.esr) else first.far
    below = far is not None and stack.base - stack.size <= far < stack.base
    if not (below or first.sp < stack.base + largest):
        return None
    evidence = _where(facts)
    if stale(facts.esr):
        evidence.append(
            "ESR and FAR are of an earlier exception: what found no room was an interrupt, or an SError"
        )
    elif below:
        evidence.append(f"the access is below the {stack.kind} stack: its guard")
    if first.sp < stack.base + largest:
        evidence.append(f"an exception frame of {largest} bytes does not fit above the base")
    return _who_used_it(facts, stack, first.sp, evidence)


def _who_used_it(facts: Facts, stack: StackRange, sp: int, evidence: list[str]) -> Verdict:
    """Tell a chain of calls from a single step down to the base."""
    x29 = facts.incident.first.registers.get(29)
    step = x29 - sp if x29 is not None and stack.contains(x29) else 0
    calls = facts.chain
    frames = len(calls.frames)
    each = stack.size // frames if frames else 0
    if step > LARGEST_FRAME:
        evidence.append(
            f"SP is {step} bytes below the last frame record (x29): one step, more than one function takes"
        )
        code, unknown = "guard-page-hit", "whether one function used that much, or SP was changed"
    elif calls.cycle:
        names = " <- ".join(calls.cycle)
        evidence.append(f"the call trace holds {frames} frames; {calls.repeats} times over: {names}")
        code, unknown = "deep-call-chain", "why the calls do not end"
    elif frames and each <= CHAIN_AVERAGE:
        evidence.append(
            f"the call trace holds {frames} frames, {each} bytes each on average: they fill the stack"
        )
        code, unknown = "deep-call-chain", "which of the frames is larger than it should be"
    elif frames:
        evidence.append(
            f"the call trace holds only {frames} frames: {each} bytes each, more than calls usually take"
        )
        code, unknown = "guard-page-hit", "which frame took so much, or whether SP was changed"
    else:
        code, unknown = "guard-page-hit", "what used the stack: the log holds no call trace"
    return Verdict(code, tuple(evidence), (unknown,))
