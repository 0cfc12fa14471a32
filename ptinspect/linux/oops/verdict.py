"""What a log tells of each death: the verdict by the evidence in it, and what the log cannot tell."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import islice

from ptinspect.arch.esr import EC_BRK, EC_DABT, EC_IABT, EC_SP_ALIGNMENT, Esr
from ptinspect.dataclass import dataclass, replace
from ptinspect.linux import death
from ptinspect.linux.death import Verdict, place
from ptinspect.linux.oops.depth import at_exception_entry, entries_in_trace
from ptinspect.linux.oops.incident import Fault, Incident
from ptinspect.linux.oops.log_facts import Facts, facts_of
from ptinspect.linux.oops.logfile import Log, read
from ptinspect.linux.releases import exception_frames, parse
from ptinspect.linux.stack_range import holding
from ptinspect.typed import BinaryIO

REACHED = "the kernel's bad-stack path was reached: an exception found too little room on the stack"
"""What the first line of panic_bad_stack means (arch/arm64/kernel/traps.c)."""
NESTED = 3
"""Faults, each inside of the handling of the one before, that show that it does not end."""


def verdict(facts: Facts) -> Verdict:
    """Return the verdict on one death; a code other than `unknown` only where the log proves it."""
    incident = facts.incident
    if incident.architecture not in ("arm64", "unknown") and incident.first.kind != "panic":
        note = f"the registers are those of {incident.architecture}, not of arm64"
        return Verdict("unknown", (note,), ("faults of other architectures are not explained",))
    bad = incident.bad_stack
    if bad is None:
        from ptinspect.linux.oops.fault_verdict import other_cause

        return other_cause(incident, facts.esr)
    if bad.mixed and _foreign(facts, bad):
        wrong = "lines of several reports are interleaved, and SP fits none of the stacks printed with it"
        return Verdict("unknown", (wrong,), ("which of the interleaved lines belongs to which CPU",))
    found = death.judge(_known(facts, bad))
    evidence = dict.fromkeys((*_where(facts, bad), *found.evidence))
    unknown = list(found.unknown)
    if found.code == "unknown":
        unknown += _missing(bad) or ["why the kernel found too little stack"]
    if facts.stack is not None and facts.stack.kind == "unlisted":
        unknown.append("whose stack that is")
    if bad.damaged:
        unknown.append(f"digits are missing in the log: {', '.join(bad.damaged)}")
    if bad.mixed and bad.doubtful:
        unknown.append("lines of several CPUs are interleaved: a value may belong to another one")
    return replace(found, evidence=tuple(evidence), unknown=tuple(unknown))


def _foreign(facts: Facts, bad: Fault) -> bool:
    """Tell whether SP and x29 of an interleaved report are in none of the stacks printed with it."""
    if bad.task_stack is None or bad.sp is None or facts.stack is not None:
        return False
    x29 = bad.registers.get(29)
    return x29 is None or not any(stack.contains(x29) for stack in bad.stacks)


def _known(facts: Facts, bad: Fault) -> death.Facts:
    """Return what the judge needs to know."""
    far = bad.far if _aborted(facts.esr) else None
    stacks = [stack for stack in bad.stacks if stack.base]
    stack = facts.stack
    if stack is None and bad.sp is None and far is not None:
        stack = next((s for s in stacks if s.below(far)), None)
    entry = at_exception_entry(bad.pc) or (bad.pc.startswith("el1") and "+" not in bad.pc and far == bad.sp)
    calls = facts.chain
    nested = [fault for fault in (facts.incident.first, *facts.incident.later) if fault is not bad]
    cut = all(fault.cpu is None and not fault.trace and not fault.mixed for fault in nested)
    if len(nested) >= NESTED and cut and facts.incident.first is not bad and not calls.names:
        text = f"{len(nested)} faults before it, each inside of the printing of the one before"
        calls = replace(calls, recursion=text)
    return death.Facts(
        sp=bad.sp,
        x29=bad.registers.get(29),
        stacks=stacks,
        stack=stack,
        esr=facts.esr if _own(facts.esr) else None,
        far=far,
        frame=max(exception_frames(parse(bad.release or facts.incident.release))),
        no_room=True,
        in_entry=entry,
        used=facts.used,
        calls=calls,
        gone=_gone(facts),
    )


def _gone(facts: Facts) -> Verdict | None:
    """Return what became of the mapping of the stack, if an address in it did not translate."""
    if facts.lost is None:
        return None
    from ptinspect.linux.oops.lost_mapping import lost_mapping

    return lost_mapping(facts, *facts.lost)


def _aborted(esr: Esr | None) -> bool:
    """Tell whether FAR is this exception's: neither an interrupt nor a BRK sets it."""
    return esr is not None and esr.ec in (EC_IABT, EC_DABT, EC_SP_ALIGNMENT)


def _own(esr: Esr | None) -> bool:
    """Tell whether ESR is this exception's, and not left from an earlier one of a user's."""
    if esr is None:
        return False
    return _aborted(esr) or (esr.ec == EC_BRK and esr.brk_use not in ("", "uprobe"))


def _missing(bad: Fault) -> list[str]:
    missing = [*(["SP"] if bad.sp is None else []), *([] if bad.stacks else ["the stacks' bounds"])]
    if not missing:
        return []
    return [f"{' and '.join(missing)}: not in the log, or damaged", "why there was too little room"]


