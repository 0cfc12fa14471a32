"""Why the kernel faulted: the syndrome, the stack and the tables joined into one verdict with its evidence.

The codes are those of a console log (linux/oops_codes.py): here the guest itself can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptinspect.arch.descriptor import BIT11
from ptinspect.arch.esr import Esr
from ptinspect.linux.stacks import Stack
from ptinspect.paging.walk import Walk

DEEP = 0.75
"""Part of a stack that frames must fill to be called a deep call chain."""
TRANSLATION = "translation fault"


@dataclass(frozen=True)
class Change:
    """Say which descriptor on a path differs from a snapshot, beyond bit 11."""

    level: int
    """Level of its table."""
    name: str
    """Linux's name of the level."""
    descriptor_pa: int
    """Where it is."""
    before: int
    """What the snapshot holds."""
    after: int
    """What memory holds now."""
    snapshot: str
    """Name of the snapshot."""


@dataclass(frozen=True)
class Facts:
    """What was read from the stopped guest."""

    esr: Esr
    """ESR_EL1 decoded."""
    far: int
    """FAR_EL1."""
    in_entry: bool
    """True if the last exception was taken on a store of the exception entry itself (ELR_EL1)."""
    handling: bool
    """True if the CPU stands in the exception entry or on the path of a bad stack."""
    stack: Stack | None
    """The task's stack, or the one that SP is on."""
    sp: int
    """SP, or what it was before the CPU changed to the overflow stack."""
    frame_size: int
    """Bytes of an exception frame."""
    used_before: int | None = None
    """Bytes used before the first fault; None if no frame tells."""
    repeated: int = 0
    """Exception frames that could not be stored, nested in each other."""
    frames: int = 0
    """Frames of functions on the stack."""
    walk: Walk | None = None
    """The walk of the faulting address through the kernel's own table."""
    changes: Sequence[Change] = ()
    """What changed on that path since the newest snapshot that holds it."""


@dataclass(frozen=True)
class Why:
    """The verdict."""

    code: str
    """One of linux.oops_codes.CODES."""
    text: str
    """The verdict in one sentence."""
    evidence: tuple[str, ...]
    """What supports it."""
    unknown: tuple[str, ...] = ()
    """What cannot be told from here."""
    change: Change | None = None
    """The descriptor that the verdict names."""


def path_changes(now: Walk, then: Walk, snapshot: str) -> tuple[Change, ...]:
    """Return the first descriptor of a path that differs by more than bit 11, else nothing.

    Behind it the two paths lead through other tables: nothing there can be compared.
    """
    for new, old in zip(now.steps, then.steps, strict=False):
        if new.raw is None or old.raw is None or new.descriptor_pa != old.descriptor_pa:
            break
        if (new.raw ^ old.raw) & ~BIT11:
            return (Change(new.level, new.name, new.descriptor_pa, old.raw, new.raw, snapshot),)
    return ()


def explain(facts: Facts) -> Why:
    """Judge. Every code is given only with what proves it; `unknown` says what is missing."""
    evidence = _evidence(facts)
    on_stack = facts.stack is not None and facts.stack.contains(facts.far) and facts.esr.is_abort
    lost = on_stack and facts.walk is not None and facts.walk.outcome == "fault"
    if lost and (facts.handling or facts.in_entry):
        return _lost(facts, evidence)
    stack = facts.stack
    if stack is not None:
        free, used = facts.sp - stack.base, facts.used_before
        full = -stack.size < free < stack.size * (1 - DEEP) and used is not None and used >= stack.size * DEEP
        if full and facts.frames >= 3:
            return Why("deep-call-chain", f"{facts.frames} frames fill the stack", evidence)
        abort = facts.handling and facts.esr.is_abort
        if abort and stack.base - stack.size <= facts.far < stack.base:
            below = f"the access was {stack.base - facts.far} bytes below the stack"
            return Why("guard-page-hit", below, evidence, ("what lowered SP that far",))
        if facts.handling and not on_stack and facts.frame_size <= free <= stack.size:
            return Why("not-a-stack-problem", "the exception has nothing to do with the stack", evidence)
    missing = "no exception is being handled: ESR and FAR are of an earlier one"
    return Why(
        "unknown", "nothing proves a fault of the stack", evidence, () if facts.handling else (missing,)
    )


def _lost(facts: Facts, evidence: tuple[str, ...]) -> Why:
    """Judge a fault inside the stack's own bounds, on a path that leads nowhere."""
    stack, walk = facts.stack, facts.walk
    assert stack is not None and walk is not None
    healthy = (
        f"the stack itself is healthy ({facts.used_before} bytes used)"
        if facts.used_before is not None and facts.used_before < stack.size * DEEP
        else "the stack"
    )
    if not facts.changes:
        last = walk.steps[-1] if walk.steps else None
        where = "" if last is None else f" at level {last.level} ({last.name}), pa:{last.descriptor_pa:#x}"
        no_older = "which descriptor changed: no snapshot holds this path with other values"
        return Why("stack-mapping-lost", f"{healthy}; its mapping was lost{where}", evidence, (no_older,))
    change = facts.changes[0]
    code = "reverted-entry" if change.after & 1 else "lost-entry"
    text = (
        f"{healthy}; its mapping was lost at level {change.level} ({change.name}), descriptor "
        f"pa:{change.descriptor_pa:#x}: {change.after:#x}, which held {change.before:#x} in snapshot "
        f"{change.snapshot}"
    )
    unknown: tuple[str, ...] = ()
    if code == "reverted-entry" and not change.before & 1:
        code, unknown = "stack-mapping-lost", ("the entry is valid now and was not: not a reversal",)
    return Why(code, text, evidence, unknown, change)


def _evidence(facts: Facts) -> tuple[str, ...]:
    esr, stack = facts.esr, facts.stack
    found = [f"ESR_EL1 {esr.raw:#x}: {esr.text}"]
    place = ""
    if stack is not None:
        bounds = f"the {stack.kind} stack [{stack.base:#x}..{stack.top:#x}]"
        if stack.contains(facts.far):
            place = f": in {bounds}, {facts.far - stack.base} bytes above its base"
        elif stack.base - stack.size <= facts.far < stack.base:
            place = f": {stack.base - facts.far} bytes below {bounds}"
        else:
            place = f": not in {bounds}"
    found.append(f"FAR_EL1 {facts.far:#x}{place}")
    if stack is not None:
        near = stack.base - stack.size <= facts.sp <= stack.top
        room = f"{facts.sp - stack.base} bytes free" if near else f"not on the {stack.kind} stack"
        found.append(f"SP {facts.sp:#x}: {room}")
    if facts.used_before is not None:
        by = f", by {facts.frames} frames" if facts.frames else " (x29 tells: the frames cannot be read)"
        found.append(f"{facts.used_before} bytes used before the fault{by}")
    if facts.in_entry:
        found.append("the exception entry itself faulted: no store to the stack succeeds")
    if facts.repeated:
        found.append(f"{facts.repeated} nested exceptions of {facts.frame_size} bytes, none of them stored")
    walk = facts.walk
    if walk is not None and walk.outcome == "fault":
        agrees = "" if walk.fault_level == esr.level else f", ESR says level {esr.level}"
        found.append(f"the walk of FAR ends at level {walk.fault_level}{agrees}: {walk.reason}")
    elif walk is not None:
        found.append(f"the kernel's own table maps FAR ({walk.outcome})")
    found += [
        f"pa:{c.descriptor_pa:#x} ({c.name}): {c.before:#x} in snapshot {c.snapshot}, {c.after:#x} now"
        for c in facts.changes
    ]
    return tuple(found)