def _where(facts: Facts, bad: Fault) -> list[str]:
    """Return in words where SP and FAR lie, and whose ESR it is."""
    incident, stack, esr = facts.incident, facts.stack, facts.esr
    evidence = [REACHED if bad.kind == "bad-stack" else f"{REACHED} (panic: {bad.panic})"]
    if incident.first is not bad:
        evidence.append(f"it came while the kernel reported: {incident.first.headline}")
    stacks = [s for s in bad.stacks if s.base]
    if stack is not None and bad.sp is not None:
        evidence.append(f"SP {bad.sp:#x} is {place(bad.sp, stack)}")
    if bad.far is not None and _aborted(esr):
        on = holding(bad.far, stacks) or stack
        if on is not None:
            evidence.append(f"FAR {bad.far:#x} is {place(bad.far, on)}")
    if stack is not None and stack.kind == "unlisted":
        evidence.append(
            f"x29 {bad.registers[29]:#x} is {place(bad.registers[29], stack)}: none of the printed ones, but "
            "of their size and alignment, as SDEI's, EFI's and another task's are, which are not printed"
        )
    evidence += _never_set_up(bad)
    if esr is not None and esr.ec == EC_BRK and _own(esr):
        evidence.append(
            f"ESR {esr.raw:#x} is of the exception that found no room: {esr.text}; FAR is not its"
        )
    elif esr is not None and not _own(esr):
        evidence.append(
            "ESR and FAR are of an earlier exception: what found no room was an interrupt, or an SError"
        )
    if at_exception_entry(bad.pc):
        evidence.append(f"pc {bad.pc} is the exception entry: it faulted on its own first use of SP")
    if facts.recursion is not None:
        nested = facts.recursion
        evidence.append(
            f"{nested.count} nested exceptions of {nested.frame_size} bytes: {'; '.join(nested.reasons)}"
        )
    entries = entries_in_trace(bad.trace)
    if facts.recursion is None and entries > 1:
        evidence.append(
            f"the call trace shows {entries} entries of the exception vector in a row: "
            "each faulted on its own first store"
        )
    if facts.used is not None and stack is not None and at_exception_entry(bad.pc):
        evidence.append(f"{facts.used} of {stack.size} bytes were used before the first fault")
    return evidence


def _never_set_up(bad: Fault) -> list[str]:
    """Return in words that a stack which was printed at address 0 was not there yet."""
    found = []
    for stack in bad.stacks:
        if stack.base:
            continue
        text = f"the {stack.kind} stack was printed as [{stack.base:#x}..{stack.top:#x}]: it was never set up"
        if bad.sp is not None and stack.holds_sp(bad.sp):
            taken = stack.top - bad.sp
            sizes = [size for size in exception_frames(parse(bad.release)) if taken and taken % size == 0]
            many = f", {taken // sizes[0]} exception frames of {sizes[0]} bytes" if len(sizes) == 1 else ""
            text += f", and SP {bad.sp:#x} comes from it: {taken} bytes below that top{many}"
        found.append(text)
    return found


MAX_PANICS = 256
"""Deaths of one log that are explained; the rest is counted."""


@dataclass(frozen=True)
class RegisterNote:
    """A register of the first report, with its role in the rewrite where it has one."""

    name: str
    """`x0` to `x30`, `sp`."""
    value: int
    """As printed."""
    role: str = ""
    """The name in idmap_kpti_install_ng_mappings, or empty."""
    meaning: str = ""
    """What it holds there, or empty."""


@dataclass(frozen=True)
class Panic:
    """What a log tells about one death, and what follows from it."""

    facts: Facts
    """The values and what was worked out from them."""
    registers: tuple[RegisterNote, ...]
    """The registers of the first report."""
    verdict: Verdict
    """What it was."""

    @property
    def incident(self) -> Incident:
        """The values as printed."""
        return self.facts.incident


@dataclass(frozen=True)
class Analysis:
    """The deaths of one log."""

    panics: tuple[Panic, ...]
    """In the order of the log; at most MAX_PANICS."""
    total: int
    """How many were found."""
    complete: bool = True
    """False if the log is damaged: a compressed file that ends too early. What came before that was read."""


def analyse(log: bytes | BinaryIO) -> Analysis:
    """Explain a console log: its bytes, or a file that is read as a stream. Raises OSError of the file's."""
    source = Log(io.BytesIO(log) if isinstance(log, bytes) else log)
    reader = read(source)
    deaths = [facts_of(incident) for incident in islice(reader.finish(), MAX_PANICS)]
    if any(facts.kpti_place for facts in deaths):
        from ptinspect.linux.oops.lost_mapping import joined

        deaths = joined(deaths)
    return Analysis(tuple(map(explain_death, deaths)), reader.total, source.whole)


def explain_death(facts: Facts) -> Panic:
    """Work out what one death was."""
    first = facts.incident.first
    kpti = facts.kpti
    notes: Mapping[int, tuple[str, str]] = {}
    if kpti is not None:
        from ptinspect.linux.oops.kpti_registers import ROLES, explain

        known = {number for step in kpti.levels for number in range(step.first, step.first + 3)}
        known |= {2, 3, 4} if kpti.swapper_pa is not None else set()
        notes = {number: (ROLES[number][0], explain(number, kpti)) for number in known}
    registers = [
        RegisterNote(f"x{number}", value, *notes.get(number, ("", "")))
        for number, value in sorted(first.registers.items())
    ]
    if first.sp is not None:
        registers.append(RegisterNote("sp", first.sp))
    return Panic(facts, tuple(registers), verdict(facts))
